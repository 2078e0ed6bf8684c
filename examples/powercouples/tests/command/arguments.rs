//! Arguments that make no sense are refused before any work.

use crate::{json_of, results, run};

#[test]
fn senseless_arguments_are_refused() {
    for (arguments, reason) in [
        (&["--grid", "0"][..], "0 is not in 1..=5000"),
        (&["--grid", "5001"], "5001 is not in 1..=5000"),
        (&["--grid=-1"], "--grid"),
        (&["--grid", "10", "--input", "x.csv"], "cannot be used with"),
        (
            &["--variant", "pure,python"],
            "possible values: pure, c-function, threads, processes, forked",
        ),
        (&["--workers", "0"], "--workers"),
        (&["--workers", "1000000"], "--workers"),
        (&["--repeats", "0"], "--repeats"),
        (&["--schedule", "dynamic:0"], "at least 1 couple"),
        (
            &["--schedule", "fair"],
            "expected equal, guided or dynamic:N",
        ),
        (&["--plot", "chart.png"], "has to end in .svg"),
        (
            &["--json", "/nonexistent/directory/results.json"],
            "/nonexistent/directory/results.json: No such file",
        ),
        (
            &["--plot", "/nonexistent/directory/chart.svg"],
            "/nonexistent/directory/chart.svg: No such file",
        ),
        (&["--threads"], "--threads"),
    ] {
        run(arguments).assert_refused(reason);
    }
}

#[test]
fn variants_are_picked_by_repetition_or_by_commas() {
    let json = json_of(&[
        "--grid",
        "5",
        "--variant",
        "forked,threads",
        "--variant",
        "c-function",
        "--variant",
        "forked",
    ]);
    let names: Vec<&str> = results(&json).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["forked", "threads", "c-function"]);
}
