use manyhands::prelude::*;
use std::error::Error;

fn read(path: String) -> Result<usize, Box<dyn Error>> {
    Ok(std::fs::read_to_string(path)?.parse()?)
}

fn main() {
    let pool = Pool::processes(2).unwrap();
    let _ = pool.map(read, ["a".to_owned()]);
}
