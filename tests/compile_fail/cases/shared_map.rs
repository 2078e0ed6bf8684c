use manyhands::sync::Mutex;
use manyhands::{SharedArray, SharedValue};
use std::collections::HashMap;

fn main() {
    let _ = Mutex::new(HashMap::<u32, u32>::new());
    let _ = SharedArray::<String>::zeros(3);
    let _ = SharedValue::new(true);
}
