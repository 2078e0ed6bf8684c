//! The table, the JSON and the chart.

use std::fs;

use serde_json::Value;

use crate::{VARIANTS, json_of, run, scratch};

#[track_caller]
fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

/// Keys are compared in alphabetical order, in which `serde_json` gives them back.
#[test]
fn json_has_the_promised_shape() {
    let json = run(&[
        "--grid",
        "20",
        "--repeats",
        "3",
        "--workers",
        "2",
        "--json",
        "-",
    ])
    .json();
    assert_eq!(keys(&json), ["agree", "couples", "variants"]);
    assert_eq!(json["couples"], 400);
    assert_eq!(json["agree"], true);
    let variants = json["variants"].as_array().unwrap();
    assert_eq!(variants.len(), VARIANTS.len());
    for (variant, name) in variants.iter().zip(VARIANTS) {
        assert_eq!(
            keys(variant),
            ["median", "name", "result", "seconds", "speedup", "workers"]
        );
        assert_eq!(variant["name"], name);
        assert_eq!(
            variant["workers"],
            if ["pure", "c-function"].contains(&name) {
                1
            } else {
                2
            }
        );
        let mut seconds: Vec<f64> = variant["seconds"]
            .as_array()
            .unwrap()
            .iter()
            .map(|time| time.as_f64().unwrap())
            .collect();
        seconds.sort_by(f64::total_cmp);
        assert_eq!(seconds.len(), 3);
        assert!(seconds[0] > 0.0);
        assert_eq!(variant["median"].as_f64(), Some(seconds[1]));
        // ArrayReadGuard numbers back may change their last bit, here or there.
        let speedup = variants[0]["median"].as_f64().unwrap() / seconds[1];
        let told = variant["speedup"].as_f64().unwrap();
        assert!(
            (told / speedup - 1.0).abs() < 1e-12,
            "{told}, not {speedup}"
        );
        assert_eq!(
            keys(&variant["result"]),
            ["best", "digit_sum_total", "digits_total", "distinct"]
        );
        assert_eq!(keys(&variant["result"]["best"]), ["a", "b", "digit_sum"]);
    }
}

#[test]
fn the_table_lists_variants_and_answer_on_stdout() {
    let ended = run(&["--grid", "10", "--repeats", "1"]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    // Not a progress bar either: stderr is no terminal here.
    assert_eq!(ended.stderr, "");
    for text in [
        "speed-up",
        "efficiency",
        "fastest",
        "All variants agree",
        "45 of 9^7",
        "1,516",
        "418",
        "69",
    ] {
        assert!(ended.stdout.contains(text), "{text} is missing: {ended:?}");
    }
    for name in VARIANTS {
        let lines = ended
            .stdout
            .lines()
            .filter(|line| line.split_whitespace().next() == Some(name));
        assert_eq!(lines.count(), 1, "{name}: {ended:?}");
    }
}

#[test]
fn with_json_on_stdout_the_table_goes_to_stderr() {
    let ended = run(&["--grid", "10", "--repeats", "1", "--json", "-"]);
    assert_eq!(ended.json()["couples"], 100);
    assert!(ended.stderr.contains("All variants agree"), "{ended:?}");
}

#[test]
fn json_in_a_file_leaves_the_table_on_stdout() {
    let path = scratch("results.json");
    let ended = run(&[
        "--grid",
        "10",
        "--repeats",
        "1",
        "--json",
        path.to_str().unwrap(),
    ]);
    assert!(ended.stdout.contains("All variants agree"), "{ended:?}");
    let json: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(json["couples"], 100);
}

#[test]
fn a_result_that_cannot_be_written_fails_alone() {
    let ended = run(&["--grid", "10", "--repeats", "1", "--json", "/dev/full"]);
    assert_eq!(ended.status, Some(1), "{ended:?}");
    assert!(
        ended.stderr.starts_with("/dev/full: No space left"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("All variants agree"), "{ended:?}");
}

#[test]
fn without_pure_there_is_no_speed_up() {
    let json = json_of(&["--grid", "10", "--variant", "c-function"]);
    assert_eq!(json["variants"][0]["speedup"], Value::Null);
    assert!(json["variants"][0]["median"].is_number());
}

#[test]
fn the_chart_is_well_formed_and_names_every_variant() {
    let path = scratch("chart.svg");
    let ended = run(&[
        "--grid",
        "10",
        "--repeats",
        "2",
        "--workers",
        "2",
        "--plot",
        path.to_str().unwrap(),
    ]);
    assert_eq!(ended.status, Some(0), "{ended:?}");
    let svg = fs::read_to_string(path).unwrap();
    assert!(svg.starts_with("<svg "), "{svg}");
    let texts = texts_of_well_formed(&svg);
    for name in VARIANTS {
        // Once under the times and once under the speed-ups.
        assert_eq!(
            texts.iter().filter(|text| *text == name).count(),
            2,
            "{name}: {texts:?}"
        );
    }
    for text in ["Time", "Speed-up", "ideal of 2 workers"] {
        assert!(
            texts.iter().any(|found| found == text),
            "{text} is missing: {texts:?}"
        );
    }
}

#[test]
fn the_chart_without_pure_says_why_it_has_no_speed_ups() {
    let path = scratch("chart-without-pure.svg");
    run(&[
        "--grid",
        "10",
        "--variant",
        "threads",
        "--plot",
        path.to_str().unwrap(),
    ]);
    let texts = texts_of_well_formed(&fs::read_to_string(path).unwrap());
    assert!(
        texts.iter().any(|text| text.contains("pure was not run")),
        "{texts:?}"
    );
}

/// The texts between the tags, after a check that each tag is closed in its place.
#[track_caller]
fn texts_of_well_formed(xml: &str) -> Vec<String> {
    let mut open: Vec<&str> = Vec::new();
    let mut texts = Vec::new();
    let mut rest = xml;
    while let Some((text, after)) = rest.split_once('<') {
        let (tag, after) = after.split_once('>').expect("a tag ends");
        assert!(
            !text.contains('>') && tag.matches('"').count() % 2 == 0,
            "<{tag}> after {text:?}"
        );
        if !text.trim().is_empty() {
            texts.push(text.trim().to_owned());
        }
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap());
        }
        rest = after;
    }
    assert!(
        open.is_empty() && rest.trim().is_empty(),
        "left open: {open:?}, {rest:?}"
    );
    texts
}
