use manyhands::prelude::*;

fn main() {
    let items = vec![1.0, 2.0];
    let pool = Pool::processes(2).unwrap();
    let _ = pool.map(|x: &f64| x * 2.0, &items);
}
