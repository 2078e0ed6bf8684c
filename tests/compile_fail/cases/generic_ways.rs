//! What generic code may ask for.
use manyhands::bytemuck::Pod;
use manyhands::prelude::*;
use manyhands::shm::Shareable;
use manyhands::sync::Mutex;
use manyhands::{Portable, PortableValue, SharedArray};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn by_serde<T>(pool: &Pool<Processes>, items: Vec<T>) -> Result<Vec<T>, TaskError>
where
    T: std::ops::Mul<Output = T> + Copy + Serialize + DeserializeOwned + Send + 'static,
{
    pool.map(|x: T| x * x, items)
}

fn by_value<F, A, R>(pool: &Pool<AnyEngine>, f: F, items: Vec<A>) -> Result<Vec<R>, TaskError>
where
    F: Fn(A) -> R + Portable + Sync,
    A: PortableValue + Send + 'static,
    R: PortableValue + Send + 'static,
{
    pool.map(f, items)
}

fn forked<A, R: PortableValue + Send + 'static>(
    pool: &Pool<Forked>,
    f: impl Fn(A) -> R + Sync,
    items: Vec<A>,
) -> Result<Vec<R>, TaskError> {
    pool.map(f, items)
}

fn by_pod<T: Pod + Send>(lock: &Mutex<T>, value: T) -> Option<SharedArray<T>> {
    *lock.lock().ok()? = value;
    SharedArray::from_slice(&[value]).ok()
}

fn by_shareable<T: Shareable + Send>(lock: &Mutex<T>, value: T) -> Option<SharedArray<T>> {
    by_pod(lock, value)
}

fn main() {
    let pool = Pool::processes(1).unwrap();
    assert_eq!(by_serde(&pool, vec![3]), Ok(vec![9]));
    let any: Pool<AnyEngine> = "serial".parse().unwrap();
    let factor = 2;
    assert_eq!(
        by_value(&any, closure!([factor] |x: u32| x * factor), vec![1]),
        Ok(vec![2])
    );
    let names = ["a", "bc"];
    let pool = Pool::forked(1).unwrap();
    assert_eq!(forked(&pool, str::len, names.to_vec()), Ok(vec![1, 2]));
    assert!(by_shareable(&Mutex::new(1).unwrap(), 2).is_some());
    let add = closure!([factor] |(x, y): (u32, u32)| x + y + factor);
    let pool = Pool::processes(1).unwrap();
    assert_eq!(pool.map(add, [(1, 2)]), Ok(vec![5]));
    assert_eq!(pool.submit(closure!([factor] |(): ()| *factor), ()).result(), Ok(2));
}
