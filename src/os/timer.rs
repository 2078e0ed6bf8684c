//! A timer that ends its process: it keeps the task of a forked child to its limit.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use nix::errno::Errno;

use super::refusal::refused;

/// A timer that sends SIGKILL to its own process when it goes off. No mask, handler or busy loop of
/// the task's can prevent that, and the parent need not run for it.
///
/// It goes with its process. A forked child does not inherit it, and neither does another program
/// that the process turns into.
pub(crate) struct DeathTimer(libc::timer_t);

impl DeathTimer {
    /// Makes a timer that is not set.
    ///
    /// # Errors
    ///
    /// The kernel's error: it has a limit on timers for each user (`ulimit -i`).
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: a sigevent is made of integers and of pointers that may be null.
        let mut event = unsafe { MaybeUninit::<libc::sigevent>::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGKILL;
        let mut timer = MaybeUninit::zeroed();
        // SAFETY: both pointers are to values of the right type, one to be read and one to be
        // written.
        let made = unsafe {
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr())
        };
        Errno::result(made)
            .map_err(|error| refused("timer_create", "the limit of a task", error))?;
        // SAFETY: the call has written it.
        Ok(Self(unsafe { timer.assume_init() }))
    }

    /// Sets the timer to go off after this time.
    pub(crate) fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would unset the timer. A time that does not fit is longer than the machine will run.
        let after = after.max(Duration::from_nanos(1));
        self.settime(
            after.as_secs().try_into().unwrap_or(i32::MAX.into()),
            after.subsec_nanos().into(),
        )
    }

    pub(crate) fn unset(&self) -> io::Result<()> {
        self.settime(0, 0)
    }

    fn settime(&self, seconds: libc::time_t, nanoseconds: libc::c_long) -> io::Result<()> {
        let never = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let time = libc::itimerspec {
            it_interval: never,
            it_value: libc::timespec {
                tv_sec: seconds,
                tv_nsec: nanoseconds,
            },
        };
        // SAFETY: the timer is one of this process, and `time` is read only. A null pointer asks
        // for no old value.
        Errno::result(unsafe {
            libc::timer_settime(self.0, 0, &raw const time, std::ptr::null_mut())
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the seconds and nanoseconds that are left.
    fn left(timer: &DeathTimer) -> (libc::time_t, libc::c_long) {
        let mut time = MaybeUninit::<libc::itimerspec>::zeroed();
        // SAFETY: the timer is one of this process, and the time is there to be written to.
        Errno::result(unsafe { libc::timer_gettime(timer.0, time.as_mut_ptr()) }).unwrap();
        // SAFETY: zeros are valid, and so is what the call wrote.
        let left = unsafe { time.assume_init() }.it_value;
        (left.tv_sec, left.tv_nsec)
    }

    #[test]
    fn a_timer_that_was_unset_kills_nobody() {
        let timer = DeathTimer::new().unwrap();
        assert_eq!(left(&timer), (0, 0));
        timer.set(Duration::from_secs(3_600)).unwrap();
        assert!((3_000..=3_600).contains(&left(&timer).0));
        timer.set(Duration::MAX).unwrap();
        assert!(left(&timer).0 > 3_600);
        timer.unset().unwrap();
        assert_eq!(left(&timer), (0, 0));
    }

    #[cfg(not(loom))]
    #[test]
    fn a_timer_kills_its_process_also_after_no_time() {
        use crate::os::fault::{Child, Fate};
        for time in [Duration::ZERO, Duration::from_millis(1)] {
            let child = Child::run(Fate::Killed, i64::MAX - 1, || {
                DeathTimer::new().unwrap().set(time).unwrap();
                std::thread::sleep(Duration::from_secs(10));
            });
            assert!(!child.end(), "{time:?}: it has come to its end");
        }
    }
}
