//! What the ledger must say when a program has ended.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use crate::program::{End, Engine, Form, Kind, Options, Program, Step};
use crate::task::{Entry, Event, entries};
use crate::world::{World, hold};

/// Checks the ledger of a program all of whose pools have been dropped.
pub(crate) fn audit(world: &World) {
    let entries = entries();
    for number in 0..world.program.pools.len() {
        let own: Vec<Entry> = entries
            .iter()
            .filter(|entry| entry.pool == number)
            .copied()
            .collect();
        nothing_starts_after_the_end(number, &own);
        let is_exact = !may_stop_workers(&world.program, number);
        if is_exact {
            workers_are_not_overrun(world, number, &own);
        }
        workers_keep_their_number_of_tasks(world, number, &own);
        tasks_run_as_often_as_they_should(world, number, &own, is_exact);
    }
    callbacks_have_run(world);
}

fn nothing_starts_after_the_end(number: usize, entries: &[Entry]) {
    let mut has_ended = false;
    for entry in entries {
        has_ended |= entry.event == Event::PoolEnded;
        hold(
            !has_ended || entry.event == Event::PoolEnded,
            "nothing runs in a pool that has ended",
            || format!("{entry:?}, pool {number}"),
        );
    }
}

/// Whether workers of this pool may end in the middle of an item that has not ended them itself.
fn may_stop_workers(program: &Program, number: usize) -> bool {
    let engine = program.pools[number].engine;
    if !engine.is_mortal() {
        return false;
    }
    let is_own = |pool: usize| pool % program.pools.len() == number;
    let limited = |options: &Options| options.is_tight();
    let ends = |end: End| matches!(end, End::Kill | End::CloseIn(_) | End::Drop);
    let mut steps = program.threads.iter().flatten();
    program.from_outside
        || ends(program.pools[number].end)
        || steps.any(|step| match step {
            Step::Submit { pool, options, .. } => is_own(*pool) && limited(options),
            Step::Call(spec) => is_own(spec.pool) && limited(&spec.options),
            Step::End { pool, how } => is_own(*pool) && ends(*how),
            // Of whatever pool the task is.
            Step::Kill { .. } | Step::Leave { kills: true, .. } => true,
            _ => false,
        })
}

fn kinds(program: &Program, number: usize) -> impl Iterator<Item = Kind> {
    let is_own = move |pool: usize| pool % program.pools.len() == number;
    program
        .threads
        .iter()
        .flatten()
        .flat_map(move |step| match step {
            Step::Submit { pool, kind, .. } if is_own(*pool) => vec![*kind],
            Step::Call(spec) if is_own(spec.pool) => spec.tasks.clone(),
            _ => Vec::new(),
        })
}

/// No more tasks run at once than there are workers.
fn workers_are_not_overrun(world: &World, number: usize, entries: &[Entry]) {
    let spec = &world.program.pools[number];
    // A worker that dies in a task does not note its return. A task that waits for others helps
    // with them.
    let is_simple = kinds(&world.program, number).all(|kind| {
        matches!(
            kind,
            Kind::Live | Kind::Slow(_) | Kind::Large | Kind::UntilTold
        )
    });
    if spec.engine == Engine::Serial || !is_simple {
        return;
    }
    let resized = world
        .program
        .threads
        .iter()
        .flatten()
        .map(|step| match step {
            Step::Resize { workers, .. } => *workers,
            _ => 0,
        });
    let most = resized.max().unwrap_or(0).max(spec.workers);
    // Each call on forked children has its own.
    let most = match spec.engine {
        Engine::Forked => most * (world.program.threads.len() + 1),
        _ => most,
    };
    let mut running = 0;
    for entry in entries {
        match entry.event {
            Event::Start => running += 1,
            Event::Return => running -= 1,
            Event::PoolEnded => {}
        }
        hold(
            running <= most,
            "no more tasks run at once than there are workers",
            || format!("{running} on {most}, pool {number}"),
        );
    }
}

fn workers_keep_their_number_of_tasks(world: &World, number: usize, entries: &[Entry]) {
    let spec = &world.program.pools[number];
    let reduces = world
        .program
        .threads
        .iter()
        .flatten()
        .any(|step| matches!(step, Step::Call(call) if call.form == Form::MapReduce));
    let Some(most) = spec
        .max_tasks
        .filter(|_| spec.engine == Engine::Processes && !reduces)
    else {
        return;
    };
    let mut each = BTreeMap::<u32, u32>::new();
    for entry in entries.iter().filter(|entry| entry.event == Event::Start) {
        *each.entry(entry.pid).or_default() += 1;
    }
    let is_kept = each.values().all(|&tasks| tasks <= most);
    hold(is_kept, "a worker ends after its number of tasks", || {
        format!("{each:?}, pool {number}")
    });
}

fn tasks_run_as_often_as_they_should(
    world: &World,
    number: usize,
    entries: &[Entry],
    is_exact: bool,
) {
    let mut counts = BTreeMap::<u32, (u32, u32)>::new();
    for entry in entries {
        let (starts, returns) = counts.entry(entry.task).or_default();
        match entry.event {
            Event::Start => *starts += 1,
            Event::Return => *returns += 1,
            Event::PoolEnded => {}
        }
    }
    if is_exact {
        for (given, _) in world
            .ended
            .lock()
            .iter()
            .filter(|(given, _)| given.pool == number)
        {
            let (starts, _) = counts.get(&given.id).copied().unwrap_or_default();
            hold(
                starts <= 1 + given.retries,
                "no task runs more often than it may",
                || format!("{starts} times, {given:?}"),
            );
        }
    }
    for (given, is_ok) in world
        .ended
        .lock()
        .iter()
        .filter(|(given, _)| given.pool == number)
    {
        let (starts, returns) = counts.get(&given.id).copied().unwrap_or_default();
        hold(
            !is_ok || returns > 0,
            "a task with an answer has run",
            || format!("{starts} starts, {returns} returns, {given:?}"),
        );
        let may_have_run = !is_exact || given.retries > 0;
        let is_untouched = given.is_cancelled || given.is_late || given.options.limit == Some(0);
        hold(
            !is_untouched || starts == 0 || may_have_run,
            "what was cancelled has not run",
            || format!("{starts} starts, {given:?}"),
        );
    }
}

fn callbacks_have_run(world: &World) {
    let told = world.told.lock();
    crate::common::eventually("each callback has run", || {
        told.iter()
            .all(|(_, told)| told.times.load(Ordering::SeqCst) > 0)
    });
    let are_right = told
        .iter()
        .all(|(_, told)| told.times.load(Ordering::SeqCst) == 1);
    hold(are_right, "each callback runs once", String::new);
}
