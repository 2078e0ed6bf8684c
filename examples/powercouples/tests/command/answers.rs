//! The right answers, from every variant.

use serde_json::json;

use crate::{VARIANTS, json_of, results};

#[track_caller]
fn assert_all_answer(arguments: &[&str], expected: &serde_json::Value) {
    let json = json_of(arguments);
    let expected: Vec<_> = VARIANTS.iter().map(|&name| (name, expected)).collect();
    assert_eq!(results(&json), expected);
    assert_eq!(json["agree"], true);
}

#[test]
fn grid_of_10() {
    let best = json!({ "a": 9, "b": 7, "digit_sum": 45 });
    let expected =
        json!({ "best": best, "digit_sum_total": 1_516, "digits_total": 418, "distinct": 69 });
    assert_all_answer(&["--grid", "10"], &expected);
}

/// The greatest digit sum is the answer of Project Euler 56. The number of distinct powers is that
/// of Project Euler 29.
#[test]
fn grid_of_100_with_every_schedule() {
    let best = json!({ "a": 99, "b": 95, "digit_sum": 972 });
    let expected = json!({ "best": best, "digit_sum_total": 3_347_611, "digits_total": 802_826, "distinct": 9_183 });
    for schedule in [
        "equal",
        "guided",
        "dynamic:1",
        "dynamic:64",
        "dynamic:1000000",
    ] {
        assert_all_answer(&["--grid", "100", "--schedule", schedule], &expected);
    }
}

#[test]
fn one_couple_among_many_workers() {
    let best = json!({ "a": 1, "b": 1, "digit_sum": 1 });
    let expected = json!({ "best": best, "digit_sum_total": 1, "digits_total": 1, "distinct": 0 });
    for schedule in ["equal", "guided", "dynamic:64"] {
        assert_all_answer(
            &["--grid", "1", "--workers", "5", "--schedule", schedule],
            &expected,
        );
    }
}

#[test]
fn one_worker() {
    let json = json_of(&["--grid", "10", "--workers", "1"]);
    assert!(
        results(&json)
            .iter()
            .all(|(_, result)| result["digit_sum_total"] == 1_516)
    );
}
