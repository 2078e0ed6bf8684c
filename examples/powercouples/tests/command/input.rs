//! Couples from a file and from standard input.

use std::fs;

use serde_json::json;

use crate::{file, json_of, results, run, run_with_stdin, scratch};

fn grid(n: u32) -> String {
    (1..=n)
        .flat_map(|a| (1..=n).map(move |b| format!("{a},{b}\n")))
        .collect()
}

#[test]
fn a_file_answers_as_the_grid_it_lists() {
    let text = format!("# The grid of 30\n\nBase, Exponent\n{}", grid(30));
    let from_grid = json_of(&["--grid", "30"]);
    for (name, text) in [
        ("grid.csv", text.clone()),
        (
            "grid-crlf.csv",
            format!("\u{feff}{}", text.replace('\n', "\r\n")),
        ),
        ("grid-no-end.csv", text.trim_end().to_owned()),
    ] {
        let from_file = json_of(&["--input", &file(name, text)]);
        assert_eq!(from_file["couples"], 900, "{name}");
        assert_eq!(results(&from_file), results(&from_grid), "{name}");
    }
}

#[test]
fn standard_input_answers_as_the_grid_it_lists() {
    let from_stdin = run_with_stdin(&["--input", "-", "--json", "-"], grid(30).as_bytes()).json();
    assert_eq!(results(&from_stdin), results(&json_of(&["--grid", "30"])));
}

#[test]
fn the_first_of_equal_digit_sums_is_best() {
    let path = file("equals.csv", "2,2\n8,1\n2,3\n8,1\n");
    for (_, result) in results(&json_of(&["--input", &path])) {
        assert_eq!(result["best"], json!({ "a": 8, "b": 1, "digit_sum": 8 }));
    }
}

#[test]
fn the_ends_of_the_range_are_computed() {
    let path = file(
        "ends.csv",
        "1,1\n100000,1\n1,100000\n2,100000\n100000,100000\n2,100000\n",
    );
    let best = json!({ "a": 2, "b": 100_000, "digit_sum": 135_178 });
    let expected =
        json!({ "best": best, "digit_sum_total": 270_360, "digits_total": 560_215, "distinct": 2 });
    for (name, result) in results(&json_of(&["--input", &path])) {
        assert_eq!(result, &expected, "{name}");
    }
}

#[test]
fn a_bad_line_is_refused_with_file_line_and_reason() {
    let range = "where 1 to 100000 are allowed";
    for (name, text, line, reason) in [
        (
            "zero.csv",
            &b"1,2\n0,5\n"[..],
            2,
            format!("a is zero: \"0\", {range}"),
        ),
        (
            "negative.csv",
            b"a,b\n# none\n3,-4\n",
            3,
            format!("b is negative: \"-4\", {range}"),
        ),
        (
            "large.csv",
            b"1,2\n\n\n100001,5\n",
            4,
            format!("a is too large: \"100001\", {range}"),
        ),
        (
            "huge.csv",
            b"1,340282366920938463463374607431768211456\n",
            1,
            "b is too large: \"34".to_owned(),
        ),
        (
            "word.csv",
            b"1,two\n",
            1,
            format!("b is not a whole number written in digits: \"two\", {range}"),
        ),
        (
            "fraction.csv",
            b"1.5,2\n",
            1,
            "a is not a whole number written in digits: \"1.5\"".to_owned(),
        ),
        (
            "late-header.csv",
            b"1,2\na,b\n",
            2,
            "a is not a whole number written in digits: \"a\"".to_owned(),
        ),
        ("missing.csv", b"1,2\n3,\n", 2, "b is missing".to_owned()),
        (
            "one-field.csv",
            b"1,2\n3\n",
            2,
            "expected two numbers with a comma between them, found 1 field".to_owned(),
        ),
        (
            "extra.csv",
            b"1,2,3\n",
            1,
            "expected two numbers with a comma between them, found 3 fields".to_owned(),
        ),
        (
            "latin-1.csv",
            b"1,2\n3,4\xe9\n",
            2,
            "not UTF-8: byte 0xe9 in column 4".to_owned(),
        ),
    ] {
        let path = file(name, text);
        run(&["--input", &path]).assert_refused(&format!("{path}:{line}: {reason}"));
        run_with_stdin(&["--input", "-"], text)
            .assert_refused(&format!("<stdin>:{line}: {reason}"));
    }
}

#[test]
fn no_couples_are_refused() {
    for (name, text) in [
        ("empty.csv", ""),
        ("header.csv", "a,b\n"),
        ("comments.csv", "# nothing\n\n"),
    ] {
        let path = file(name, text);
        run(&["--input", &path]).assert_refused(&format!("{path}: there are no couples in it"));
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    let absent = scratch("absent.csv")
        .into_os_string()
        .into_string()
        .unwrap();
    run(&["--input", &absent]).assert_refused(&format!("{absent}: No such file"));
    let directory = env!("CARGO_TARGET_TMPDIR");
    run(&["--input", directory]).assert_refused(&format!("{directory}: "));
}

#[test]
fn a_bad_line_is_found_before_anything_is_written() {
    let path = file("bad-before-work.csv", "1,2\nx\n");
    let json = scratch("bad-before-work.json");
    run(&["--input", &path, "--json", json.to_str().unwrap()])
        .assert_refused("bad-before-work.csv:2: ");
    assert!(!fs::exists(json).unwrap());
}
