// What is meant to be done instead. Makes trybuild build, not only check.
use manyhands::prelude::*;
use manyhands::{SharedArray, closure, shm::TileMut};

fn main() {
    let table = [1_u8, 2];
    let mut array = SharedArray::<u8>::zeros(4).unwrap();
    let pool = Pool::processes(2).unwrap();
    let fill = closure!([table] |index: usize, chunk: &mut [u8]| chunk.fill(table[index]));
    pool.for_each_chunk(&mut array, 2, fill).unwrap();
    let add = closure!([table] |mut tile: TileMut<'_, u8>| tile[(0, 0)] += table[tile.origin().0]);
    pool.for_each_tile(&mut array, (2, 2), (1, 2), add).unwrap();
    assert_eq!(array.to_vec().unwrap(), [2, 1, 4, 2]);
}
