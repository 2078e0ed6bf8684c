//! The state that the initialiser of a worker leaves for its tasks: [`worker_state`].

use std::any::Any;
use std::cell::RefCell;

use crate::copies::Original;
use crate::panic;

thread_local! {
    static STATE: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// Keeps what the initialiser of this worker has made.
pub(super) fn keep(state: Box<dyn Any>) {
    STATE.set(Some(state));
}

/// Drops the state of this worker, which has run its last task. Its `Drop` is the user's: it may
/// panic, and a copy of the process that it forks ends here.
pub(super) fn end() {
    let Some(state) = STATE.take() else { return };
    let original = Original::here();
    let dropped = panic::catch(move || drop(state));
    original.end_copy_after(&dropped);
    if let Err(caught) = dropped {
        log::error!("the state of a worker panicked when it was dropped: {caught}");
    }
}

/// Lets `f` work with the state that the initialiser of this worker has made; see the initialisers
/// of [processes](crate::engine::ProcessesBuilder::initializer) and of
/// [threads](crate::engine::ThreadsBuilder::initializer).
///
/// Returns `None` if there is no state of this type: in other threads than the one that runs tasks,
/// outside of workers, on engines without an initialiser, or when called from within another
/// `worker_state`.
///
/// # Other engines
///
/// [`Forked`](crate::Forked) and [`Serial`](crate::Serial) have no initialiser, because their tasks
/// see what the caller has: they capture it. A forked child lives for one call, and its copy of
/// what it captures goes with it. What cannot be copied, such as a connection, a hook makes in each
/// child ([`at_fork_child`](crate::at_fork_child)), or the task itself.
///
/// # When the state is dropped
///
/// A worker that comes to its end in order drops its state, after its last task: when its pool is
/// closed or shut down with [`CancelQueued`](crate::Shutdown::CancelQueued), when it has run
/// [`max_tasks_per_worker`](crate::engine::ProcessesBuilder::max_tasks_per_worker), when it has
/// been idle for long, when the pool gets smaller. On threads it does so also when the pool is
/// dropped, but the caller does not wait for that.
///
/// A worker process that is killed drops nothing: in a pool that is dropped and not closed, in a
/// task over its limit, by [`Shutdown::Kill`](crate::Shutdown::Kill), with its parent. So close the
/// pool if the state must write something at its end.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::worker_state;
///
/// let counting = || Ok::<u32, String>(0);
/// let pool = Processes::builder()
///     .workers(1)
///     .initializer(counting)
///     .build()?;
/// let count = |()| {
///     worker_state(|calls: &mut u32| {
///         *calls += 1;
///         *calls
///     })
/// };
/// assert_eq!(pool.map(count, [(); 3])?, [Some(1), Some(2), Some(3)]);
/// assert_eq!(worker_state(|calls: &mut u32| *calls), None); // not here
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn worker_state<S: 'static, R>(f: impl FnOnce(&mut S) -> R) -> Option<R> {
    STATE.with(|state| {
        let mut state = state.try_borrow_mut().ok()?;
        state.as_mut()?.downcast_mut().map(f)
    })
}
