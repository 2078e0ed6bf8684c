//! The results as a table, for people.

use std::io::{self, Write};

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, LineStyle, Table};
use manyhands::prelude::*;

use crate::runner::{Report, Runs};

/// Writes what was run, a line for each variant, and the answer.
pub(crate) fn write(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.style_mut().row_separator = LineStyle::none();
    table.set_header([
        "variant",
        "workers",
        "median s",
        "min – max s",
        "speed-up",
        "efficiency",
        "winner",
    ]);
    for runs in &report.runs {
        table.add_row(row(report, runs));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(out, "{}", headline(report))?;
    writeln!(out, "{}", table.trim_fmt())?;

    let Some(first) = report.runs.first() else {
        return Ok(());
    };
    let answer = first.answer;
    let heading = if report.agree() {
        "All variants agree:"
    } else {
        "The variants DISAGREE. The first one says:"
    };
    writeln!(out, "{heading}")?;
    let best = answer.best;
    writeln!(
        out,
        "  greatest digit sum  {} of {}^{}",
        grouped(best.digit_sum),
        best.a,
        best.b
    )?;
    writeln!(
        out,
        "  digit sums in all   {}",
        grouped(answer.digit_sum_total)
    )?;
    writeln!(
        out,
        "  digits in all       {}",
        grouped(answer.digits_total)
    )?;
    writeln!(
        out,
        "  distinct powers     {} (a ≥ 2, b ≥ 2)",
        grouped(answer.distinct as u64)
    )?;
    out.flush()
}

/// What was run, on one line.
pub(crate) fn headline(report: &Report) -> String {
    let plan = &report.plan;
    let schedule = match plan.schedule {
        Schedule::Equal => "equal".to_owned(),
        Schedule::Guided => "guided".to_owned(),
        Schedule::Dynamic(size) => format!("dynamic:{size}"),
        other => format!("{other:?}"),
    };
    format!(
        "{}, {}, {schedule} schedule, {} of each variant",
        counted(report.couples, "couple"),
        counted(plan.workers, "worker"),
        counted(plan.repeats, "run"),
    )
}

fn row(report: &Report, runs: &Runs) -> [String; 7] {
    let longest = report.runs.iter().map(Runs::slowest).fold(0.0, f64::max);
    let decimals = if longest < 0.1 { 6 } else { 3 };
    let (speedup, efficiency) = match report.speedup(runs) {
        Some(speedup) => {
            let percent = 100.0 * speedup / runs.workers as f64;
            (format!("{speedup:.2}"), format!("{percent:.0} %"))
        }
        None => ("-".to_owned(), "-".to_owned()),
    };
    let won = report.winner() == Some(runs.variant);
    [
        runs.variant.name().to_owned(),
        runs.workers.to_string(),
        format!("{:.decimals$}", runs.median()),
        format!(
            "{:.decimals$} – {:.decimals$}",
            runs.fastest(),
            runs.slowest()
        ),
        speedup,
        efficiency,
        if won { "fastest" } else { "" }.to_owned(),
    ]
}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(count as u64))
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        let groups = [0, 7, 999, 1_000, 12_345, 1_234_567].map(grouped);
        assert_eq!(groups, ["0", "7", "999", "1,000", "12,345", "1,234,567"]);
    }
}
