// A view cannot outlive the memory it is of.
use manyhands::SharedArray;

fn main() {
    let array = SharedArray::<u8>::zeros(4).unwrap();
    let slice: &[u8] = {
        let reading = array.try_read().unwrap();
        &reading[..]
    };
    let writing = array.try_write().unwrap();
    drop(array);
    println!("{slice:?} {writing:?}");
}
