//! The results as JSON, for other programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::answer::Answer;
use crate::runner::Report;

#[derive(Serialize)]
struct Document<'r> {
    couples: usize,
    variants: Vec<Variant<'r>>,
    agree: bool,
}

#[derive(Serialize)]
struct Variant<'r> {
    name: &'static str,
    workers: usize,
    seconds: &'r [f64],
    median: f64,
    /// `null` if `pure` did not run.
    speedup: Option<f64>,
    result: Answer,
}

/// Writes one JSON document and a line end.
pub(crate) fn write(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let variants = report.runs.iter().map(|runs| Variant {
        name: runs.variant.name(),
        workers: runs.workers,
        seconds: &runs.seconds,
        median: runs.median(),
        speedup: report.speedup(runs),
        result: runs.answer,
    });
    let document = Document {
        couples: report.couples,
        variants: variants.collect(),
        agree: report.agree(),
    };
    writeln!(out, "{}", serde_json::to_string_pretty(&document)?)?;
    out.flush()
}
