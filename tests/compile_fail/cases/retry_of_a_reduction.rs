use manyhands::prelude::*;

fn main() {
    let pool = Pool::threads(2).unwrap();
    let policy = Retry::up_to(1).on(RetryOn::PANIC);
    let _ = pool.call().retry(policy).map_reduce(|x: u32| x, |a, b| a + b, 0..9);
}
