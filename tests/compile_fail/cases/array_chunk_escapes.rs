// A chunk is lent for the time of the function, and no longer.
use manyhands::SharedArray;
use manyhands::prelude::*;
use std::cell::RefCell;

fn main() {
    let kept: RefCell<Vec<&mut [u8]>> = RefCell::default();
    let mut array = SharedArray::<u8>::zeros(4).unwrap();
    let pool = Pool::serial();
    pool.for_each_chunk(&mut array, 2, |_, chunk: &mut [u8]| kept.borrow_mut().push(chunk)).unwrap();
}
