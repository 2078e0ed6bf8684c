//! Workers whose memory is corrupted. A task writes noise over what its worker shares with the
//! parent, as a faulty C library might. The parent makes the best of it: an error for that task,
//! and none for the others.

mod common;

use common::{Leftovers, children_of, eventually, is_running, kill};
use manyhands::error::TimeoutError;
use manyhands::prelude::*;
use serde::{Deserialize, Serialize};

/// Where the lane of this worker is in its own memory: header, requests, responses.
struct OwnLane {
    starts: Vec<usize>,
    len: usize,
}

/// Bytes in front of the two rings.
const HEADER: usize = 4_096;

impl OwnLane {
    /// Finds the lane among the mappings of this process. A worker has two, and the other one, the
    /// doorbell, is a page. A forked child has the lanes of its elder siblings too, and cannot tell
    /// them apart: it corrupts them all.
    fn find() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let lanes = maps
            .lines()
            .filter(|line| line.contains("memfd:manyhands"))
            .filter_map(|line| {
                let (start, end) = line.split_whitespace().next()?.split_once('-')?;
                let start = usize::from_str_radix(start, 16).ok()?;
                let len = usize::from_str_radix(end, 16).ok()? - start;
                (len > HEADER).then_some((start, len))
            });
        let (starts, lens): (Vec<usize>, Vec<usize>) = lanes.unzip();
        Self {
            starts,
            len: lens[0],
        }
    }

    /// Writes an odd byte over the answers. If a filled cell were made to look like a free one, no
    /// reader would ever see its answer. That would be as if the worker hung, and is not tested
    /// here.
    fn spoil(&self, at: usize, byte: u8) {
        let ring = (self.len - HEADER) / 2;
        self.write(HEADER + ring + at % ring, byte);
    }

    /// Writes a byte of the requests.
    fn spoil_request(&self, at: usize, byte: u8) {
        let ring = (self.len - HEADER) / 2;
        self.write(HEADER + at % ring, byte);
    }

    fn write(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        for start in &self.starts {
            let target = std::ptr::with_exposed_provenance_mut::<u8>(start + at);
            // SAFETY: none. The address is mapped, and that is all: this is the fault that the test
            // is about.
            unsafe { target.write_volatile(byte | 1) };
        }
    }
}

/// xorshift64 (Marsaglia, J. Stat. Softw. 8(14), 2003).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let given = std::env::var("MANYHANDS_SEED").ok();
    let seed = given
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| RandomState::new().hash_one(0))
        | 1;
    println!("MANYHANDS_SEED={seed}");
    seed
}

/// What a task writes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Damage {
    None,
    /// The whole ring of answers, at once.
    All,
    /// The states of all cells.
    States,
    /// The states of all cells of the requests.
    Requests,
    /// This many single bytes.
    Bytes(u32),
    /// Single bytes, by a thread that does not stop, while the worker goes on.
    Lasting,
}

/// A task: writes noise as it is told, and answers with a text that depends on `n`.
fn noisy((damage, seed, n): (Damage, u64, u64)) -> String {
    let mut random = seed | 1;
    let lane = OwnLane::find();
    match damage {
        Damage::None => {}
        Damage::All => {
            for at in 0..lane.len / 2 {
                lane.spoil(at, next(&mut random) as u8);
            }
        }
        Damage::States => {
            for cell in (0..lane.len / 2).step_by(4_096) {
                let noise = next(&mut random);
                for (at, byte) in noise.to_le_bytes().into_iter().enumerate() {
                    lane.spoil(cell + at, byte);
                }
            }
        }
        Damage::Requests => {
            for cell in (0..lane.len / 2).step_by(4_096) {
                for (at, byte) in next(&mut random).to_le_bytes().into_iter().enumerate() {
                    lane.spoil_request(cell + at, byte);
                }
            }
        }
        Damage::Bytes(count) => {
            for _ in 0..count {
                lane.spoil(next(&mut random) as usize, next(&mut random) as u8);
            }
        }
        Damage::Lasting => {
            let (started, is_started) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                loop {
                    // Mostly where states, lengths and heads are.
                    let cell = next(&mut random) as usize / 4_096 * 4_096;
                    lane.spoil(
                        cell + next(&mut random) as usize % 48,
                        next(&mut random) as u8,
                    );
                    let _ = started.send(());
                }
            });
            is_started.recv().unwrap();
        }
    }
    answer(n)
}

fn answer(n: u64) -> String {
    // Up to three cells.
    format!("{n:04}").repeat(n as usize % 60 * 50)
}

/// Checks what a task that writes noise may come to: an error of its own, or a result. The result
/// may be wrong, where the noise hit the result itself: the parent cannot know.
#[track_caller]
fn is_fair(outcome: &Result<String, TaskError>) {
    match outcome {
        Ok(_)
        | Err(
            TaskError::WorkerDied { .. } | TaskError::Decode { .. } | TaskError::Panicked { .. },
        ) => {}
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn noise_over_all_answers_fails_its_task_alone() {
    let _none = Leftovers::none();
    let mut random = seed();
    let pool = Pool::processes(2).unwrap();
    for n in 0..40 {
        let damage = [Damage::All, Damage::States][n as usize % 2];
        let bad = pool.submit(noisy, (damage, next(&mut random), n));
        let others: Vec<_> = (0..20)
            .map(|n| pool.submit(noisy, (Damage::None, 0, n)))
            .collect();
        let bad = bad.result();
        let Err(TaskError::WorkerDied { pid, cause, .. }) = bad else {
            panic!("{bad:?}")
        };
        assert!(
            matches!(cause, Death::Corrupted(_) | Death::Signal(6)),
            "{cause:?}"
        );
        assert!(!is_running(pid));
        // So do the tasks behind it in the same lane, for none of them had begun.
        for (n, other) in (0..).zip(others) {
            assert_eq!(other.result(), Ok(answer(n)));
        }
        assert_eq!(
            pool.map(answer, n..n + 20),
            Ok((n..n + 20).map(answer).collect())
        );
    }
}

#[test]
fn noise_over_the_requests_ends_the_worker_and_hangs_nothing() {
    let _none = Leftovers::none();
    let mut random = seed();
    let pool = Pool::processes(2).unwrap();
    for n in 0..40 {
        let bad = pool.submit(noisy, (Damage::Requests, next(&mut random), n));
        let others: Vec<_> = (0..n % 40)
            .map(|n| pool.submit(noisy, (Damage::None, 0, n)))
            .collect();
        is_fair(&bad.result());
        // The parent can no longer read which of the tasks behind it the worker had begun with:
        // they may be lost with it.
        for other in others {
            is_fair(&other.result());
        }
        assert_eq!(
            pool.map(answer, n..n + 20),
            Ok((n..n + 20).map(answer).collect())
        );
    }
}

#[test]
fn noise_at_random_moments_costs_errors_and_nothing_else() {
    let _none = Leftovers::none();
    let mut random = seed();
    let pool = Pool::processes(3).unwrap();
    let mut told = [0; 2];
    for _ in 0..30 {
        let tasks: Vec<_> = (0..60)
            .map(|n| {
                let damage = match next(&mut random) % 20 {
                    0 => Damage::Bytes(1),
                    1 => Damage::Bytes(100),
                    2 => Damage::Bytes(20_000),
                    3 => Damage::Lasting,
                    _ => Damage::None,
                };
                pool.submit(noisy, (damage, next(&mut random), n))
            })
            .collect();
        // A worker takes later tasks along if it is corrupted where the parent does not look, or if
        // it goes on writing noise.
        let deadline = std::time::Instant::now() + common::DEADLINE / 3;
        for mut task in tasks {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let outcome = match task.result_timeout(left) {
                Ok(outcome) => outcome,
                Err(TimeoutError { .. }) => panic!("a task hangs"),
            };
            told[usize::from(outcome.is_err())] += 1;
            is_fair(&outcome);
        }
        // With fresh workers, all is as before.
        let old = children_of(std::process::id());
        old.iter().copied().for_each(kill);
        eventually("all are replaced", || {
            let now = children_of(std::process::id());
            now.len() == 3 && now.is_disjoint(&old)
        });
        assert_eq!(pool.map(answer, 0..50), Ok((0..50).map(answer).collect()));
    }
    println!("{} results, {} errors", told[0], told[1]);
    assert!(told[1] > 0);
}

#[test]
fn noise_of_forked_children_costs_errors_and_nothing_else() {
    let _none = Leftovers::none();
    let mut random = seed();
    let pool = Forked::builder()
        .workers(2)
        .allow_threads(true)
        .build()
        .unwrap();
    for n in 0..20 {
        let damage = [Damage::All, Damage::States][n as usize % 2];
        let bad = pool.submit(noisy, (damage, next(&mut random), n)).result();
        assert!(matches!(bad, Err(TaskError::WorkerDied { .. })), "{bad:?}");
        let good = pool.submit(noisy, (Damage::None, 0, n));
        assert_eq!(good.result(), Ok(answer(n)));
        let noise = next(&mut random);
        let items = (0..20).map(|at| {
            let is_bad = at == noise % 20;
            (if is_bad { damage } else { Damage::None }, noise, at)
        });
        match pool.map(noisy, items) {
            Err(TaskError::WorkerDied { .. }) => {}
            // The noise hit nothing that mattered: the cell was open, and its head is written last.
            outcome => assert_eq!(outcome, Ok((0..20).map(answer).collect())),
        }
    }
}
