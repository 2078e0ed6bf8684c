use manyhands::prelude::*;

fn main() {
    let (table, scale) = (vec![1.0, 4.0], 2.0);
    let pool = Pool::processes(2).unwrap();
    let _ = pool.map(manyhands::closure!([table] |i: usize| table[i] * scale), 0..2);
}
