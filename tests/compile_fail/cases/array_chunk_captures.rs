// On processes a function that is lent chunks captures nothing.
use manyhands::SharedArray;
use manyhands::prelude::*;

fn main() {
    let table = [1_u8, 2];
    let mut array = SharedArray::<u8>::zeros(4).unwrap();
    let pool = Pool::processes(2).unwrap();
    pool.for_each_chunk(&mut array, 2, |index, chunk: &mut [u8]| chunk.fill(table[index])).unwrap();
}
