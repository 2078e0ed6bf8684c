use manyhands::Process;

fn main() {
    let offset = 10u64;
    let _ = Process::spawn(move |x: u64| assert!(x > offset), 11);
}
