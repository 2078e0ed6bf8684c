//! A mutex in shared memory that outlives its owner.
//!
//! It is the C library's robust mutex, shared between processes. A plain lock word stays locked for
//! ever when the process that holds it is killed. Every thread keeps a list of the robust mutexes
//! that it holds, and the kernel reads it. When the holder dies, the kernel hands the mutex to the
//! next waiter together with the news of the death. std calls that news poisoning: the state behind
//! the mutex may be half-written.
//!
//! What its users must know:
//!
//! - The owner is a thread. It counts as dead also when it ends, or its process calls `exec`, while
//!   it holds the mutex.
//! - A forked child does not own what its parent owns. A [`Held`] that it has inherited is the
//!   parent's: dropping it does nothing.
//! - The kernel's list goes through the memory of the mutexes. A mapping must not go away while a
//!   thread of this process holds a mutex in it: the kernel would no longer find the other mutexes
//!   that the thread holds.
//! - Owners are told apart by thread numbers, so all who share a mutex must live in one PID
//!   namespace.

use std::cell::UnsafeCell;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::slice::slice;
use super::{clock, life};

/// The longest time for which a thread that waits for a mutex sleeps before it looks again.
///
/// The C library wakes one sleeper when it unlocks, and leaves the mutex free for that one to take.
/// A sleeper whose process is stopped does not take it, and no other is woken. So each sleeper
/// looks by itself after this time.
const SLICE: Duration = slice(Duration::from_millis(100));

/// A robust mutex, shared between processes. It lies in shared memory, and never moves.
#[repr(C)]
pub(crate) struct RobustMutex(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: all access is by functions of the C library that may be called for one mutex from many
// threads.
unsafe impl Sync for RobustMutex {}

/// How the mutex was acquired. Either way it is the caller's now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Acquired {
    Clean,
    /// The last owner, a thread or a whole process, died while it held the mutex. The mutex has
    /// been made usable again, so the next owner is not told of this. The state that it guards may
    /// be half-written.
    OwnerDied,
}

/// Why the mutex was not acquired.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// Another owner has it: at the deadline, or right now if the caller does not wait.
    #[error("the mutex is held by another thread")]
    Timeout,
    /// The calling thread has it already.
    #[error("the mutex is held by this very thread")]
    Deadlock,
    /// It was given up for good. That does not happen between users of this type; other code has
    /// written over it.
    #[error("the mutex cannot be recovered")]
    NotRecoverable,
    /// The C library finds no mutex there; other code has written over it.
    #[error("the mutex is corrupted: {0}")]
    Corrupted(io::Error),
}

impl RobustMutex {
    /// Makes a mutex at `place` that no thread holds.
    ///
    /// # Safety
    ///
    /// `place` is valid for writes, aligned, and no other thread uses it during the call. From then
    /// on nothing but this type writes to it, and it stays mapped, in each process, as long as a
    /// thread of that process holds the mutex.
    pub(crate) unsafe fn init(place: NonNull<Self>) -> io::Result<()> {
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: the pointer is to memory for attributes.
        check(unsafe { libc::pthread_mutexattr_init(attributes) })?;
        // SAFETY: the attributes have been initialised, and `place` is as `make` wants it by the
        // caller's promise.
        let made = unsafe { Self::make(place, attributes) };
        // SAFETY: the attributes have been initialised, and are not used after this.
        check(unsafe { libc::pthread_mutexattr_destroy(attributes) })?;
        made
    }

    /// # Safety
    ///
    /// `attributes` are initialised, and `place` is as [`init`](Self::init) wants it.
    unsafe fn make(
        place: NonNull<Self>,
        attributes: *mut libc::pthread_mutexattr_t,
    ) -> io::Result<()> {
        let shared = libc::PTHREAD_PROCESS_SHARED;
        // SAFETY: the attributes are initialised, by the caller's promise.
        check(unsafe { libc::pthread_mutexattr_setpshared(attributes, shared) })?;
        // A thread that locks it twice gets an error. A thread that unlocks a mutex that it does
        // not own does no harm.
        let kind = libc::PTHREAD_MUTEX_ERRORCHECK;
        // SAFETY: as above.
        check(unsafe { libc::pthread_mutexattr_settype(attributes, kind) })?;
        let robust = libc::PTHREAD_MUTEX_ROBUST;
        // SAFETY: as above.
        check(unsafe { libc::pthread_mutexattr_setrobust(attributes, robust) })?;
        // SAFETY: `place` is valid for writes and not used by others, and the attributes are
        // initialised, by the caller's promise. An UnsafeCell and a repr(C) struct around it have
        // the layout of what is in them.
        check(unsafe { libc::pthread_mutex_init(place.as_ptr().cast(), attributes) })
    }

    /// Waits for the mutex. The caller owns it then, until [`unlock`](Self::unlock).
    pub(crate) fn lock(&self) -> Result<Acquired, LockError> {
        self.lock_within(None)
    }

    /// Waits for the mutex, at most until `deadline`. Acquires a free mutex also after the
    /// deadline.
    pub(crate) fn lock_until(&self, deadline: Instant) -> Result<Acquired, LockError> {
        self.lock_within(Some(deadline))
    }

    fn lock_within(&self, deadline: Option<Instant>) -> Result<Acquired, LockError> {
        // Most mutexes are free. A look at the clock would cost more than all the rest.
        let mut outcome = self.try_lock();
        while matches!(outcome, Err(LockError::Timeout)) {
            let slice = Instant::now() + SLICE;
            let is_last = deadline.is_some_and(|deadline| deadline <= slice);
            let end = deadline.map_or(slice, |deadline| deadline.min(slice));
            outcome = self.sleep_until(end);
            // The slice has ended at the deadline. Otherwise another owner may have it still.
            if is_last {
                break;
            }
        }
        outcome
    }

    /// Acquires the mutex if no thread holds it.
    pub(crate) fn try_lock(&self) -> Result<Acquired, LockError> {
        // SAFETY: `self` is a mutex made by `init`.
        let code = unsafe { libc::pthread_mutex_trylock(self.0.get()) };
        self.acquired(code)
    }

    /// Waits for the mutex in one sleep, at most until `deadline`.
    #[cfg(target_env = "gnu")]
    fn sleep_until(&self, deadline: Instant) -> Result<Acquired, LockError> {
        // The libc crate does not have it. It came with glibc 2.30; only programs that get here
        // need that.
        unsafe extern "C" {
            fn pthread_mutex_clocklock(
                mutex: *mut libc::pthread_mutex_t,
                clock: libc::clockid_t,
                deadline: *const libc::timespec,
            ) -> libc::c_int;
        }
        let until = clock::deadline(deadline);
        // SAFETY: `self` is a mutex made by `init`, and `until` a valid time.
        let code = unsafe {
            pthread_mutex_clocklock(self.0.get(), libc::CLOCK_MONOTONIC, &raw const until)
        };
        self.acquired(code)
    }

    #[cfg(not(target_env = "gnu"))]
    fn sleep_until(&self, deadline: Instant) -> Result<Acquired, LockError> {
        self.lock_by_wall_clock(deadline)
    }

    /// Waits like [`sleep_until`](Self::sleep_until), for C libraries that only know deadlines of
    /// the wall clock. When that clock is set forward, the wait goes on; when it is set back, the
    /// wait is longer by as much.
    #[cfg(any(test, not(target_env = "gnu")))]
    fn lock_by_wall_clock(&self, deadline: Instant) -> Result<Acquired, LockError> {
        loop {
            let until = clock::after(libc::CLOCK_REALTIME, clock::left_until(deadline));
            // SAFETY: `self` is a mutex made by `init`, and `until` a valid time.
            let code = unsafe { libc::pthread_mutex_timedlock(self.0.get(), &raw const until) };
            if code != libc::ETIMEDOUT || Instant::now() >= deadline {
                return self.acquired(code);
            }
        }
    }

    /// Returns the process that holds the mutex right now; `None` if none does, or if the system
    /// does not say.
    ///
    /// For error messages: the answer may be outdated when it is given.
    pub(crate) fn holder(&self) -> Option<u32> {
        // The kernel knows the owner by this word. In musl the kind of the mutex comes before it.
        const WORD: usize = if cfg!(target_env = "musl") { 1 } else { 0 };
        // The lower 30 bits are the owner's thread id, by the kernel's rules for robust lists.
        const THREAD: u32 = 0x3fff_ffff;
        // SAFETY: a mutex of the C library has two words and more.
        let word = unsafe { self.0.get().cast::<u32>().add(WORD) };
        // SAFETY: the word is aligned, lives as long as `self`, and is changed by atomic operations
        // only, since other processes and the kernel change it too.
        let word = unsafe { AtomicU32::from_ptr(word) };
        match word.load(Ordering::Relaxed) & THREAD {
            0 => None,
            thread => life::process_of(thread),
        }
    }

    /// Releases the mutex. If a thread waits for it, that thread is woken.
    ///
    /// # Safety
    ///
    /// The calling thread has acquired it, and has not given it back.
    pub(crate) unsafe fn unlock(&self) {
        // SAFETY: `self` is a mutex made by `init`.
        let code = unsafe { libc::pthread_mutex_unlock(self.0.get()) };
        // EPERM: this is a forked child with a `Held` of its parent's.
        if code != 0 && code != libc::EPERM {
            log::error!("a mutex in shared memory is corrupted: {}", system(code));
        }
    }

    /// Waits for the mutex until the deadline that `limit` gives, for ever if it gives none.
    /// Returns a guard that unlocks. Calls `limit` only if another thread holds the mutex.
    pub(crate) fn hold_with(
        &self,
        limit: impl FnOnce() -> Option<Instant>,
    ) -> Result<Held<'_>, LockError> {
        let acquired = match self.try_lock() {
            Err(LockError::Timeout) => self.lock_within(limit()),
            outcome => outcome,
        };
        acquired.map(|acquired| self.held(acquired))
    }

    /// Waits like [`lock`](Self::lock), and returns a guard that unlocks.
    pub(crate) fn hold(&self) -> Result<Held<'_>, LockError> {
        self.lock().map(|acquired| self.held(acquired))
    }

    /// Tries like [`try_lock`](Self::try_lock), and returns a guard that unlocks.
    pub(crate) fn try_hold(&self) -> Result<Held<'_>, LockError> {
        self.try_lock().map(|acquired| self.held(acquired))
    }

    /// Waits like [`lock_until`](Self::lock_until), and returns a guard that unlocks.
    pub(crate) fn hold_until(&self, deadline: Instant) -> Result<Held<'_>, LockError> {
        self.lock_until(deadline)
            .map(|acquired| self.held(acquired))
    }

    fn held(&self, acquired: Acquired) -> Held<'_> {
        Held {
            mutex: self,
            owner_died: acquired == Acquired::OwnerDied,
            of_this_thread: PhantomData,
        }
    }

    /// Returns what the answer `code` to an attempt to lock means.
    fn acquired(&self, code: libc::c_int) -> Result<Acquired, LockError> {
        match code {
            0 => Ok(Acquired::Clean),
            libc::EOWNERDEAD => {
                // If this process is killed before the next line or after it, the next owner is
                // told of the death too.
                // SAFETY: `self` is a mutex made by `init`, and the calling thread has just
                // acquired it.
                let code = unsafe { libc::pthread_mutex_consistent(self.0.get()) };
                if code == 0 {
                    return Ok(Acquired::OwnerDied);
                }
                // SAFETY: the calling thread has just acquired it.
                unsafe { self.unlock() };
                Err(LockError::Corrupted(system(code)))
            }
            libc::EBUSY | libc::ETIMEDOUT => Err(LockError::Timeout),
            libc::EDEADLK => Err(LockError::Deadlock),
            libc::ENOTRECOVERABLE => Err(LockError::NotRecoverable),
            code => Err(LockError::Corrupted(system(code))),
        }
    }
}

/// A [`RobustMutex`] held by this thread; unlocked when this is dropped.
#[must_use = "the mutex is unlocked when this is dropped"]
pub(crate) struct Held<'a> {
    mutex: &'a RobustMutex,
    owner_died: bool,
    /// The thread that locked it must unlock it.
    of_this_thread: PhantomData<*mut ()>,
}

impl Held<'_> {
    /// Returns whether the last owner died while it held the mutex, so that the state it guards may
    /// be half-written. Only this owner is told.
    pub(crate) fn owner_died(&self) -> bool {
        self.owner_died
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread has acquired the mutex, since a `Held` does not change threads, and
        // has not given it back, since there is one `Held` for each time. (In a forked child it is
        // another thread's; `unlock` allows for that.)
        unsafe { self.mutex.unlock() };
    }
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(system(code)) }
}

fn system(code: libc::c_int) -> io::Error {
    io::Error::from_raw_os_error(code)
}

#[cfg(test)]
mod tests {
    use std::mem;
    use std::num::NonZeroUsize;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::Duration;

    use nix::unistd::{Pid, gettid};

    use super::*;
    use crate::os::fork::Victim;
    use crate::os::memory::SharedMemory;

    /// Waits until a thread of this process sleeps in the kernel.
    fn falls_asleep(thread: Pid) {
        wait_for(|| {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
            // The state follows the name, which is in brackets.
            stat.is_ok_and(|stat| stat[stat.rfind(')').unwrap()..].starts_with(") S"))
        });
    }

    /// A page of shared memory with a mutex, and two words for the tests.
    struct Page(SharedMemory);

    #[repr(C)]
    struct Content {
        mutex: RobustMutex,
        word: AtomicU32,
        count: UnsafeCell<u64>,
    }

    // SAFETY: only the thread that holds the mutex touches `count`.
    unsafe impl Sync for Content {}

    impl Page {
        fn new() -> Self {
            let (memory, _fd) =
                SharedMemory::new("a test", NonZeroUsize::new(4096).unwrap()).unwrap();
            // SAFETY: a page is large enough, and aligned; no other thread has it.
            unsafe { RobustMutex::init(memory.start().cast()) }.unwrap();
            Self(memory)
        }

        fn content(&self) -> &Content {
            // SAFETY: the mapping lives as long as `self`; zeros are valid where `init` has not
            // written.
            unsafe { self.0.start().cast::<Content>().as_ref() }
        }

        fn mutex(&self) -> &RobustMutex {
            &self.content().mutex
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn wait_for(mut condition: impl FnMut() -> bool) {
        let deadline = soon();
        while !condition() {
            assert!(Instant::now() < deadline, "nothing has come");
            thread::yield_now();
        }
    }

    #[test]
    fn one_thread_at_a_time_has_it() {
        let page = Page::new();
        let content = page.content();
        thread::scope(|scope| {
            for how in 0..4 {
                scope.spawn(move || {
                    for _ in 0..5_000 {
                        let held = match how {
                            0 => content.mutex.hold().unwrap(),
                            1 => content.mutex.hold_until(soon()).unwrap(),
                            2 => {
                                let acquired = content.mutex.lock_by_wall_clock(soon());
                                content.mutex.held(acquired.unwrap())
                            }
                            _ => loop {
                                match content.mutex.try_hold() {
                                    Ok(held) => break held,
                                    Err(LockError::Timeout) => thread::yield_now(),
                                    Err(error) => panic!("{error}"),
                                }
                            },
                        };
                        assert!(!held.owner_died());
                        let count = content.count.get();
                        // SAFETY: this thread holds the mutex.
                        let before = unsafe { count.read() };
                        // SAFETY: as above.
                        unsafe { count.write(before + 1) };
                    }
                });
            }
        });
        // SAFETY: the threads have ended.
        assert_eq!(unsafe { content.count.get().read() }, 20_000);
    }

    #[test]
    fn locking_twice_is_an_error_and_no_hang() {
        let page = Page::new();
        let held = page.mutex().hold().unwrap();
        assert!(matches!(page.mutex().lock(), Err(LockError::Deadlock)));
        let again = page.mutex().lock_until(soon());
        assert!(matches!(again, Err(LockError::Deadlock)), "{again:?}");
        let again = page.mutex().try_lock();
        assert!(
            matches!(again, Err(LockError::Deadlock | LockError::Timeout)),
            "{again:?}"
        );
        drop(held);
        assert_eq!(page.mutex().lock().unwrap(), Acquired::Clean);
    }

    #[test]
    fn the_death_of_a_thread_that_holds_it_is_told_once() {
        let page = Page::new();
        let hold_and_end = || {
            thread::scope(|scope| {
                let thread = scope.spawn(|| mem::forget(page.mutex().hold().unwrap()));
                // The end of the scope would wait for the closure, this waits for the thread.
                thread.join().unwrap();
            });
        };
        hold_and_end();
        assert!(page.mutex().hold_until(soon()).unwrap().owner_died());
        assert!(!page.mutex().hold_until(soon()).unwrap().owner_died());
        hold_and_end();
        assert!(page.mutex().try_hold().unwrap().owner_died());
    }

    fn child_that_holds(page: &Page) -> Victim {
        let content = page.content();
        content.word.store(0, Ordering::Relaxed);
        let child = Victim::fork(|| {
            let is_held = content.mutex.lock().is_ok();
            content
                .word
                .store(1 + u32::from(is_held), Ordering::Release);
        });
        wait_for(|| content.word.load(Ordering::Acquire) != 0);
        assert_eq!(content.word.load(Ordering::Relaxed), 2);
        child
    }

    #[test]
    fn the_death_of_a_process_that_holds_it_is_told_to_the_next() {
        let page = Page::new();
        for _ in 0..3 {
            let child = child_that_holds(&page);
            assert!(matches!(page.mutex().try_lock(), Err(LockError::Timeout)));
            child.kill();
            assert!(page.mutex().try_hold().unwrap().owner_died());
        }
        assert!(!page.mutex().try_hold().unwrap().owner_died());
    }

    #[test]
    fn the_death_of_a_process_that_holds_it_is_told_to_those_who_wait() {
        let page = Page::new();
        for round in 0..3 {
            let child = child_that_holds(&page);
            let (send, thread) = channel();
            thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    send.send(gettid()).unwrap();
                    let held = match round {
                        0 => page.mutex().lock().unwrap(),
                        1 => page.mutex().lock_until(soon()).unwrap(),
                        _ => page.mutex().lock_by_wall_clock(soon()).unwrap(),
                    };
                    page.mutex().held(held).owner_died()
                });
                falls_asleep(thread.recv().unwrap());
                child.kill();
                assert!(waiter.join().unwrap());
            });
        }
    }

    #[test]
    fn the_process_that_holds_it_can_be_named() {
        let page = Page::new();
        assert_eq!(page.mutex().holder(), None);
        let held = page.mutex().hold().unwrap();
        assert_eq!(page.mutex().holder(), Some(std::process::id()));
        drop(held);
        assert_eq!(page.mutex().holder(), None);
        let child = child_that_holds(&page);
        assert_eq!(page.mutex().holder(), Some(child.pid()));
        child.kill();
        assert!(page.mutex().try_hold().unwrap().owner_died());
    }

    #[cfg(not(long_slices))]
    #[test]
    fn a_limit_is_asked_for_only_if_another_thread_holds_it() {
        let page = Page::new();
        let held = page.mutex().hold_with(|| panic!("it is free")).unwrap();
        thread::scope(|scope| {
            let now = || page.mutex().hold_with(|| Some(Instant::now())).err();
            let answer = scope.spawn(now).join().unwrap();
            assert!(matches!(answer, Some(LockError::Timeout)), "{answer:?}");
            // Without a limit it waits for longer than a slice.
            let waiter = scope.spawn(|| page.mutex().hold_with(|| None).is_ok());
            thread::sleep(SLICE * 2);
            assert!(!waiter.is_finished());
            drop(held);
            assert!(waiter.join().unwrap());
        });
    }

    #[test]
    fn a_forked_child_does_not_own_what_its_parent_owns() {
        let page = Page::new();
        let held = page.mutex().hold().unwrap();
        let content = page.content();
        let child = Victim::fork(|| {
            // As if it had dropped the `Held` that it has inherited.
            // SAFETY: this process is not the owner, which is what the test is about; `unlock`
            // allows for that.
            unsafe { content.mutex.unlock() };
            let is_busy = matches!(content.mutex.try_lock(), Err(LockError::Timeout));
            content
                .word
                .store(1 + u32::from(is_busy), Ordering::Release);
        });
        wait_for(|| content.word.load(Ordering::Acquire) != 0);
        assert_eq!(content.word.load(Ordering::Relaxed), 2);
        child.kill();
        drop(held);
        assert!(!page.mutex().try_hold().unwrap().owner_died());
    }

    #[test]
    fn deadlines_do_not_pass_early() {
        let page = Page::new();
        let held = page.mutex().hold().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for millis in [0, 1, 3, 10, 30] {
                    let deadline = Instant::now() + Duration::from_millis(millis);
                    let answer = page.mutex().lock_until(deadline);
                    assert!(matches!(answer, Err(LockError::Timeout)), "{answer:?}");
                    assert!(Instant::now() >= deadline);
                    let deadline = Instant::now() + Duration::from_millis(millis);
                    let answer = page.mutex().lock_by_wall_clock(deadline);
                    assert!(matches!(answer, Err(LockError::Timeout)), "{answer:?}");
                    assert!(Instant::now() >= deadline);
                }
            });
        });
        drop(held);
        let past = Instant::now();
        assert!(!page.mutex().hold_until(past).unwrap().owner_died());
    }

    #[test]
    fn far_deadlines_are_waited_for() {
        let page = Page::new();
        for seconds in [1 << 33, 1 << 40, i64::MAX as u64 / 2] {
            let deadline = Instant::now() + Duration::from_secs(seconds);
            for by_wall_clock in [false, true] {
                let held = page.mutex().hold().unwrap();
                let (send, thread) = channel();
                thread::scope(|scope| {
                    let waiter = scope.spawn(|| {
                        send.send(gettid()).unwrap();
                        let acquired = if by_wall_clock {
                            page.mutex().lock_by_wall_clock(deadline)
                        } else {
                            page.mutex().lock_until(deadline)
                        };
                        acquired.map(|acquired| page.mutex().held(acquired).owner_died())
                    });
                    falls_asleep(thread.recv().unwrap());
                    drop(held);
                    assert!(!waiter.join().unwrap().unwrap());
                });
            }
        }
    }
}
