//! The calls with many items, and what may come of them.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use manyhands::Call;
use manyhands::prelude::*;
use manyhands::{Executor, Progress, RunAgain, RunReduce, RunWith};

use crate::common::errors::is_closed;
use crate::model::Given;
use crate::program::{CallSpec, Chunks, Form, Kind, Options};
use crate::task::{Answer, Event, Task, append, context, entries, run, run_id, run_only, run_with};
use crate::world::{World, each, fail, hold, retries};

const INPUT_PANIC: &str = "the input of a call";

/// What a call was given, and what is known of it.
struct Items<'w> {
    world: &'w World,
    spec: &'w CallSpec,
    given: Vec<Given>,
    /// Those of the step, without a policy if the call takes none.
    options: Options,
    /// The pool had ended before the call.
    is_late: bool,
    told: Mutex<Vec<Progress>>,
}

/// Makes the call of a step, whose items have ids from `first` on.
pub(crate) fn call(world: &World, spec: &CallSpec, first: u32) {
    let number = world.number(spec.pool);
    let Some(pool) = world.pool(number) else {
        return;
    };
    let engine = world.program.pools[number].engine;
    let returns = !matches!(spec.form, Form::ForEach | Form::MapReduce);
    let options = Options {
        policy: spec.options.policy && spec.form.takes_policy(),
        ..spec.options
    };
    let kinds = spec.tasks.iter().copied();
    let more = std::iter::repeat_n(Kind::Live, spec.more);
    let given: Vec<Given> = (first..)
        .zip(kinds.chain(more))
        .enumerate()
        .map(|(index, (id, kind))| Given {
            index: Some(index),
            retries: retries(engine, options, spec.form.is_lazy()),
            kind: kind.on(engine, options, returns),
            ..world.given(id, number, kind, options)
        })
        .collect();
    let items = Items {
        world,
        spec,
        is_late: given.first().is_some_and(|given| given.is_late),
        given,
        options,
        told: Mutex::default(),
    };
    each!(&*pool, pool => items.make(pool, run, run_only, run_with, run_id, append));
}

/// How a call ended that gives all at once.
enum Whole {
    Values(Vec<Answer>),
    /// Without answers: `for_each` gives none, and `map_reduce` the ids in order.
    Ids(Vec<u32>),
    Error(TaskError),
    InputPanicked,
}

/// Makes a call in its form. The calls with and without a policy are two types, which have these
/// forms in common; what follows them is for the others.
macro_rules! make {
    ($items:expr, $call:expr, $run:expr, $only:expr, $input:expr, $($others:tt)*) => {
        match $items.spec.form {
            Form::Map => $items.whole(|| $call.map($run, $input).map(Whole::Values)),
            Form::ForEach => $items.whole(|| {
                let ids = $items.ids().collect();
                $call.for_each($only, $input).map(|()| Whole::Ids(ids))
            }),
            Form::TryMap => $items.outcomes(|| $call.map_outcomes($run, $input)),
            Form::Imap => {
                let mut outcomes = $call.imap($run, $input).enumerate();
                $items.lazy(|| outcomes.next());
            }
            Form::ImapUnordered => {
                let mut outcomes = $call.imap_unordered($run, $input);
                $items.lazy(|| outcomes.next());
            }
            $($others)*
        }
    };
}

impl Items<'_> {
    fn input(&self) -> impl Iterator<Item = Task> + 'static {
        let tasks: Vec<Task> = self
            .given
            .iter()
            .map(|given| Task::new(given.id, given.pool, given.kind))
            .collect();
        let panics = self.spec.input_panics.filter(|&at| at < tasks.len());
        tasks.into_iter().enumerate().map(move |(index, task)| {
            if panics == Some(index) {
                std::panic::resume_unwind(Box::new(INPUT_PANIC));
            }
            task
        })
    }

    /// The index of the item at which the input panics.
    fn end_of_input(&self) -> Option<usize> {
        self.spec.input_panics.filter(|&at| at < self.given.len())
    }

    fn ids(&self) -> Range<u32> {
        let first = self.given.first().map_or(0, |given| given.id);
        first..first + self.given.len() as u32
    }

    /// The call without its retries.
    fn options<'p: 'c, 'c, E: Executor>(&'c self, pool: &'p Pool<E>) -> Call<'p, 'c, E> {
        let mut call = self.options.bound(pool.call());
        call = match self.spec.chunks {
            Chunks::Unsaid => call,
            Chunks::Equal => call.schedule(Schedule::Equal),
            Chunks::Size(size) => call.chunk_size(size),
        };
        if let Some(window) = self.spec.window {
            call = call.window(window);
        }
        if self.spec.tells {
            call = call.on_progress(|progress| self.hear(progress));
        }
        call
    }

    fn make<E, F, O, W, M, G>(&self, pool: &Pool<E>, run: F, only: O, with: W, id: M, append: G)
    where
        F: Fn(Task) -> Answer + Send + 'static,
        O: Fn(Task),
        W: Fn(&Vec<u64>, Task) -> Answer,
        M: Fn(Task) -> Vec<u32>,
        G: Fn(Vec<u32>, Vec<u32>) -> Vec<u32>,
        E: RunAgain<F, Task, Answer>
            + RunAgain<O, Task, ()>
            + RunWith<Vec<u64>, W, Task, Answer>
            + RunReduce<M, G, Task, Vec<u32>>,
    {
        let (call, input) = (self.options(pool), self.input());
        if let Some(policy) = self.options.retry() {
            let call = call.retry(policy);
            make!(self, call, run, only, input, Form::MapWith | Form::MapReduce => {
                unreachable!("no such call takes a policy")
            });
            return;
        }
        let call = call.retries(self.options.retries);
        make!(
            self, call, run, only, input,
            Form::MapWith => {
                self.whole(|| call.map_with(&context(), with, input).map(Whole::Values));
            }
            Form::MapReduce => self.whole(|| {
                let ids = call.map_reduce(id, append, input)?;
                Ok(Whole::Ids(ids.unwrap_or_default()))
            }),
        );
    }

    /// Takes the outcomes of `map_outcomes`.
    fn outcomes(&self, call: impl FnOnce() -> Vec<Result<Answer, TaskError>>) {
        let outcomes = catch(call);
        let input_panics = self.end_of_input().is_some();
        hold(outcomes.is_none() == input_panics, INPUT_RULE, || {
            self.describe()
        });
        if let Some(outcomes) = outcomes {
            self.each_once(outcomes.into_iter().enumerate().collect());
            self.check_last_told();
        }
    }

    fn whole(&self, call: impl FnOnce() -> Result<Whole, TaskError>) {
        let ended = match catch(call) {
            None => Whole::InputPanicked,
            Some(ended) => ended.unwrap_or_else(Whole::Error),
        };
        let before = self.end_of_input().unwrap_or(self.given.len());
        let read = &self.given[..before];
        let is_reduced = self.spec.form == Form::MapReduce;
        let own = self.own();
        match ended {
            Whole::InputPanicked => {
                let is_right = before < self.given.len();
                hold(is_right, INPUT_RULE, || self.describe());
            }
            Whole::Values(values) => {
                hold(
                    values.len() == self.given.len(),
                    "each item has a result",
                    || self.describe(),
                );
                hold(before == self.given.len(), INPUT_RULE, || self.describe());
                for (given, value) in self.given.iter().zip(values) {
                    self.world.settle(given.clone(), &Ok(value));
                }
                self.check_last_told();
            }
            Whole::Ids(ids) => {
                let is_whole = ids.iter().copied().eq(self.ids()) && before == self.given.len();
                hold(is_whole, "a reduction keeps the order of its items", || {
                    self.describe()
                });
                let may = self.given.iter().all(Given::may_succeed) && !self.is_refused();
                hold(may, "a call with an item that fails has no result", || {
                    self.describe()
                });
                self.check_last_told();
            }
            Whole::Error(TaskError::InvalidCall { .. }) => {
                let is_right = is_reduced && self.spec.options.limit.is_some();
                hold(is_right, "a call is refused for its options alone", || {
                    self.describe()
                });
            }
            Whole::Error(TaskError::Cancelled { .. }) => {
                hold(own.are_cancelling(), "only its pool cancels a call", || {
                    self.describe()
                });
            }
            Whole::Error(error) if is_closed(&error) => {
                hold(own.are_ending(), "an open pool takes calls", || {
                    self.describe()
                });
            }
            Whole::Error(error) if is_reduced => {
                let deeds = &self.world.deeds;
                let is_right = read.iter().any(|given| given.explains_chunk(&error, deeds));
                hold(
                    is_right,
                    "the error of a reduction is that of an item",
                    || format!("{error:?}, {}", self.describe()),
                );
            }
            Whole::Error(error) => self.check_first(read, error),
        }
    }

    /// `error` is that of the first item that failed.
    fn check_first(&self, read: &[Given], error: TaskError) {
        let how = || format!("{error:?}, {}", self.describe());
        let Some(given) = error.index().and_then(|index| read.get(index)) else {
            fail(("an error names an item that was read", how()));
        };
        let index = error.index().unwrap_or(0);
        let are_through = read[..index].iter().all(Given::may_succeed);
        hold(are_through, "a call fails with its first failure", how);
        self.world.settle(given.clone(), &Err(error));
    }

    /// Takes the outcomes of a lazy call.
    fn lazy(&self, mut next: impl FnMut() -> Option<(usize, Result<Answer, TaskError>)>) {
        let most = self.spec.take.unwrap_or(usize::MAX);
        let (mut outcomes, mut panics) = (Vec::new(), 0);
        while outcomes.len() < most {
            match catch(&mut next) {
                None => panics += 1,
                Some(Some(outcome)) => outcomes.push(outcome),
                Some(None) => break,
            }
        }
        let is_whole = outcomes.len() < most;
        let end = self.end_of_input();
        let is_right = panics <= 1 && (panics == 0 || end.is_some());
        hold(
            is_right && !(is_whole && end.is_some() && panics == 0),
            INPUT_RULE,
            || self.describe(),
        );
        if self.spec.form == Form::Imap || is_whole {
            // What was read before the input panicked comes after that.
            let count = end.unwrap_or(self.given.len()).min(most);
            hold(
                outcomes.len() == count,
                "a lazy call gives what was read",
                || format!("{} of {count}, {}", outcomes.len(), self.describe()),
            );
        }
        if is_whole {
            self.each_once(outcomes);
            if end.is_none() {
                self.check_last_told();
            }
            return;
        }
        for (index, outcome) in outcomes {
            self.world.settle(self.given[index].clone(), &outcome);
        }
    }

    fn each_once(&self, outcomes: Vec<(usize, Result<Answer, TaskError>)>) {
        let mut is_there = vec![false; self.given.len()];
        for (index, outcome) in outcomes {
            let is_new = is_there.get(index) == Some(&false);
            hold(is_new, "each item has one outcome", || {
                format!("{index}, {}", self.describe())
            });
            is_there[index] = true;
            self.world.settle(self.given[index].clone(), &outcome);
        }
        let count = self.end_of_input().unwrap_or(self.given.len());
        let are_there = is_there[..count].iter().all(|&is_there| is_there);
        hold(are_there, "each item has one outcome", || self.describe());
    }

    fn own(&self) -> &crate::model::Deeds {
        &self.world.deeds[self.world.number(self.spec.pool)]
    }

    /// Whether the pool had ended before the call. A call without items is not refused on every
    /// engine.
    fn is_refused(&self) -> bool {
        self.is_late && !self.given.is_empty()
    }

    fn hear(&self, progress: &Progress) {
        let mut told = self.told.lock().unwrap();
        if let Some(last) = told.last() {
            let is_more = progress.done >= last.done && progress.failed >= last.failed;
            hold(is_more, "progress does not go back", || {
                format!("{last:?}, {progress:?}")
            });
        }
        let (done, total) = (progress.done, self.given.len());
        let is_right = done <= total
            && progress.failed <= done
            && progress.total.is_none_or(|said| said == total);
        hold(is_right, "no more items have ended than there are", || {
            format!("{progress:?}, {}", self.describe())
        });
        told.push(*progress);
        drop(told);
        self.check_started(done);
    }

    /// No more items have ended than have started, where each item that ends has started.
    fn check_started(&self, done: usize) {
        let own = self.own();
        let is_exact = !self.world.program.from_outside
            && !own.are_ending()
            // A limit that is nearly over when the function is entered ends the item before it
            // notes its start.
            && !self.spec.options.is_tight()
            && self.given.iter().all(|given| given.kind.starts())
            // The rest of a chunk of `map_reduce` ends with the item that fails.
            && (self.spec.form != Form::MapReduce || self.given.iter().all(Given::may_succeed));
        if is_exact {
            let ids = self.ids();
            let starts = entries()
                .into_iter()
                .filter(|entry| entry.event == Event::Start && ids.contains(&entry.task))
                .count();
            hold(done <= starts, "an item that has ended has started", || {
                format!("{done} ended, {starts} started, {}", self.describe())
            });
        }
    }

    /// The call has given all outcomes: the last progress said so.
    fn check_last_told(&self) {
        if !self.spec.tells || self.given.is_empty() || self.own().are_ending() {
            return;
        }
        let told = self.told.lock().unwrap();
        let done = told.last().map(|progress| progress.done);
        hold(
            done == Some(self.given.len()),
            "the last progress tells of all items",
            || format!("{done:?}, {}", self.describe()),
        );
    }

    fn describe(&self) -> String {
        let own = self.own();
        let ends = (
            own.are_ending(),
            own.are_cancelling(),
            own.kills.load(Ordering::SeqCst),
        );
        format!("{:?}, ids {:?}, ends {ends:?}", self.spec, self.ids())
    }
}

const INPUT_RULE: &str = "a panic of the input reaches the caller, once";

/// `None` if the input of the call has panicked.
fn catch<T>(call: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(value) => Some(value),
        Err(payload) if payload.downcast_ref::<&str>() == Some(&INPUT_PANIC) => None,
        Err(payload) => {
            let message = payload.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| payload.downcast_ref::<&str>().copied());
            fail(("a call panics for its input alone", format!("{message:?}")))
        }
    }
}
