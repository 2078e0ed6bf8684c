use manyhands::prelude::*;

fn main() {
    let table = vec![1.0, 4.0, 9.0];
    let pool = Pool::processes(2).unwrap();
    let _ = pool.map(|i: usize| table[i], 0..3);
}
