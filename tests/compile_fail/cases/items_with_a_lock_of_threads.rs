use manyhands::prelude::*;
use std::sync::{Arc, Mutex};

fn main() {
    let sum = Arc::new(Mutex::new(0_u64));
    let pool = Pool::processes(2).unwrap();
    let add = |sum: &Arc<Mutex<u64>>, x: u64| *sum.lock().unwrap() += x;
    let _ = pool.map_with(&sum, add, 0..3);
    let _ = pool.submit(|sum: Arc<Mutex<u64>>| *sum.lock().unwrap(), sum.clone());
}
