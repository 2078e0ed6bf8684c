use manyhands::prelude::*;

struct Token(u32);

fn main() {
    let pool = Pool::threads(2).unwrap();
    // Without a policy, and with retries for deaths, items need not be copied.
    let _ = pool.map(|token: Token| token.0, [Token(1)]);
    let _ = pool.call().retries(1).map(|token: Token| token.0, [Token(1)]);
    let policy = Retry::up_to(1).on(RetryOn::PANIC);
    let _ = pool.call().retry(policy).map(|token: Token| token.0, [Token(1)]);
}
