use manyhands::prelude::*;

fn main() {
    let pool = Pool::processes(2).unwrap();
    let _ = pool.map(|word: &str| word.len(), "one two".split(' '));
}
