use manyhands::prelude::*;

fn main() {
    let offset = 10u64;
    let pool = Pool::processes(2).unwrap();
    let _ = pool.submit(move |x: u64| x + offset, 1).result();
}
