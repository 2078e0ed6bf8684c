//! Runs the variants, times them, and compares what they found.

use std::fmt;
use std::time::Instant;

use manyhands::prelude::*;

use crate::answer::Answer;
use crate::couple::{Couple, Power};
use crate::progress::Bar;
use crate::variants::{Failure, Options, Variant};

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Each once, in this order.
    pub(crate) variants: Vec<Variant>,
    /// Workers of the variants that have some.
    pub(crate) workers: usize,
    /// How the couples are shared out among them.
    pub(crate) schedule: Schedule,
    /// How many times each variant runs.
    pub(crate) repeats: usize,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Report {
    /// How many couples there were.
    pub(crate) couples: usize,
    /// What was asked for.
    pub(crate) plan: Plan,
    /// One for each variant, in the order of the plan.
    pub(crate) runs: Vec<Runs>,
    /// Where two runs came to different powers, in words.
    pub(crate) differences: Vec<String>,
}

/// All runs of one variant.
#[derive(Debug)]
pub(crate) struct Runs {
    /// Which variant.
    pub(crate) variant: Variant,
    /// How many workers it had.
    pub(crate) workers: usize,
    /// How long each run took.
    pub(crate) seconds: Vec<f64>,
    /// What the first run found.
    pub(crate) answer: Answer,
}

impl Runs {
    /// The middle one of the times, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        }
    }

    /// The shortest of the times.
    pub(crate) fn fastest(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The longest of the times.
    pub(crate) fn slowest(&self) -> f64 {
        self.seconds.iter().copied().fold(0.0, f64::max)
    }
}

impl Report {
    /// Whether all runs of all variants came to the same powers.
    pub(crate) fn agree(&self) -> bool {
        self.differences.is_empty()
    }

    /// Returns how many times as fast as `pure` these runs were, by their medians; `None` if `pure`
    /// did not run.
    pub(crate) fn speedup(&self, runs: &Runs) -> Option<f64> {
        let pure = self
            .runs
            .iter()
            .find(|runs| runs.variant == Variant::Pure)?;
        Some(pure.median() / runs.median())
    }

    /// The variant with the shortest median.
    pub(crate) fn winner(&self) -> Option<Variant> {
        let winner = self
            .runs
            .iter()
            .min_by(|x, y| x.median().total_cmp(&y.median()));
        winner.map(|runs| runs.variant)
    }
}

/// A variant that did not come to its end.
#[derive(Debug)]
pub(crate) struct Stopped {
    variant: Variant,
    failure: Failure,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.variant.name(), self.failure)
    }
}

/// Runs all variants as planned, on couples of which there is at least one.
///
/// The variants take turns, so that a slow moment of the machine hits all of them. A run is timed
/// from before its pool is made until after it is closed, because the user of a pool pays for both.
/// The reduction to an [`Answer`] is the same for all variants and is not timed.
pub(crate) fn run(couples: &[Couple], plan: &Plan) -> Result<Report, Stopped> {
    let options = Options {
        workers: plan.workers,
        schedule: plan.schedule,
    };
    let mut bar = Bar::new(couples.len(), plan.repeats * plan.variants.len());
    let mut runs: Vec<Runs> = Vec::new();
    let mut differences = Vec::new();
    let mut first: Option<(Variant, Vec<Power>)> = None;

    for round in 0..plan.repeats {
        for (index, &variant) in plan.variants.iter().enumerate() {
            bar.begin(format!(
                "{}, {} of {}",
                variant.name(),
                round + 1,
                plan.repeats
            ));
            let start = Instant::now();
            let powers = variant
                .run(couples, options, &mut bar)
                .map_err(|failure| Stopped { variant, failure })?;
            let seconds = start.elapsed().as_secs_f64();
            bar.end();

            if round == 0 {
                let answer = Answer::of(couples, &powers).expect("there is a couple");
                let workers = variant.workers(plan.workers);
                runs.push(Runs {
                    variant,
                    workers,
                    seconds: Vec::new(),
                    answer,
                });
            }
            runs[index].seconds.push(seconds);
            match &first {
                None => first = Some((variant, powers)),
                Some(first) => differences.extend(difference(couples, first, &(variant, powers))),
            }
        }
    }
    Ok(Report {
        couples: couples.len(),
        plan: plan.clone(),
        runs,
        differences,
    })
}

/// The first couple for which two runs came to different powers, in words.
fn difference(
    couples: &[Couple],
    one: &(Variant, Vec<Power>),
    other: &(Variant, Vec<Power>),
) -> Option<String> {
    let index = (0..couples.len()).find(|&index| one.1[index] != other.1[index])?;
    let told = |(variant, powers): &(Variant, Vec<Power>)| {
        let Power { digits, digit_sum } = powers[index];
        format!(
            "{} found {digits} digits that add up to {digit_sum}",
            variant.name()
        )
    };
    Some(format!(
        "couple {}: {}, {}",
        couples[index],
        told(one),
        told(other)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::power;
    use crate::{json, table};

    fn runs(variant: Variant, seconds: &[f64]) -> Runs {
        let couple = Couple { a: 2, b: 5 };
        let answer = Answer::of(&[couple], &[power(couple)]).unwrap();
        Runs {
            variant,
            workers: 2,
            seconds: seconds.to_vec(),
            answer,
        }
    }

    fn report(runs: Vec<Runs>) -> Report {
        let plan = Plan {
            variants: Vec::new(),
            workers: 2,
            schedule: Schedule::Guided,
            repeats: 1,
        };
        Report {
            couples: 1,
            plan,
            runs,
            differences: Vec::new(),
        }
    }

    #[test]
    fn the_median_lies_in_the_middle_of_the_sorted_times() {
        assert_eq!(
            runs(Variant::Pure, &[9.0, 1.0, 2.0]).median().to_bits(),
            2.0_f64.to_bits()
        );
        assert_eq!(
            runs(Variant::Pure, &[4.0, 1.0, 2.0, 8.0])
                .median()
                .to_bits(),
            3.0_f64.to_bits()
        );
        let one = runs(Variant::Pure, &[9.0, 1.0, 2.0]);
        assert_eq!(
            (one.fastest().to_bits(), one.slowest().to_bits()),
            (1.0_f64.to_bits(), 9.0_f64.to_bits())
        );
    }

    #[test]
    fn speed_up_is_over_pure_and_absent_without_it() {
        let with = report(vec![
            runs(Variant::Threads, &[2.0]),
            runs(Variant::Pure, &[4.0]),
        ]);
        assert_eq!(with.speedup(&with.runs[0]), Some(2.0));
        assert_eq!(with.speedup(&with.runs[1]), Some(1.0));
        assert_eq!(with.winner(), Some(Variant::Threads));
        let without = report(vec![runs(Variant::Threads, &[2.0])]);
        assert_eq!(without.speedup(&without.runs[0]), None);
    }

    #[test]
    fn a_difference_names_the_couple_and_both_variants() {
        let couples = [(2, 3), (2, 5)].map(|(a, b)| Couple { a, b });
        let right: Vec<Power> = couples.iter().map(|&couple| power(couple)).collect();
        let mut wrong = right.clone();
        wrong[1].digit_sum += 1;
        let right = (Variant::Pure, right);
        assert_eq!(difference(&couples, &right, &right), None);
        assert_eq!(
            difference(&couples, &right, &(Variant::Threads, wrong)).unwrap(),
            "couple (2, 5): pure found 2 digits that add up to 5, threads found 2 digits that add up to 6"
        );
    }

    #[test]
    fn a_difference_is_told_in_the_table_and_in_json() {
        let mut report = report(vec![runs(Variant::Pure, &[4.0])]);
        let shown = |report: &Report| {
            let (mut text, mut json) = (Vec::new(), Vec::new());
            table::write(&mut text, report).unwrap();
            json::write(&mut json, report).unwrap();
            (
                String::from_utf8(text).unwrap(),
                String::from_utf8(json).unwrap(),
            )
        };
        let (text, json) = shown(&report);
        assert!(text.contains("All variants agree") && json.contains("\"agree\": true"));
        report.differences.push("couple (2, 5)".to_owned());
        let (text, json) = shown(&report);
        assert!(text.contains("DISAGREE") && json.contains("\"agree\": false"));
    }
}
