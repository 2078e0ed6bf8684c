use manyhands::prelude::*;

fn main() {
    let (k, items) = (2.0, vec![1.0, 2.0]);
    let pool = Pool::processes(2).unwrap();
    let _ = pool.map(closure!([k] |x: &f64| x * k), &items);
}
