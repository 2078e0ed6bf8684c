use manyhands::Process;

fn main() {
    let _ = Process::spawn(|x: u64| x + 1, 11);
}
