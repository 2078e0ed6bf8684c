//! What the threads of a round do with the pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use manyhands::prelude::*;
use manyhands::{Call, CancellationToken, as_completed};

use super::Round;
use super::common::errors::is_cancelled_or_closed;
use super::common::random::Random;
use super::job::{Answer, Job, MOST_FALSE_STARTS, Rules, Way, run, run_or_refuse};

/// This many retries let every job that can live come to its end.
const MANY: u32 = 1_000_000;

pub(crate) struct Caller<'r> {
    round: &'r Round,
    name: String,
    random: Random,
}

impl<'r> Caller<'r> {
    pub(crate) fn new(round: &'r Round, number: usize, random: Random) -> Self {
        Self {
            round,
            name: format!("caller {number}"),
            random,
        }
    }

    pub(crate) fn run(mut self) {
        for _ in 0..4 + self.random.below(8) {
            if self.is_ending() {
                return;
            }
            match self.random.below(17) {
                0 | 1 => self.submit(),
                2 => self.map(),
                3 => self.map_outcomes(),
                4 | 5 => self.imap(),
                6 => self.map_reduce(),
                7 => self.told(),
                8 => self.leave(),
                9 => self.map_with(),
                10 | 11 => self.try_map(),
                12 => self.give_up(),
                13..16 => self.ended(),
                _ => self.idle(),
            }
            self.round.calls.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_ending(&self) -> bool {
        self.round.is_ending.load(Ordering::SeqCst)
    }

    fn during<T>(&self, what: &str, f: impl FnOnce() -> T) -> T {
        self.round.watch.during(&self.name, what, f)
    }

    fn jobs(&mut self, one_in: usize) -> Vec<Job> {
        let count = self.random.below(60);
        (0..count)
            .map(|_| Job::any(&mut self.random, one_in))
            .collect()
    }

    fn rules(&mut self) -> Rules {
        let limit = Duration::from_millis(20 + self.random.below(40) as u64);
        Rules {
            retries: self.random.below(3) as u32,
            limit: self.random.one_in(3).then_some(limit),
            ..Rules::default()
        }
    }

    fn call(&self, rules: Rules) -> Call<'_, '_, Processes> {
        let call = self.round.pool.call().retries(rules.retries);
        match rules.limit {
            Some(limit) => call.timeout(limit),
            None => call,
        }
    }

    /// Single tasks, of which some are cancelled and some are killed.
    fn submit(&mut self) {
        let rules = self.rules();
        let mut jobs = self.jobs(8);
        if rules.limit.is_some() && self.random.one_in(2) {
            jobs.push(Job::new(&mut self.random, Way::Endless));
        }
        let tasks: Vec<_> = jobs
            .into_iter()
            .map(|job| (self.call(rules).submit(run, job.clone()), job))
            .collect();
        let endless = Job::new(&mut self.random, Way::Endless);
        let stopped = self.round.pool.submit(run, endless.clone());
        let stops: Vec<usize> = tasks.iter().map(|_| self.random.below(8)).collect();
        for ((task, job), stop) in tasks.into_iter().zip(stops) {
            let is_cancelled = stop == 0 && task.cancel();
            let is_killed = stop == 1 && task.kill();
            let outcome = self.outcome(task);
            if is_cancelled {
                assert!(
                    matches!(outcome, Err(TaskError::Cancelled { .. })),
                    "{outcome:?}"
                );
            }
            let rules = Rules {
                may_be_cancelled: is_cancelled || is_killed,
                ..rules
            };
            job.check(outcome, None, rules, self.is_ending());
        }
        self.during("kill of an endless task", || {
            while !stopped.kill() && !stopped.is_done() {
                std::thread::yield_now();
            }
        });
        let outcome = self.during("result of a killed task", || stopped.result());
        let rules = Rules {
            may_be_cancelled: true,
            ..Rules::default()
        };
        endless.check(outcome, None, rules, self.is_ending());
    }

    /// The outcome of a task, by one of the ways to wait for it.
    fn outcome(&mut self, mut task: TaskFuture<Answer>) -> Result<Answer, TaskError> {
        match self.random.below(4) {
            0 => self.during("result after short waits", || {
                loop {
                    if let Ok(outcome) = task.result_timeout(Duration::from_millis(1)) {
                        return outcome;
                    }
                }
            }),
            1 => self.during("result after looking", || {
                while !task.is_done() {
                    std::thread::yield_now();
                }
                task.result()
            }),
            _ => self.during("result", || task.result()),
        }
    }

    fn map(&mut self) {
        // With retries without end and nothing that is sure to kill, it must come to its end.
        let is_sure = self.random.one_in(2);
        let (jobs, rules) = if is_sure {
            let count = self.random.below(60);
            let new = |_| Job::new(&mut self.random, Way::Live);
            let rules = Rules {
                retries: MANY,
                ..Rules::default()
            };
            ((0..count).map(new).collect(), rules)
        } else {
            (self.jobs(50), self.rules())
        };
        let size = 1 + self.random.below(20);
        let call = self.call(rules).chunk_size(size);
        match self.during("map", || call.map(run, jobs.clone())) {
            Ok(answers) => {
                assert_eq!(answers.len(), jobs.len());
                for (index, (job, answer)) in jobs.iter().zip(answers).enumerate() {
                    job.check(Ok(answer), Some(index), rules, self.is_ending());
                }
            }
            Err(error) => {
                let is_ending = self.is_ending();
                let index = error.index().or(is_ending.then_some(0)).expect("an index");
                jobs[index].check(Err(error), Some(index), rules, is_ending);
            }
        }
    }

    /// A call that ends at the first `Err`, in input order.
    fn try_map(&mut self) {
        let (jobs, rules) = (self.jobs(50), self.rules());
        let first_refused = self.random.below(80);
        let items: Vec<(Job, bool)> = jobs
            .iter()
            .enumerate()
            .map(|(index, job)| {
                let is_refused =
                    index == first_refused || (index > first_refused && self.random.one_in(2));
                (job.clone(), is_refused)
            })
            .collect();
        let size = 1 + self.random.below(20);
        let call = self.call(rules).chunk_size(size);
        match self.during("try_map", || call.try_map(run_or_refuse, items)) {
            Ok(answers) => {
                assert!(first_refused >= jobs.len(), "an `Err` was lost");
                assert_eq!(answers.len(), jobs.len());
                for (index, (job, answer)) in jobs.iter().zip(answers).enumerate() {
                    job.check(Ok(answer), Some(index), rules, self.is_ending());
                }
            }
            Err(TryError::Item { index, error, .. }) => {
                assert_eq!(index, first_refused, "not the first `Err`");
                jobs[index].check(Ok(error), Some(index), rules, self.is_ending());
            }
            Err(TryError::Task(error)) => {
                let is_ending = self.is_ending();
                let index = error.index().or(is_ending.then_some(0)).expect("an index");
                assert!(index <= first_refused, "an error behind an `Err` was told");
                jobs[index].check(Err(error), Some(index), rules, is_ending);
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Drops what runs: a task, and a lazy call of which some results are waited for.
    fn give_up(&mut self) {
        let endless = Job::new(&mut self.random, Way::Endless);
        let stopped = self.round.pool.submit(run, endless).kill_on_drop(true);
        let (mut jobs, rules) = (self.jobs(10), self.rules());
        jobs.push(Job::new(&mut self.random, Way::Endless));
        let waits: Vec<u64> = (0..self.random.below(jobs.len()))
            .map(|_| self.random.below(3) as u64)
            .collect();
        let size = 1 + self.random.below(10);
        let call = self.call(rules).chunk_size(size).kill_on_drop(true);
        let mut results = call.imap_unordered(run, jobs.clone());
        for wait in waits.into_iter().map(Duration::from_millis) {
            let next = self.during("next_timeout", || results.next_timeout(wait));
            let Ok(Some((index, outcome))) = next else {
                break;
            };
            jobs[index].check(outcome, Some(index), rules, self.is_ending());
        }
        self.during("drop of what runs", || drop((results, stopped)));
    }

    /// Items of a call that a token or a deadline may end, at once or after a grace period. They
    /// are tried again after whatever befalls them, some after a pause.
    fn ended(&mut self) {
        let soon = |random: &mut Random, most| Duration::from_millis(random.below(most) as u64);
        let token = CancellationToken::new();
        let deadline = self.random.one_in(2).then(|| soon(&mut self.random, 60));
        let cancels = deadline.is_none() || self.random.one_in(2);
        let grace = self.random.one_in(2).then(|| soon(&mut self.random, 30));
        let rules = Rules {
            may_be_cancelled: cancels,
            has_policy: true,
            deadline,
            grace,
            ..self.rules()
        };
        let mut jobs = self.jobs(6);
        for way in [Way::UntilTold, Way::Endless] {
            if self.random.one_in(2) {
                let at = self.random.below(jobs.len() + 1);
                jobs.insert(at, Job::new(&mut self.random, way));
            }
        }
        let causes = RetryOn::DEATH | RetryOn::PANIC | RetryOn::TIMEOUT;
        let policy = Retry::up_to(rules.retries).on(causes);
        let policy = policy.backoff(soon(&mut self.random, 3));
        let (kind, turns) = (self.random.below(3), self.random.below(20_000));
        let size = 1 + self.random.below(10);
        let call = || {
            let mut call = self.call(rules).retry(policy).cancel_on(&token);
            if let Some(deadline) = deadline {
                call = call.deadline(Instant::now() + deadline);
            }
            match grace {
                Some(grace) => call.grace_period(grace),
                None => call,
            }
        };
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            if cancels {
                scope.spawn(|| {
                    for _ in 0..turns {
                        std::thread::yield_now();
                    }
                    token.cancel();
                });
            }
            match kind {
                0 => self.during("submit in a call that ends", || {
                    let tasks: Vec<_> = jobs
                        .iter()
                        .map(|job| call().submit(run, job.clone()))
                        .collect();
                    tasks.into_iter().map(TaskFuture::result).collect()
                }),
                1 => self.during("map_outcomes that ends", || {
                    call().chunk_size(size).map_outcomes(run, jobs.clone())
                }),
                _ => self.during("imap that ends", || {
                    call().chunk_size(size).imap(run, jobs.clone()).collect()
                }),
            }
        });
        // A lazy call that ends gives one error for the rest.
        let is_cut = kind == 2 && outcomes.len() < jobs.len();
        assert!(is_cut || outcomes.len() == jobs.len(), "an outcome is lost");
        let is_end = |error: &TaskError| {
            is_cancelled_or_closed(error) || matches!(error, TaskError::DeadlineExceeded { .. })
        };
        let last = outcomes.last().map(|last| last.as_ref().is_err_and(is_end));
        assert!(!is_cut || last == Some(true), "the rest has no error");
        for (index, (job, outcome)) in jobs.iter().zip(outcomes).enumerate() {
            let index = (kind > 0).then_some(index);
            job.check(outcome, index, rules, self.is_ending());
        }
    }

    fn map_outcomes(&mut self) {
        let (jobs, rules) = (self.jobs(10), self.rules());
        let size = 1 + self.random.below(20);
        let call = self.call(rules).chunk_size(size);
        let outcomes = self.during("map_outcomes", || call.map_outcomes(run, jobs.clone()));
        self.check_all(&jobs, outcomes.into_iter().enumerate(), rules);
    }

    fn imap(&mut self) {
        let (jobs, rules) = (self.jobs(10), self.rules());
        let size = 1 + self.random.below(10);
        let window = size + self.random.below(40);
        let is_ordered = self.random.one_in(2);
        // Some are given up half-way.
        let most = if self.random.one_in(4) {
            self.random.below(jobs.len())
        } else {
            usize::MAX
        };
        let call = self.call(rules).chunk_size(size).window(window);
        let outcomes: Vec<_> = self.during("imap", || {
            let items = jobs.clone();
            if is_ordered {
                call.imap(run, items).enumerate().take(most).collect()
            } else {
                call.imap_unordered(run, items).take(most).collect()
            }
        });
        if most == usize::MAX {
            self.check_all(&jobs, outcomes, rules);
        }
    }

    /// Each job has one outcome, and that may be its.
    fn check_all(
        &self,
        jobs: &[Job],
        outcomes: impl IntoIterator<Item = (usize, Result<Answer, TaskError>)>,
        rules: Rules,
    ) {
        let mut has_one = vec![false; jobs.len()];
        for (index, outcome) in outcomes {
            assert!(!has_one[index], "item {index} ended twice");
            has_one[index] = true;
            jobs[index].check(outcome, Some(index), rules, self.is_ending());
        }
        assert!(has_one.iter().all(|&has_one| has_one), "{has_one:?}");
    }

    fn map_reduce(&mut self) {
        let numbers: Vec<u64> = (0..self.random.below(3_000) as u64).collect();
        let call = self.call(Rules {
            retries: MANY,
            ..Rules::default()
        });
        let expected = numbers.iter().copied().reduce(|a, b| a + b);
        let sum = self.during("map_reduce", || {
            call.map_reduce(|n| n, |a, b| a + b, numbers)
        });
        match sum {
            Ok(sum) => assert_eq!(sum, expected),
            Err(error) if is_cancelled_or_closed(&error) => {
                assert!(self.is_ending(), "nobody has ended the pool");
            }
            Err(TaskError::WorkerDied {
                attempts: MOST_FALSE_STARTS,
                ..
            }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    /// A context of any size, which must be sent to every worker that comes.
    fn map_with(&mut self) {
        let len = match self.random.below(4) {
            0 => self.random.below(400_000),
            _ => self.random.below(2_000),
        };
        let context: Vec<u64> = (0..len as u64).map(|n| n ^ 0x5a5a).collect();
        let numbers: Vec<usize> = (0..self.random.below(500)).collect();
        let rules = Rules {
            retries: MANY,
            ..Rules::default()
        };
        let call = self.call(rules);
        let look = |context: &Vec<u64>, n: usize| context.get(n).copied();
        let outcome = self.during("map_with", || {
            call.map_with(&context, look, numbers.iter().copied())
        });
        let is_ending = self.is_ending();
        match outcome {
            Ok(found) => {
                assert_eq!(found.len(), numbers.len());
                for (n, found) in numbers.into_iter().zip(found) {
                    assert_eq!(found, context.get(n).copied());
                }
            }
            Err(error) if is_cancelled_or_closed(&error) => assert!(is_ending),
            Err(TaskError::WorkerDied {
                attempts: MOST_FALSE_STARTS,
                ..
            }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Submits tasks whose ends are told to callbacks, each once, and takes them as they end.
    fn told(&mut self) {
        let rules = self.rules();
        let jobs = self.jobs(10);
        let told = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = jobs
            .iter()
            .map(|job| {
                let task = self.call(rules).submit(run, job.clone());
                let told = Arc::clone(&told);
                task.on_done(move |_| {
                    told.fetch_add(1, Ordering::Relaxed);
                });
                task
            })
            .collect();
        let mut ended = as_completed(tasks);
        let mut count = 0;
        while let Some(task) = self.during("as_completed", || ended.next()) {
            let outcome = self.during("result that was told", || task.result());
            if let Ok(answer) = &outcome {
                assert!(jobs.iter().any(|job| job.is_answered_by(answer)));
            }
            count += 1;
        }
        assert_eq!(count, jobs.len());
        self.during("callbacks", || {
            while told.load(Ordering::Relaxed) < jobs.len() {
                std::thread::yield_now();
            }
        });
        assert_eq!(told.load(Ordering::Relaxed), jobs.len());
    }

    /// Submits tasks for which no caller waits before the pool is dropped.
    fn leave(&mut self) {
        let jobs = self.jobs(10);
        let tasks = jobs
            .into_iter()
            .map(|job| (job.clone(), self.round.pool.submit(run, job)));
        self.round.rest.lock().unwrap().extend(tasks);
    }

    /// Does nothing until a worker has been killed, which may have been an idle one. Gives up after
    /// some turns.
    fn idle(&mut self) {
        let before = super::KILLS.load(Ordering::Relaxed);
        let turns = self.random.below(5_000);
        for _ in 0..turns {
            if super::KILLS.load(Ordering::Relaxed) > before {
                return;
            }
            std::thread::yield_now();
        }
    }
}
