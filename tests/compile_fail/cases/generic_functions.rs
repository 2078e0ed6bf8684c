use manyhands::prelude::*;

fn squares<T: std::ops::Mul<Output = T> + Copy + Send + 'static>(
    pool: &Pool<Processes>,
    items: Vec<T>,
) -> Result<Vec<T>, TaskError> {
    pool.map(|x: T| x * x, items)
}

fn each<F: Fn(u64) -> u64 + Sync>(pool: &Pool<Processes>, f: F) -> Result<Vec<u64>, TaskError> {
    pool.map(f, 0..3)
}

fn main() {
    let pool = Pool::processes(2).unwrap();
    let _ = squares(&pool, vec![1.0]);
    let _ = each(&pool, |x| x + 1);
}
