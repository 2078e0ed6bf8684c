//! [`wait_ready`]: one wait for many things.
//!
//! Each queue has a word for those who wait for it among others, and the kernel sleeps on many words at once.
//! Processes are not words but descriptors: if there are any, a thread polls them for as long as the wait lasts, and
//! changes one more word.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::memory::member;
use crate::memory::wait::{Ticket, Waiters};
use crate::memory::wait_mode::WaitMode;
use crate::os::alarm::Alarm;
use crate::os::futex;
use crate::os::readable::wait_readable;
use crate::os::slice::slice;
use crate::process::Process;
use crate::queue::{Connection, Handle, PriorityQueue, Queue, Receiver, Stack};
use crate::sync::Event;

/// The longest sleep without a look around.
const SLICE: Duration = slice(Duration::from_millis(100));

/// The same where the kernel cannot sleep on many words.
const SHORT_SLICE: Duration = Duration::from_millis(1);

/// What [`wait_ready`] can wait for: [`Queue`], [`Receiver`], [`Connection`], [`PriorityQueue`] and [`Stack`], which
/// are ready when `try_pop` would not say `Empty`; [`Event`], which is while it is set; and [`Process`], which is when it has ended.
///
/// The trait is sealed.
///
/// # Examples
///
/// ```
/// use manyhands::Queue;
/// use manyhands::select::{Waitable, wait_ready};
///
/// let queues = [Queue::bounded(1)?, Queue::bounded(1)?];
/// queues[1].push(7)?;
/// let all: Vec<&dyn Waitable> = queues.iter().map(|queue| queue as _).collect();
/// assert_eq!(wait_ready(&all, None), [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Waitable: Sealed + Sync {}

pub(crate) mod sealed {
    use super::{BorrowedFd, Instant, Waiters};

    /// What wakes those who wait.
    pub(crate) enum Waker<'a> {
        /// Its notifications.
        Waiters(&'a Waiters),
        /// It is readable.
        Descriptor(BorrowedFd<'a>),
    }

    pub struct Source<'a>(pub(super) Waker<'a>);

    pub trait Sealed {
        /// Sees to it that the other two do not wait: in a forked child, whose first use of an
        /// object takes the ledger. Whether that was possible.
        fn reach(&self, deadline: Option<Instant>) -> bool;
        fn is_ready(&self) -> bool;
        fn source(&self) -> Source<'_>;
    }
}

use sealed::{Sealed, Source, Waker};

macro_rules! waitable {
    ([$($generic:ident),*] $type:ty, $handle:expr) => {
        impl<$($generic),*> Waitable for $type {}
        impl<$($generic),*> Sealed for $type {
            fn reach(&self, deadline: Option<Instant>) -> bool {
                let handle: fn(&Self) -> &Handle = $handle;
                handle(self).reach(|| deadline)
            }

            fn is_ready(&self) -> bool {
                let handle: fn(&Self) -> &Handle = $handle;
                handle(self).is_ready()
            }

            fn source(&self) -> Source<'_> {
                let handle: fn(&Self) -> &Handle = $handle;
                Source(Waker::Waiters(handle(self).watchers()))
            }
        }
    };
}

waitable!([T] Queue<T>, |it| &it.handle);
waitable!([T] Receiver<T>, |it| &it.handle);
waitable!([T] Stack<T>, |it| &it.handle);
waitable!([T] PriorityQueue<T>, |it| &it.handle);
waitable!([A, B] Connection<A, B>, |it| &it.receiver().handle);

impl Waitable for Event {}
impl Sealed for Event {
    fn reach(&self, deadline: Option<Instant>) -> bool {
        Self::reach(self, || deadline)
    }

    fn is_ready(&self) -> bool {
        self.is_set()
    }

    fn source(&self) -> Source<'_> {
        Source(Waker::Waiters(self.waiters()))
    }
}

impl Waitable for Process {}
impl Sealed for Process {
    fn reach(&self, _: Option<Instant>) -> bool {
        true
    }

    fn is_ready(&self) -> bool {
        !self.is_alive()
    }

    fn source(&self) -> Source<'_> {
        Source(Waker::Descriptor(self.as_fd()))
    }
}

/// Waits until at least one of these is ready, and gives the places of all that are, in ascending order. With a
/// timeout, also when that is over; then the answer is empty.
///
/// Nothing is taken out: of several who wait for one queue, all are told of an item, and one of them gets it. So
/// follow up with `try_pop`. An event that is set and cleared again at once may be missed here, other than in
/// [`Event::wait`].
///
/// For tasks alone there is [`wait`](crate::wait). Among other things they can be waited for by an event that
/// [`TaskFuture::on_done`](crate::TaskFuture::on_done) sets, as in the second example.
///
/// With nothing to wait for it returns at once, whatever the timeout.
///
/// # Examples
///
/// ```
/// use manyhands::{Process, Queue};
/// use manyhands::select::wait_ready;
/// use std::time::Duration;
///
/// let results = Queue::<u32>::bounded(8)?;
/// let child = Process::spawn(|results: Queue<u32>| results.push(7).unwrap(), results.clone())?;
/// let mut got = None;
/// while got.is_none() {
///     let ready = wait_ready(&[&results, &child], Some(Duration::from_secs(10)));
///     assert!(!ready.is_empty());
///     got = results.try_pop().ok();
/// }
/// assert_eq!(wait_ready(&[&child], None), [0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// ```
/// use manyhands::{Pool, Queue, sync::Event};
/// use manyhands::select::wait_ready;
///
/// let pool = Pool::processes(1)?;
/// let (done, orders) = (Event::new()?, Queue::<u32>::bounded(8)?);
/// let task = pool.submit(|x: u64| x * x, 12);
/// let set = done.clone();
/// task.on_done(move |_| set.set());
/// assert_eq!(wait_ready(&[&orders, &done], None), [1]);
/// assert_eq!(task.result()?, 144);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn wait_ready(all: &[&dyn Waitable], timeout: Option<Duration>) -> Vec<usize> {
    let mode = timeout.map_or(WaitMode::Forever, WaitMode::within);
    let reached_by = mode.lock_deadline();
    if !all.iter().all(|it| it.reach(reached_by)) {
        return Vec::new();
    }
    let ready = || -> Vec<usize> {
        let places = all.iter().enumerate();
        let ready = places.filter(|(_, it)| it.is_ready());
        ready.map(|(place, _)| place).collect()
    };
    let now = ready();
    if !now.is_empty() || all.is_empty() || timeout == Some(Duration::ZERO) {
        return now;
    }
    let deadline = mode.deadline();
    let (mut waiters, mut descriptors) = (Vec::new(), Vec::new());
    for it in all {
        match it.source().0 {
            Waker::Waiters(it) => waiters.push(it),
            Waker::Descriptor(it) => descriptors.push(it),
        }
    }
    let bell = Bell::default();
    with_poller(&descriptors, &bell, || {
        loop {
            let rung = bell.rung.load(Ordering::Acquire);
            let tickets: Vec<_> = waiters.iter().map(|waiters| waiters.ticket()).collect();
            let now = ready();
            let is_over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if !now.is_empty() || is_over {
                return now;
            }
            let mut words: Vec<_> = tickets.iter().map(Ticket::word).collect();
            words.insert(0, (&bell.rung, rung));
            let slice =
                if bell.is_deaf.load(Ordering::Relaxed) || !futex::can_wait_many(words.len()) {
                    SHORT_SLICE
                } else {
                    SLICE
                };
            let end = Instant::now() + slice;
            let end = deadline.map_or(end, |deadline| deadline.min(end));
            if futex::wait_many(&words, end) == futex::Wake::TimedOut {
                member::poll_for_dead();
            }
        }
    })
}

/// What the thread that polls changes.
#[derive(Default)]
struct Bell {
    rung: AtomicU32,
    /// There is no such thread.
    is_deaf: AtomicBool,
}

/// Runs `then` while another thread polls the descriptors, if there are any.
fn with_poller<R>(descriptors: &[BorrowedFd<'_>], bell: &Bell, then: impl FnOnce() -> R) -> R {
    if descriptors.is_empty() {
        return then();
    }
    let alarm = match Alarm::new() {
        Ok(alarm) => alarm,
        Err(error) => {
            deafen(bell, &error);
            return then();
        }
    };
    thread::scope(|scope| {
        let poll = || {
            let alarm = std::iter::once(alarm.as_fd());
            let all: Vec<_> = descriptors.iter().copied().chain(alarm).collect();
            match wait_readable(&all, None) {
                // The wait is over.
                Ok(Some(index)) if index == descriptors.len() => return,
                Ok(_) => {}
                Err(error) => deafen(bell, &error),
            }
            bell.rung.fetch_add(1, Ordering::Release);
            futex::wake_all(&bell.rung);
        };
        let name = "manyhands-wait".to_owned();
        let poller = thread::Builder::new().name(name).spawn_scoped(scope, poll);
        if let Err(error) = poller {
            deafen(bell, &error);
        }
        // Also when something panics, the thread is to end.
        let _ringing = Ringing(&alarm);
        then()
    })
}

fn deafen(bell: &Bell, error: &io::Error) {
    log::warn!("processes are looked at every millisecond, and not waited for: {error}");
    bell.is_deaf.store(true, Ordering::Relaxed);
}

struct Ringing<'a>(&'a Alarm);

impl Drop for Ringing<'_> {
    fn drop(&mut self) {
        self.0.ring();
    }
}
