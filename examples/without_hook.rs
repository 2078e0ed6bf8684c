//! A program built without the `worker-hook` feature: workers reach `main`, and `init` at its top
//! takes them from there.
//!
//! Run it with `cargo run --no-default-features --example without_hook`. With `-- forgotten` at the
//! end it leaves `init` out, and is told so.

use manyhands::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() == Some("forgotten") {
        // Without `init` nothing is started: a worker would run this `main`, and start workers in
        // turn.
        println!("without init: {:?}", Pool::processes(2));
        return Ok(());
    }
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
