//! Items that cannot be copied, with a policy: on processes and forked children.

use manyhands::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Token(u32);

fn generic<E>(pool: &Pool<E>) -> Result<Vec<u32>, TaskError>
where
    E: RunAgain<fn(Token) -> u32, Token, u32>,
{
    let policy = Retry::up_to(1).on(RetryOn::DEATH | RetryOn::PANIC);
    pool.call().retry(policy).map((|token: Token| token.0) as fn(Token) -> u32, [Token(1)])
}

fn main() {
    let policy = Retry::up_to(1).on(RetryOn::DEATH | RetryOn::PANIC | RetryOn::TIMEOUT);
    let pool = Pool::processes(1).unwrap();
    let call = || pool.call().retry(policy);
    assert_eq!(call().map(|token: Token| token.0, [Token(1)]), Ok(vec![1]));
    assert_eq!(call().submit(|token: Token| token.0, Token(2)).result(), Ok(2));
    let forked = Forked::builder().workers(1).allow_threads(true).build().unwrap();
    let each = forked.call().retry(policy).map(|token: Token| token.0, [Token(3)]);
    assert_eq!(each, Ok(vec![3]));
    assert_eq!(generic(&forked), Ok(vec![1]));
    // Without a policy nothing more is asked for.
    let threads = Pool::threads(1).unwrap();
    assert_eq!(threads.call().retries(2).map(|token: Token| token.0, [Token(4)]), Ok(vec![4]));
}
