// `closure!` for chunks asks for the types of all arguments, and says so.
use manyhands::prelude::*;
use manyhands::{SharedArray, closure};

fn main() {
    let scale = 2_u8;
    let input = SharedArray::<u8>::zeros(4).unwrap();
    let mut array = SharedArray::<u8>::zeros(4).unwrap();
    let pool = Pool::processes(2).unwrap();
    pool.for_each_chunk(&mut array, 2, closure!([scale] |_, chunk| chunk.fill(*scale))).unwrap();
    pool.for_each_chunk(&mut array, 2, closure!([scale] |index: usize, chunk| chunk.fill(*scale))).unwrap();
    pool.for_each_chunk(&mut array, 2, closure!([scale] |index, chunk: &mut [u8]| chunk.fill(*scale))).unwrap();
    pool.for_each_chunk_pair(&mut array, 2, &input, 2, closure!([scale] |_, out, input| out[0] = scale * input[0])).unwrap();
}
