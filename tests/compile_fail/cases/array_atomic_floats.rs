// There are no atomic floating-point numbers.
use manyhands::SharedArray;

fn main() {
    let array = SharedArray::<f64>::zeros(4).unwrap();
    let _ = array.try_atomics();
}
