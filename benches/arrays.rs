//! What shared arrays cost: to pass a handle, to write a result in place beside one that is sent,
//! and to lend chunks.
//!
//! `cargo bench --bench arrays`. Contenders take turns within each round. A figure is the median of
//! the rounds. A ratio is the median of the ratios within each round.

mod common;

use common::{median, print_machine, seconds};
use manyhands::prelude::*;
use manyhands::{SharedArray, closure};
use rayon::prelude::*;

const ROUNDS: usize = 7;

/// Times of all contenders, turn by turn: medians, and those of the ratios to the last one.
fn compare(contenders: &mut [(&str, &mut dyn FnMut())], calls: usize, unit: (&str, f64)) {
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..=ROUNDS {
        for ((_, run), times) in contenders.iter_mut().zip(&mut times) {
            let time = seconds(|| (0..calls).for_each(|_| run())) / calls as f64;
            // The first round warms up.
            if round > 0 {
                times.push(time);
            }
        }
    }
    let last = times[times.len() - 1].clone();
    for ((name, _), times) in contenders.iter().zip(&mut times) {
        let mut ratios: Vec<f64> = times
            .iter()
            .zip(&last)
            .map(|(own, last)| own / last)
            .collect();
        let time = median(times) * unit.1;
        println!(
            "  {name:44} {time:10.2} {}   {:.2}",
            unit.0,
            median(&mut ratios)
        );
    }
    println!();
}

fn handles(pool: &Pool<Processes>) {
    let small = SharedArray::<u8>::zeros(1 << 10).unwrap();
    let large = SharedArray::<u8>::zeros(1 << 30).unwrap();
    let task = |array: SharedArray<u8>| array.get(array.len() - 1).unwrap();
    println!("a task that is given an array and reads its last element   (/ 1 KiB)");
    compare(
        &mut [
            ("1 GiB", &mut || {
                assert_eq!(pool.submit(task, large.clone()).result(), Ok(0));
            }),
            ("1 KiB", &mut || {
                assert_eq!(pool.submit(task, small.clone()).result(), Ok(0));
            }),
        ],
        2_000,
        ("µs", 1e6),
    );
}

fn results(pool: &Pool<Processes>, megabytes: usize) {
    let len = megabytes * 1_000_000 / 8;
    let mut array = SharedArray::<f64>::zeros(len).unwrap();
    println!("{megabytes} MB of f64 as the result of two tasks   (/ in place)");
    compare(
        &mut [
            ("returned by value", &mut || {
                let make = |(start, len): (usize, usize)| -> Vec<f64> {
                    (start..start + len).map(|i| i as f64).collect()
                };
                let halves = pool
                    .map(make, [(0, len / 2), (len / 2, len - len / 2)])
                    .unwrap();
                assert_eq!(halves[1].last(), Some(&(len as f64 - 1.0)));
            }),
            ("in place", &mut || {
                let fill = closure!([len] |index: usize, chunk: &mut [f64]| {
                    let start = index * (len / 2);
                    for (i, x) in (start..).zip(chunk) {
                        *x = i as f64;
                    }
                });
                pool.for_each_chunk(&mut array, len / 2, fill).unwrap();
                assert_eq!(array.get(len - 1), Ok(len as f64 - 1.0));
            }),
        ],
        5,
        ("ms", 1e3),
    );
}

fn chunks(threads: &Pool<Threads>, processes: &Pool<Processes>, rayon: &rayon::ThreadPool) {
    const CHUNKS: usize = 100_000;
    const CHUNK: usize = 64;
    let f = |index: usize, chunk: &mut [u8]| chunk.fill(index as u8);
    let mut array = SharedArray::<u8>::zeros(CHUNKS * CHUNK).unwrap();
    let (mut others, mut serials) = (array.clone(), array.clone());
    let mut own = vec![0_u8; CHUNKS * CHUNK];
    println!("{CHUNKS} chunks of {CHUNK} bytes, filled   (/ rayon)");
    compare(
        &mut [
            ("Pool::serial", &mut || {
                Pool::serial()
                    .for_each_chunk(&mut serials, CHUNK, f)
                    .unwrap();
            }),
            ("Pool::threads", &mut || {
                threads.for_each_chunk(&mut array, CHUNK, f).unwrap();
            }),
            ("Pool::processes", &mut || {
                processes.for_each_chunk(&mut others, CHUNK, f).unwrap();
            }),
            ("rayon par_chunks_mut", &mut || {
                rayon.install(|| {
                    own.par_chunks_mut(CHUNK)
                        .enumerate()
                        .for_each(|(index, chunk)| f(index, chunk));
                });
            }),
        ],
        1,
        ("ns a chunk", 1e9 / CHUNKS as f64),
    );
}

fn main() {
    print_machine();
    let threads = Pool::threads(2).unwrap();
    let processes = Pool::processes(2).unwrap();
    let rayon = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .unwrap();
    handles(&processes);
    results(&processes, 10);
    results(&processes, 100);
    chunks(&threads, &processes, &rayon);
}
