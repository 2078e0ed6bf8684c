//! What a map costs for each item, beside rayon's `par_iter` in the same round.
//!
//! `cargo bench --bench map`. There are two workers each. Contenders take turns of seven calls. A
//! figure is the median of the rounds. A ratio is the median of the ratios within each round.

mod common;

use common::{body, median, print_machine, seconds};
use manyhands::prelude::*;
use rayon::prelude::*;

const ROUNDS: usize = 11;

/// Calls in a row in each turn, so that each contender is measured warm.
const CALLS: usize = 7;

/// Nanoseconds for each item: the median of the calls of one turn.
fn time(items: usize, mut run: impl FnMut() -> Vec<u64>) -> f64 {
    let mut times: Vec<f64> = (0..CALLS)
        .map(|_| {
            let mut results = Vec::new();
            let time = seconds(|| results = run()) * 1e9 / items as f64;
            assert_eq!(results.len(), items);
            time
        })
        .collect();
    median(&mut times)
}

/// Measures all contenders, with a body of this many rounds. A macro, because a function for
/// processes captures nothing.
macro_rules! compare {
    ($title:expr, $items:expr, $rounds:literal, $pools:expr) => {{
        let (rayon, threads, processes, forked): &(
            rayon::ThreadPool,
            Pool<Threads>,
            Pool<Processes>,
            Pool<Forked>,
        ) = $pools;
        let input: Vec<u64> = (0..$items as u64).collect();
        let names = [
            "serial",
            "rayon par_iter",
            "Pool::threads",
            "Pool::processes",
            "Pool::forked",
        ];
        let mut times = vec![Vec::new(); names.len()];
        for _ in 0..=ROUNDS {
            let f = |x: u64| body(x, $rounds);
            times[0].push(time(input.len(), || input.iter().map(|&x| f(x)).collect()));
            times[1].push(time(input.len(), || {
                rayon.install(|| input.par_iter().map(|&x| f(x)).collect())
            }));
            times[2].push(time(input.len(), || {
                threads.map(f, input.iter().copied()).unwrap()
            }));
            times[3].push(time(input.len(), || {
                processes.map(f, input.iter().copied()).unwrap()
            }));
            times[4].push(time(input.len(), || {
                forked.map(f, input.iter().copied()).unwrap()
            }));
        }
        println!("{:34} {:>10}   / rayon's", $title, "ns an item");
        for (name, own) in names.iter().zip(&times) {
            // The first round warms up.
            let ratios = own[1..]
                .iter()
                .zip(&times[1][1..])
                .map(|(own, rayon)| own / rayon);
            let ratio = median(&mut ratios.collect::<Vec<_>>());
            println!(
                "  {name:32} {:10.2}   {ratio:.2}",
                median(&mut own[1..].to_vec())
            );
        }
        println!();
    }};
}

fn main() {
    print_machine();
    let pools = (
        rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .build()
            .unwrap(),
        Pool::threads(2).unwrap(),
        Pool::processes(2).unwrap(),
        Forked::builder()
            .workers(2)
            .allow_threads(true)
            .build()
            .unwrap(),
    );
    compare!("1,000,000 items of about 5 ns", 1_000_000, 10, &pools);
    compare!("1,000,000 items of about 100 ns", 1_000_000, 76, &pools);
    compare!("10,000 items of about 10 µs", 10_000, 7_400, &pools);
}
