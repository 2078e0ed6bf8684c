//! Waiting until a descriptor is readable, also where the kernel refuses `poll`.
//!
//! `poll` refuses every call once `RLIMIT_NOFILE` is lower than the number of descriptors it is
//! given; a sandbox sets the limit to 0 after a program has opened what it needs. Filters of system
//! calls refuse it with an error of their own. `pselect` does not look at the limit, so it is asked
//! next.
//!
//! A caller that both of them refuse gets the error. It can still [`pause`] and look for itself at
//! what it waits for.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a caller that cannot wait for descriptors sleeps between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until one of the descriptors is readable or at its end, at most for `timeout` (`None`:
/// without a limit). Returns the index of the first one that is; `None` if the time is over.
/// Signals that are handled meanwhile do not end the wait.
///
/// # Errors
///
/// `EBADF` if a descriptor is closed. Otherwise the kernel refuses both `poll` and `pselect`, and
/// the error says why.
pub(crate) fn wait_readable(
    fds: &[BorrowedFd<'_>],
    timeout: Option<Duration>,
) -> io::Result<Option<usize>> {
    // A caller that only asks does not pay for the clock. A time that the clock cannot count has no
    // end.
    let deadline = match timeout {
        None | Some(Duration::ZERO) => None,
        Some(timeout) => Instant::now().checked_add(timeout),
    };
    let mut left = match timeout {
        Some(Duration::ZERO) => timeout,
        _ => deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
    };
    loop {
        match by_poll(fds, left) {
            Ok(Some(index)) => return Ok(Some(index)),
            // The longest time that `poll` takes may be shorter than what is left.
            Ok(None) | Err(Errno::EINTR) => {}
            Err(Errno::EBADF) => return Err(Errno::EBADF.into()),
            Err(refused) => match by_select(fds, left) {
                Ok(Some(index)) => return Ok(Some(index)),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(Errno::EBADF) => return Err(Errno::EBADF.into()),
                Err(also) => {
                    let refused = refused.desc();
                    return Err(io::Error::other(format!(
                        "the kernel refuses poll ({refused}) and pselect ({})",
                        also.desc()
                    )));
                }
            },
        }
        if left == Some(Duration::ZERO) {
            return Ok(None);
        }
        left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    }
}

/// Sleeps for a moment, at most for `timeout`. For a caller that [`wait_readable`] has refused: the
/// caller looks for itself afterwards. So its wait goes on late, but neither ends never nor loops
/// at full speed.
pub(crate) fn pause(refused: &io::Error, timeout: Option<Duration>) {
    static IS_TOLD: AtomicBool = AtomicBool::new(false);
    if !IS_TOLD.swap(true, Ordering::Relaxed) {
        log::warn!("descriptors are looked at every {PAUSE:?}, and not waited for: {refused}");
    }
    thread::sleep(timeout.map_or(PAUSE, |timeout| timeout.min(PAUSE)));
}

fn by_poll(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<Option<usize>, Errno> {
    let polled = fds.iter().map(|&fd| PollFd::new(fd, PollFlags::POLLIN));
    let mut polled: Vec<PollFd<'_>> = polled.collect();
    let timeout = timeout.map_or(PollTimeout::NONE, |time| {
        // Rounded up, so that a wait of less than a millisecond does not become a busy loop.
        let milliseconds = time.as_nanos().div_ceil(1_000_000);
        PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
    });
    if poll(&mut polled, timeout)? == 0 {
        return Ok(None);
    }
    let events = || {
        polled
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::POLLERR))
    };
    // The kernel reports a closed descriptor at once, at every call. A caller that waits in a loop
    // would never sleep again.
    if events().any(|events| events.contains(PollFlags::POLLNVAL)) {
        return Err(Errno::EBADF);
    }
    Ok(events().position(|events| !events.is_empty()))
}

fn by_select(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> Result<Option<usize>, Errno> {
    const BITS: usize = libc::c_ulong::BITS as usize;
    // Returns the word and the bit of a descriptor.
    let place = |fd: &BorrowedFd<'_>| {
        let number = fd.as_raw_fd().unsigned_abs() as usize;
        (number / BITS, 1 << (number % BITS))
    };
    // The C library's type has room for 1024 descriptors. The kernel takes as many as it is told
    // of.
    let words = size_of::<libc::fd_set>() / size_of::<libc::c_ulong>();
    let most = fds.iter().map(|fd| place(fd).0 + 1).max().unwrap_or(0);
    let mut set: Vec<libc::c_ulong> = vec![0; words.max(most)];
    for (word, bit) in fds.iter().map(place) {
        set[word] |= bit;
    }
    let count = libc::c_int::try_from(most * BITS).unwrap_or(libc::c_int::MAX);
    // tv_nsec has the width of c_long, into which a value below one billion always fits.
    #[allow(clippy::cast_possible_wrap)]
    let timeout = timeout.map(|time| libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the set has at least `count` bits and at least the size of the C library's type; it
    // is written to. The time is null or points to a live timespec. The other pointers may be null.
    let answer = unsafe {
        libc::pselect(
            count,
            set.as_mut_ptr().cast(),
            ptr::null_mut(),
            ptr::null_mut(),
            timeout,
            ptr::null(),
        )
    };
    Errno::result(answer)?;
    Ok(fds
        .iter()
        .map(place)
        .position(|(word, bit)| set[word] & bit != 0))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::socket::{Shutdown, shutdown};

    use super::*;
    use crate::os::handoff;

    type Way = fn(&[BorrowedFd<'_>], Option<Duration>) -> Result<Option<usize>, Errno>;

    #[test]
    fn both_ways_say_the_same() {
        for way in [by_poll as Way, by_select] {
            let (first, second) = (handoff::pair().unwrap(), handoff::pair().unwrap());
            let fds = [first.0.as_fd(), second.0.as_fd()];
            assert_eq!(way(&fds, Some(Duration::ZERO)), Ok(None));
            assert_eq!(way(&fds, Some(Duration::from_nanos(1))), Ok(None));
            handoff::send(second.1.as_fd(), b"news", &[]).unwrap();
            assert_eq!(way(&fds, None), Ok(Some(1)));
            // The end is something to read. To close the descriptor is not enough: a child that
            // another test forks may have a copy of it.
            shutdown(first.1.as_raw_fd(), Shutdown::Both).unwrap();
            assert_eq!(way(&fds, None), Ok(Some(0)));
            assert_eq!(way(&fds[1..], Some(Duration::MAX)), Ok(Some(0)));
        }
    }

    #[test]
    fn a_wait_for_nothing_takes_its_time_and_no_longer() {
        let (one, other) = handoff::pair().unwrap();
        let fds = [one.as_fd()];
        for millis in [0, 1, 20] {
            let (start, time) = (Instant::now(), Duration::from_millis(millis));
            assert_eq!(wait_readable(&fds, Some(time)).unwrap(), None);
            assert!(start.elapsed() >= time);
        }
        handoff::send(other.as_fd(), b"news", &[]).unwrap();
        for time in [None, Some(Duration::ZERO), Some(Duration::MAX)] {
            assert_eq!(wait_readable(&fds, time).unwrap(), Some(0));
        }
    }

    #[test]
    fn select_takes_descriptors_of_high_numbers() {
        let (one, other) = handoff::pair().unwrap();
        // The limit on open files decides how high a number can be. Without room beyond 1024 there
        // is nothing to show.
        let Ok(high) = nix::fcntl::fcntl(&one, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(2_000)) else {
            return;
        };
        // SAFETY: the call above has made it.
        let high = unsafe { BorrowedFd::borrow_raw(high) };
        assert_eq!(by_select(&[high], Some(Duration::ZERO)), Ok(None));
        shutdown(other.as_raw_fd(), Shutdown::Both).unwrap();
        assert_eq!(by_select(&[one.as_fd(), high], None), Ok(Some(0)));
        assert_eq!(by_select(&[high], None), Ok(Some(0)));
        nix::unistd::close(high.as_raw_fd()).unwrap();
    }

    #[test]
    fn a_closed_descriptor_is_an_error_and_nothing_to_read() {
        // No process has one of this number.
        // SAFETY: the call only asks what it is.
        let closed = unsafe { BorrowedFd::borrow_raw(1 << 20) };
        let (one, _other) = handoff::pair().unwrap();
        let fds = [one.as_fd(), closed];
        let error = wait_readable(&fds, None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
