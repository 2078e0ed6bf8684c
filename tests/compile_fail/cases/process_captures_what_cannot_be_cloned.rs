use manyhands::Process;

fn main() {
    let counter = std::sync::Mutex::new(0u64);
    let _ = Process::spawn(move |x: u64| *counter.lock().unwrap() += x, 3);
}
