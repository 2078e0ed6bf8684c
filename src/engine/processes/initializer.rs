//! The initialiser of workers, and the state that it leaves for their tasks.

use std::any::Any;
use std::cell::RefCell;
use std::fmt::Display;

use crate::call::code;
use crate::error::PoolError;
use crate::os::fork::Original;
use crate::panic;

/// A function that runs an initialiser in a worker. The error says why the initialiser failed.
type Entry = fn() -> Result<Box<dyn Any>, String>;

thread_local! {
    static STATE: RefCell<Option<Box<dyn Any>>> = const { RefCell::new(None) };
}

/// Returns the number of an initialiser, as it is sent to the workers.
pub(super) fn number<F, S, E>() -> Result<u64, PoolError>
where
    F: Fn() -> Result<S, E>,
    S: 'static,
    E: Display,
{
    let entry: Entry = enter::<F, S, E>;
    Ok(code::number(entry as usize)?)
}

fn enter<F, S, E>() -> Result<Box<dyn Any>, String>
where
    F: Fn() -> Result<S, E>,
    S: 'static,
    E: Display,
{
    let f = crate::call::entry::zero_sized::<F>();
    let original = Original::here();
    let ran = panic::catch(|| f().map_err(|error| error.to_string()));
    original.end_copy_after(&ran);
    match ran {
        Ok(Ok(state)) => Ok(Box::new(state)),
        Ok(Err(reason)) => Err(reason),
        Err(caught) => Err(format!("it panicked: {caught}")),
    }
}

/// Runs, in a worker, the initialiser with this number, and keeps what it returns.
pub(super) fn initialize(number: u64) -> Result<(), String> {
    let state = run(number)?;
    STATE.set(Some(state));
    Ok(())
}

/// Runs the function with this number, and returns what it has made.
#[allow(unsafe_code)]
pub(super) fn run(number: u64) -> Result<Box<dyn Any>, String> {
    // SAFETY: the number comes from the parent, which runs the same build, and which made it of an
    // `Entry`.
    let entry = unsafe { code::function::<Entry>(number) };
    entry.ok_or("the executable does not have it")?()
}

/// Lets `f` work with the state that the initialiser of this worker has made; see
/// [`ProcessesBuilder::initializer`](crate::engine::ProcessesBuilder::initializer).
///
/// Returns `None` if there is no state of this type: in other threads than the one that runs tasks,
/// outside of workers, or when called from within another `worker_state`.
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
