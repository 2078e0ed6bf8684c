//! [`wait_ready`]: one wait for many things.
//!
//! Each queue has a futex word for the threads that wait for it among other things, and the kernel
//! can sleep on many words at once. A process is not a word but a descriptor: if there are any
//! processes, a thread polls their descriptors until the wait ends, and changes one more word.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::memory::member;
use crate::memory::wait::WaitToken;
use crate::memory::wait_mode::WaitMode;
use crate::os::alarm::Alarm;
use crate::os::futex;
use crate::os::readable::wait_readable;
use crate::os::slice::slice;
use crate::os::task::not_started;
use crate::process::Process;
use crate::queue::{Connection, Handle, PriorityQueue, Queue, Receiver, Stack};
use crate::sync::Event;

/// The longest sleep before the waiting thread polls for the dead.
const SLICE: Duration = slice(Duration::from_millis(100));

/// The same, where the kernel cannot sleep on many words.
const SHORT_SLICE: Duration = Duration::from_millis(1);

/// An object that [`wait_ready`] can wait for. A [`Queue`], [`Receiver`], [`Connection`],
/// [`PriorityQueue`] or [`Stack`] is ready when `try_pop` would not say `Empty`. An [`Event`] is
/// ready while it is set. A [`Process`] is ready when it has ended.
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
    use super::{Event, Handle, Process};

    /// What each kind of object is waited for by.
    pub(crate) enum Object<'a> {
        Queue(&'a Handle),
        Event(&'a Event),
        Process(&'a Process),
    }

    pub struct Source<'a>(pub(super) Object<'a>);

    pub trait Sealed {
        fn source(&self) -> Source<'_>;
    }
}

use sealed::{Object, Sealed, Source};

impl Object<'_> {
    /// Makes sure that the object can be looked at without a wait. The first use of an object in a
    /// forked child takes the ledger's lock. Returns whether that was possible before `deadline`.
    fn reach(&self, deadline: Option<Instant>) -> bool {
        match self {
            Self::Queue(handle) => handle.reach(|| deadline),
            Self::Event(event) => event.reach(|| deadline),
            Self::Process(_) => true,
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Self::Queue(handle) => handle.is_ready(),
            Self::Event(event) => event.is_set(),
            Self::Process(process) => !process.is_alive(),
        }
    }
}

macro_rules! waitable {
    ([$($generic:ident),*] $type:ty, $object:expr) => {
        impl<$($generic),*> Waitable for $type {}
        impl<$($generic),*> Sealed for $type {
            fn source(&self) -> Source<'_> {
                let object: fn(&Self) -> Object<'_> = $object;
                Source(object(self))
            }
        }
    };
}

waitable!([T] Queue<T>, |it| Object::Queue(&it.handle));
waitable!([T] Receiver<T>, |it| Object::Queue(&it.handle));
waitable!([T] Stack<T>, |it| Object::Queue(&it.handle));
waitable!([T] PriorityQueue<T>, |it| Object::Queue(&it.handle));
waitable!([A, B] Connection<A, B>, |it| Object::Queue(&it.receiver().handle));
waitable!([] Event, |it| Object::Event(it));
waitable!([] Process, |it| Object::Process(it));

/// Waits until at least one of these is ready, and returns the indices of all that are ready, in
/// ascending order. With a timeout, also returns when that is over; then the answer is empty.
///
/// Nothing is taken out of a queue: if several threads wait for one queue, all are told of an item,
/// and one of them gets it. So follow up with `try_pop`. An event that is set and cleared again at
/// once may be missed here, unlike in [`Event::wait`].
///
/// For tasks alone there is [`wait`](crate::wait). To wait for a task among other things, let
/// [`TaskFuture::on_done`](crate::TaskFuture::on_done) set an event and wait for that, as in the
/// second example.
///
/// If there is nothing to wait for, it returns at once, whatever the timeout.
///
/// # Examples
///
/// ```
/// use manyhands::select::wait_ready;
/// use manyhands::{Process, Queue};
/// use std::time::Duration;
///
/// let results = Queue::<u32>::bounded(8)?;
/// let child = Process::spawn(
///     |results: Queue<u32>| results.push(7).unwrap(),
///     results.clone(),
/// )?;
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
/// use manyhands::select::wait_ready;
/// use manyhands::{Pool, Queue, sync::Event};
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
    if !all.iter().all(|it| it.source().0.reach(reached_by)) {
        return Vec::new();
    }
    let ready = || -> Vec<usize> {
        let places = all.iter().enumerate();
        let ready = places.filter(|(_, it)| it.source().0.is_ready());
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
            Object::Queue(handle) => waiters.push(handle.watchers()),
            Object::Event(event) => waiters.push(event.waiters()),
            Object::Process(process) => descriptors.push(process.as_fd()),
        }
    }
    let bell = Bell::default();
    with_poller(&descriptors, &bell, || {
        loop {
            // The bell's count and the wait tokens are read before the last look at the objects: a
            // change after that look makes the sleep below return at once.
            let rung = bell.rung.load(Ordering::Acquire);
            let tokens: Vec<_> = waiters.iter().map(|waiters| waiters.token()).collect();
            let now = ready();
            let is_over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if !now.is_empty() || is_over {
                return now;
            }
            let mut words: Vec<_> = tokens.iter().map(WaitToken::word).collect();
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

/// The word that the polling thread changes.
#[derive(Default)]
struct Bell {
    rung: AtomicU32,
    /// Whether there is no polling thread: then the waiting thread looks every millisecond.
    is_deaf: AtomicBool,
}

/// Runs `then` while another thread polls the descriptors. Without descriptors no thread is
/// started.
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
                // The alarm has rung: the wait is over.
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
            deafen(bell, &not_started("manyhands-wait", error));
        }
        // Rings the alarm also when `then` panics, so that the polling thread ends.
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
