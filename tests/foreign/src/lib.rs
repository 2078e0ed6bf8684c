//! A shared library that makes pools, to be loaded by a program that is not its own.

use manyhands::prelude::*;

/// 1 if a process pool is refused for the right reason while threads work, 0 if not.
#[unsafe(no_mangle)]
pub extern "C" fn process_pool_is_refused() -> i32 {
    let refused = matches!(Pool::processes(2), Err(PoolError::ForeignExecutable));
    let threads_work =
        Pool::threads(2).is_ok_and(|pool| pool.map(|x: u32| x + 1, 0..3) == Ok(vec![1, 2, 3]));
    i32::from(refused && threads_work)
}
