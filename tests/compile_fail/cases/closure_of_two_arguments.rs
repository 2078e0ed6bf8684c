use manyhands::prelude::*;

fn main() {
    let k = 2.0;
    let pool = Pool::processes(2).unwrap();
    let _ = pool.map(closure!([k] |x: f64, y: f64| x * y * k), [(1.0, 2.0)]);
    let _ = pool.map_reduce(|x: f64| x, closure!([k] |x, y| x + y), [1.0]);
}
