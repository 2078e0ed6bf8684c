//! The behaviour of a handle when its task ends at a chosen instant.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::task::Wake;

use super::*;
use crate::error::PoolError;

/// A task that ends right after a look at it that came too early.
struct EndsAt {
    looks: AtomicUsize,
    /// The first look that finds it ended.
    end: usize,
    hooks: Mutex<Vec<Hook>>,
    cancelled: Arc<AtomicUsize>,
}

impl EndsAt {
    fn handle(end: usize, cancelled: &Arc<AtomicUsize>) -> TaskFuture<u32> {
        TaskFuture::new(Arc::new(Self {
            looks: AtomicUsize::new(0),
            end,
            hooks: Mutex::default(),
            cancelled: Arc::clone(cancelled),
        }))
    }
}

impl Pending<u32> for EndsAt {
    fn pool(&self) -> Option<PoolId> {
        None
    }

    fn is_done(&self) -> bool {
        let look = self.looks.fetch_add(1, Ordering::SeqCst);
        if look + 1 == self.end {
            for hook in self.hooks.lock().drain(..) {
                hook();
            }
            later::flush();
        }
        look >= self.end
    }

    fn wait(&self, _deadline: Option<Instant>) -> bool {
        true
    }

    fn take(&self) -> Result<u32, TaskError> {
        Ok(7)
    }

    fn has_failed(&self) -> bool {
        false
    }

    fn is_running(&self) -> bool {
        false
    }

    fn cancel(&self) -> bool {
        self.cancelled.fetch_add(1, Ordering::SeqCst) == 0
    }

    fn stop(&self, _reason: Reason) {}

    fn keep(&self, watch: Watch) {
        drop(watch);
    }

    fn on_end(&self, hook: Hook) {
        if self.end == 0 {
            hook();
        } else {
            self.hooks.lock().push(hook);
        }
    }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The task may end before the waker is there, and then does not wake it, or after that.
#[test]
fn a_poll_that_says_not_yet_is_followed_by_a_wake_up() {
    for end in 0..6 {
        let cancelled = Arc::default();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut task = EndsAt::handle(end, &cancelled);
        let mut polls = 0;
        loop {
            let before = woken.0.load(Ordering::SeqCst);
            let poll = Pin::new(&mut task).poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(outcome) = poll {
                assert_eq!(outcome, Ok(7));
                break;
            }
            polls += 1;
            while !task.is_done() {}
            let is_woken = woken.0.load(Ordering::SeqCst) > before;
            assert!(is_woken, "not woken by the end at look {end}");
        }
        assert!(polls <= 1);
        drop(task);
        assert_eq!(cancelled.load(Ordering::SeqCst), 0, "it had ended");
    }
}

#[test]
fn only_a_handle_that_was_awaited_in_vain_cancels_when_it_is_dropped() {
    let cancelled = Arc::default();
    let count = || Arc::<AtomicUsize>::clone(&cancelled).load(Ordering::SeqCst);
    drop(EndsAt::handle(usize::MAX, &cancelled));
    assert_eq!(count(), 0, "never awaited");
    let mut task = EndsAt::handle(usize::MAX, &cancelled);
    let mut context = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut task).poll(&mut context).is_pending());
    drop(task);
    assert_eq!(count(), 1);
}

#[test]
fn a_task_that_was_over_from_the_start_is_what_it_is() {
    let outcome = || Err(PoolError::Closed.into());
    let pool = PoolId::new();
    assert_ne!(pool, PoolId::new());
    assert_eq!(
        TaskFuture::<u32>::ended(Some(pool), outcome())
            .pending
            .pool(),
        Some(pool)
    );
    let mut task = TaskFuture::<u32>::ready(outcome());
    assert!(task.pending.pool().is_none() && task.pending.has_failed());
    assert!(task.is_done() && !task.is_running() && !task.cancel() && !task.kill());
    let (tell, told) = channel();
    task.pending
        .on_end(Box::new(move || tell.send(()).unwrap()));
    assert_eq!(told.try_recv(), Ok(()));
    assert_eq!(task.result_timeout(Duration::ZERO), Ok(outcome()));
    assert!(task.pending.has_failed(), "also when its outcome was taken");
    assert_eq!(task.result(), Err(TaskError::Taken {}));
    assert!(!TaskFuture::ready(Ok(1)).pending.has_failed());
}

#[test]
fn a_pool_without_callbacks_is_not_waited_for_and_one_with_is_until_the_last() {
    use super::outstanding::{Outstanding, Within, is_in_callback_of};
    let (pool, other) = (PoolId::new(), PoolId::new());
    let counted = [(); 2].map(|()| Outstanding::count(Some(pool)));
    // Neither this pool nor a task without a pool has callbacks.
    wait_for_callbacks(other, None);
    drop(Outstanding::count(None));
    let (tell, told) = channel();
    let waiter = std::thread::spawn(move || {
        wait_for_callbacks(pool, None);
        tell.send(()).unwrap();
    });
    let [first, last] = counted;
    drop(first);
    // Waits longer than the waiter sleeps at a time.
    let early = told.recv_timeout(2 * callback_threads::RETRY);
    assert!(early.is_err(), "it has not waited for the last");
    // In a callback, of whatever pool, it does not wait; and afterwards it is in none.
    {
        let _outer = Within::enter(Some(other), 1);
        let inner = Within::enter(None, 2);
        assert!(is_in_callback_of(1) && is_in_callback_of(2));
        wait_for_callbacks(pool, None);
        drop(inner);
        assert!(is_in_callback_of(1) && !is_in_callback_of(2));
        wait_for_callbacks(pool, None);
    }
    assert!(!is_in_callback_of(1));
    drop(last);
    assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(()));
    waiter.join().unwrap();
    wait_for_callbacks(pool, None);
}

#[test]
fn handles_and_what_waits_for_them_may_cross_a_caught_panic() {
    use std::panic::{RefUnwindSafe, UnwindSafe};
    fn check<T: UnwindSafe + RefUnwindSafe>() {}
    check::<TaskFuture<std::cell::Cell<u8>>>();
    check::<AsCompleted<std::cell::Cell<u8>>>();
    check::<crate::pool::Pool<crate::engine::Threads>>();
    check::<crate::engine::ThreadsBuilder>();
    #[cfg(target_os = "linux")]
    check::<crate::engine::ProcessesBuilder>();
}
