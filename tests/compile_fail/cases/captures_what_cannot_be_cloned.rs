use manyhands::prelude::*;

fn main() {
    let counter = std::sync::Mutex::new(0u64);
    let pool = Pool::processes(2).unwrap();
    let _ = pool.map(move |x: u64| *counter.lock().unwrap() += x, 0..3);
}
