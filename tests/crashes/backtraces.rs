//! Backtraces of panics, and when there are none.

use super::*;
use crate::common::{Leftovers, as_program, finish, is_program};

#[inline(never)]
fn where_it_panics(depth: u32) -> u32 {
    match std::hint::black_box(depth) {
        0 => panic!("on purpose"),
        more => where_it_panics(more - 1) + 1,
    }
}

fn engines() -> Vec<(&'static str, Pool<AnyEngine>)> {
    let mut all = vec![
        ("serial", Pool::serial().into()),
        ("threads", Pool::threads(1).unwrap().into()),
    ];
    all.extend(pools());
    all
}

/// Returns the error and the backtrace of a task that panics on each engine.
fn backtraces(depth: u32, is_same: bool) -> Vec<(&'static str, TaskError, Option<String>)> {
    let of = |(name, pool): (_, Pool<AnyEngine>)| {
        let error = pool.map(where_it_panics, [depth]).unwrap_err();
        let TaskError::Panicked { backtrace, .. } = &error else {
            panic!("{error:?}")
        };
        let backtrace = backtrace.clone().map(String::from);
        // It is the same again, but for the caller's frames in a full one.
        let again = pool.map(where_it_panics, [depth]).unwrap_err();
        assert!(!is_same || again == error, "{name}: {again:?}");
        (name, error, backtrace)
    };
    engines().into_iter().map(of).collect()
}

/// Runs a test as a program of its own with these variables for backtraces.
fn with(name: &str, variables: &[(&str, &str)]) {
    let _none = Leftovers::none();
    let mut program = as_program(name);
    for variable in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
        program.env_remove(variable);
    }
    let output = finish(program.envs(variables.iter().copied()));
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn b111_the_backtrace_of_a_panic_comes_with_the_error_if_it_is_asked_for() {
    let name = "backtraces::b111_the_backtrace_of_a_panic_comes_with_the_error_if_it_is_asked_for";
    if !is_program() {
        with(name, &[("RUST_BACKTRACE", "1")]);
        with(
            name,
            &[("RUST_BACKTRACE", "0"), ("RUST_LIB_BACKTRACE", "1")],
        );
        return;
    }
    for (name, error, backtrace) in backtraces(3, true) {
        let backtrace = backtrace.unwrap_or_else(|| panic!("{name}: {error:?}"));
        println!("{name}:\n{backtrace}");
        let first = backtrace.lines().next().unwrap();
        assert!(
            first.starts_with("   0: ") && first.ends_with("where_it_panics"),
            "{name}: {first}"
        );
        assert_eq!(
            backtrace.matches("where_it_panics").count(),
            4,
            "{name}: {backtrace}"
        );
        assert!(
            backtrace.contains("tests/crashes/backtraces.rs:"),
            "{name}: {backtrace}"
        );
        for part in ["manyhands::", "begin_unwind", "panicking", "catch_unwind"] {
            assert!(
                !backtrace.contains(part),
                "{name}: {part} is in {backtrace}"
            );
        }
        // The message is what it is without.
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn b111_no_backtrace_is_made_if_it_is_not_asked_for() {
    let name = "backtraces::b111_no_backtrace_is_made_if_it_is_not_asked_for";
    if !is_program() {
        with(name, &[]);
        with(name, &[("RUST_BACKTRACE", "0")]);
        with(
            name,
            &[("RUST_BACKTRACE", "1"), ("RUST_LIB_BACKTRACE", "0")],
        );
        return;
    }
    for (name, error, backtrace) in backtraces(3, true) {
        assert_eq!(backtrace, None, "{name}: {error:?}");
    }
}

#[test]
fn b111_a_full_backtrace_has_all_frames() {
    let name = "backtraces::b111_a_full_backtrace_has_all_frames";
    if !is_program() {
        with(name, &[("RUST_BACKTRACE", "full")]);
        return;
    }
    for (name, _, backtrace) in backtraces(3, false) {
        let backtrace = backtrace.unwrap();
        for part in ["where_it_panics", "manyhands::", "panicking"] {
            assert!(
                backtrace.contains(part),
                "{name}: {part} is not in {backtrace}"
            );
        }
    }
}

#[test]
fn b111_a_long_backtrace_is_cut() {
    let name = "backtraces::b111_a_long_backtrace_is_cut";
    if !is_program() {
        with(name, &[("RUST_LIB_BACKTRACE", "1")]);
        return;
    }
    for (name, _, backtrace) in backtraces(2_000, true) {
        let backtrace = backtrace.unwrap();
        assert!(
            (20 << 10..33 << 10).contains(&backtrace.len()),
            "{name}: {}",
            backtrace.len()
        );
        assert!(backtrace.ends_with("… more frames"), "{name}");
        assert_eq!(
            backtrace
                .lines()
                .filter(|line| line.contains("   0: "))
                .count(),
            1
        );
    }
}
