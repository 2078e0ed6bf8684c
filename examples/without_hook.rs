//! A program built without the `worker-hook` feature: workers reach `main`, and `init` at its top takes them from there.
//!
//! Run it with `cargo run --no-default-features --example without_hook`.

use manyhands::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    manyhands::init();
    let pool = Pool::processes(2)?;
    let squares: Vec<u64> = pool.map(|x| x * x, 0..5u64)?;
    println!("{squares:?}");
    assert_eq!(squares, [0, 1, 4, 9, 16]);
    let child = Process::spawn(
        |name: String| println!("a child for {name}"),
        "you".to_owned(),
    )?;
    assert!(child.join()?.success());
    Ok(())
}
