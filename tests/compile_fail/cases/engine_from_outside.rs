//! What a pool asks of its engine cannot be called from outside, neither of an engine that is known
//! nor in generic code.

use manyhands::Shutdown;
use manyhands::prelude::*;

fn of_any<E: Run<fn(u8) -> u8, u8, u8>>(pool: &Pool<E>) {
    let double: fn(u8) -> u8 = |x| 2 * x;
    let _ = pool.engine().submit(Default::default(), double, 1);
    let _ = pool.engine().stream(Default::default(), double);
    let _ = pool.engine().is_open();
    let _ = pool.engine().is_open(Default::default());
}

fn main() {
    let pool = Pool::serial();
    let _ = pool.engine().submit(Default::default(), |x: u8| x, 1);
    let _ = pool.engine().shutdown(Shutdown::Kill);
    let _ = Serial::default().submit(Default::default(), |x: u8| x, 1);
    of_any(&pool);
    match "serial".parse::<Pool<AnyEngine>>().unwrap().engine() {
        AnyEngine::Serial(_) => {}
        _ => {}
    }
}
