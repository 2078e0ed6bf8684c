//! What each kind of failure costs, and what the caller gets to see of it.
//!
//! Run it with `cargo run --release --example failures`. It ends with exit status 1 if anything is
//! not as it says.

use std::process::ExitCode;

use manyhands::prelude::*;
use manyhands::process::ExitStatus;

/// Does what its argument says.
#[allow(clippy::needless_pass_by_value, reason = "a task takes its argument")]
fn task(what: String) -> usize {
    match what.as_str() {
        "panic" => panic!("the task has panicked"),
        "crash" => crash(),
        "abort" => std::process::abort(),
        "exit" => std::process::exit(3),
        _ => what.len(),
    }
}

/// Writes where no memory is, as a faulty C library might.
fn crash() -> usize {
    let nowhere = std::ptr::without_provenance_mut::<usize>(8);
    // SAFETY: none; this is what the example is about. In this process it would end the program.
    unsafe { nowhere.write_volatile(1) };
    0
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut all_well = true;
    let mut check = |what: &str, is_so: bool, said: &dyn std::fmt::Display| {
        println!("{:4} {what:32} {said}", if is_so { "ok" } else { "BAD" });
        all_well &= is_so;
    };

    // Before any other thread runs: the condition for forking.
    let table = vec![1.0, 4.0, 9.0];
    let forked = Pool::forked(2)?;
    let borrowed = forked.map(|i: usize| table[i] * 2.0, 0..3)?;
    check(
        "forked children borrow",
        borrowed == [2.0, 8.0, 18.0],
        &format!("{borrowed:?}"),
    );
    let died = forked
        .map(task, ["fine", "crash", "fine"].map(str::to_owned))
        .unwrap_err();
    check(
        "a forked child crashes",
        matches!(&died, TaskError::WorkerDied{ index, .. } if *index == Some(1)),
        &died,
    );

    let pool = Pool::processes(2)?;
    let squares: Vec<u64> = pool.map(|x| x * x, 0..1_000u64)?;
    check("map on processes", squares[999] == 998_001, &squares[999]);
    let scale = 3.0;
    let scaled = pool.map(closure!([table, scale] |i: usize| table[i] * scale), 0..3)?;
    check(
        "variables taken along",
        scaled == [3.0, 12.0, 27.0],
        &format!("{scaled:?}"),
    );

    let panicked = pool.submit(task, "panic".to_owned()).result().unwrap_err();
    let is_told = matches!(&panicked, TaskError::Panicked { message, location: Some(place), .. }
        if message == "the task has panicked" && place.file.ends_with("failures.rs"));
    check("a task panics", is_told, &panicked);
    for (what, death) in [
        ("crash", Death::Signal(11)),
        ("abort", Death::Signal(6)),
        ("exit", Death::Exit(3)),
    ] {
        let died = pool.submit(task, what.to_owned()).result().unwrap_err();
        let is_told = matches!(&died, TaskError::WorkerDied { cause, .. } if *cause == death);
        check(&format!("a task ends its process: {what}"), is_told, &died);
    }

    // Of many tasks, the bad ones fail, each with its own error; the others do not notice.
    let kinds = ["crash", "fine", "panic", "good", "exit"];
    let tasks: Vec<_> = (0..100)
        .map(|n| pool.submit(task, kinds[n % kinds.len()].to_owned()))
        .collect();
    let results: Vec<_> = tasks.into_iter().map(TaskFuture::result).collect();
    let in_place = results
        .iter()
        .enumerate()
        .all(|(n, result)| match kinds[n % kinds.len()] {
            kind @ ("fine" | "good") => *result == Ok(kind.len()),
            "panic" => matches!(result, Err(TaskError::Panicked { .. })),
            _ => matches!(result, Err(TaskError::WorkerDied { .. })),
        });
    let failed = results.iter().filter(|result| result.is_err()).count();
    check(
        "100 tasks, 60 of them bad",
        in_place && failed == 60,
        &format!("{failed} errors in their places"),
    );
    pool.close()?;

    // Single children, which no pool replaces: how they ended is all there is.
    let panics = if cfg!(panic = "abort") {
        ExitStatus::Signal(6)
    } else {
        ExitStatus::Exit(101)
    };
    for (what, expected) in [
        ("nothing", ExitStatus::Exit(0)),
        ("panic", panics),
        ("crash", ExitStatus::Signal(11)),
        ("exit", ExitStatus::Exit(3)),
    ] {
        let what = what.to_owned();
        let run = closure!([what] |(): ()| {
            task(what.clone());
        });
        let ended = Process::spawn(run, ())?.join()?;
        check(
            &format!("a child of its own: {what}"),
            ended == expected,
            &ended,
        );
    }

    Ok(if all_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
