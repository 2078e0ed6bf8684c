use manyhands::closure;
use manyhands::prelude::*;

fn main() {
    let (table, scale) = (vec![1.0, 4.0, 9.0], 2.0);
    let expected = Ok(vec![2.0, 8.0, 18.0]);
    let pool = Pool::processes(2).unwrap();
    let context = (table.clone(), scale);
    assert_eq!(pool.map_with(&context, |(table, scale), i: usize| table[i] * scale, 0..3), expected);
    assert_eq!(pool.map(closure!([table, scale] |i: usize| table[i] * scale), 0..3), expected);
    pool.close().unwrap();
    assert_eq!(Pool::forked(2).unwrap().map(|i: usize| table[i] * scale, 0..3), expected);
}
