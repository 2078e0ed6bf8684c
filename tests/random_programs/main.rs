//! Random programs: several pools of all engines, and several threads that make steps on them, with
//! deaths, limits and stops among the steps. Each program runs in a process of its own, so that a
//! hang or a crash is a finding like any other. A model tells which outcomes are allowed; a ledger
//! in which the tasks note what they do tells whether each ran as it should.
//!
//! A program that breaks a rule is shrunk to a few steps, and printed as JSON with the rule. It is
//! run again by
//! `MANYHANDS_PROGRAM='…' cargo test --test random_programs -- --nocapture`, as often as
//! `MANYHANDS_PROGRAMS` says.
//! `MANYHANDS_SEED` repeats a run; `MANYHANDS_PROGRAMS=n` or `MANYHANDS_MINUTES=m` let it go on for
//! longer.

#[path = "../common/mod.rs"]
mod common;

mod audit;
mod calls;
mod hunt;
mod model;
mod program;
mod steps;
mod task;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use common::watch::Watch;
use common::{Leftovers, is_program};
use program::{How, Program, Step};
use world::{World, fail};

/// How many tasks a step gives.
fn tasks_of(step: &Step) -> u32 {
    match step {
        Step::Submit { .. } => 1,
        Step::Call(spec) => (spec.tasks.len() + spec.more) as u32,
        _ => 0,
    }
}

/// Runs a program in this process. Does not return if it breaks a rule.
fn execute(program: Program, deadline: Duration) {
    // Tasks panic on purpose. Set before the crate's own hook, which calls this one.
    std::panic::set_hook(Box::new(|_| {}));
    task::open_ledger();
    let whole = AssertUnwindSafe(|| {
        let none = Leftovers::none();
        let world = World::begin(program, Watch::new("a step", deadline));
        std::thread::scope(|scope| {
            let mut id = 0;
            for (number, steps) in world.program.threads.iter().enumerate() {
                let first = id;
                id += steps.iter().map(tasks_of).sum::<u32>();
                scope.spawn(move || thread(world, number, steps, first));
            }
        });
        world.end_pools();
        for slot in &world.slots {
            let taken = slot.lock().take();
            if let Some(handle) = taken {
                let what = format!("the outcome of {:?}", handle.given);
                let settle = || steps::result(world, handle, How::Result);
                world.watch.during("main", &what, settle);
            }
        }
        audit::audit(world);
        drop(none);
    });
    if let Err(payload) = catch_unwind(whole) {
        fail(("the program itself does not panic", message(&*payload)));
    }
}

fn thread(world: &'static World, number: usize, steps: &[Step], first: u32) {
    let mut id = first;
    for (place, step) in steps.iter().enumerate() {
        let what = format!("step {place}: {step:?}");
        let made = catch_unwind(AssertUnwindSafe(|| {
            let step = || steps::step(world, step, id);
            world.watch.during(&format!("thread {number}"), &what, step);
        }));
        if let Err(payload) = made {
            fail(("no call panics", format!("{what}: {}", message(&*payload))));
        }
        id += tasks_of(step);
    }
}

fn message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    let text = text.or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()));
    text.unwrap_or_default()
}

/// Runs the one program that `hunt` gives this process.
#[test]
fn one_program() {
    if is_program() {
        let text = std::env::var(hunt::PROGRAM).expect("a program");
        let seconds = common::random::number(hunt::DEADLINE).expect("a deadline");
        let program = serde_json::from_str(&text).expect("a program");
        execute(program, Duration::from_secs(seconds));
    }
}

#[test]
fn random_programs_break_no_rule() {
    if !is_program() {
        hunt::hunt();
    }
}
