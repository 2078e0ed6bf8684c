//! The arguments.

use std::path::{Path, PathBuf};
use std::thread;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use manyhands::prelude::*;

use crate::input::Source;
use crate::runner::Plan;
use crate::variants::Variant;

/// On the machine it was chosen on, pure takes about 3 s for it.
const DEFAULT_GRID: u32 = 700;
/// Twenty-five million couples. The time grows with almost the fourth power of the side: these take
/// hours.
const GREATEST_GRID: i64 = 5_000;

/// Computes a^b exactly for many couples (a, b), in up to five variants, and compares them.
///
/// For each couple: the power, its number of decimal digits and the sum of those digits. The
/// variants do the same work one after the other in Rust (pure) and in C (c-function), and the Rust
/// work on threads, on processes and on forked children.
///
/// The time of a variant includes starting and closing its pool. A speed-up is the median time of
/// pure divided by the variant's; without pure there is none, and "-" or null stands in its place.
/// Efficiency is the speed-up divided by the number of workers.
///
/// Exit status: 0 if all went well, 1 if a variant failed or the variants disagree, 2 if the
/// arguments or the input are wrong; then nothing was run.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    /// Take all couples of 1 to N, a slowest
    #[arg(long, value_name = "N", default_value_t = DEFAULT_GRID, conflicts_with = "input",
          value_parser = clap::value_parser!(u32).range(1..=GREATEST_GRID))]
    grid: u32,

    /// Take the couples from FILE, or from standard input if it is -
    ///
    /// One couple `a,b` on each line, both from 1 to 100000. Blank lines and comments from # to the
    /// end of the line are skipped. The first line that is left may be a header, `a,b` or
    /// `base,exponent`.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// Run only these variants; may be repeated
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "NAMES",
        default_value = "pure,c-function,threads,processes,forked"
    )]
    variant: Vec<Variant>,

    /// Threads, processes or children of the variants that have some [default: the cores this
    /// process may use]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    workers: Option<usize>,

    /// How the couples are shared out among the workers: equal, guided or dynamic:N
    ///
    /// equal: one share each; guided: large chunks first, small ones at the end; dynamic:N: chunks
    /// of N couples.
    #[arg(long, default_value = "guided", value_parser = schedule)]
    schedule: Schedule,

    /// Times each variant runs; the variants take turns, so that a slow moment of the machine hits
    /// all of them
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000))]
    repeats: usize,

    /// Write the results as JSON to FILE, or to standard output if it is -; the table then goes to
    /// standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Draw time and speed-up of each variant into an SVG file
    #[arg(long, value_name = "FILE.svg", value_parser = svg_path)]
    pub(crate) plot: Option<PathBuf>,
}

impl Cli {
    /// Where the couples come from.
    pub(crate) fn source(&self) -> Source {
        match &self.input {
            None => Source::Grid(self.grid),
            Some(path) if path == Path::new("-") => Source::Stdin,
            Some(path) => Source::File(path.clone()),
        }
    }

    /// What to run.
    pub(crate) fn plan(&self) -> Plan {
        let mut variants = Vec::new();
        for &variant in &self.variant {
            if !variants.contains(&variant) {
                variants.push(variant);
            }
        }
        let workers = self
            .workers
            .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
        Plan {
            variants,
            workers,
            schedule: self.schedule,
            repeats: self.repeats,
        }
    }
}

fn schedule(text: &str) -> Result<Schedule, String> {
    match text.split_once(':') {
        None if text == "equal" => Ok(Schedule::Equal),
        None if text == "guided" => Ok(Schedule::Guided),
        Some(("dynamic", size)) => match size.parse() {
            Ok(0) => Err("a chunk has at least 1 couple".to_owned()),
            Ok(size) => Ok(Schedule::Dynamic(size)),
            Err(error) => Err(format!("the N of dynamic:N: {error}")),
        },
        _ => Err("expected equal, guided or dynamic:N, such as dynamic:64".to_owned()),
    }
}

fn svg_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("svg"))
    {
        Ok(path)
    } else {
        Err("the chart is an SVG file, so its name has to end in .svg".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_well_defined() {
        Cli::command().debug_assert();
    }

    #[test]
    fn schedules_are_read() {
        assert_eq!(schedule("equal"), Ok(Schedule::Equal));
        assert_eq!(schedule("guided"), Ok(Schedule::Guided));
        assert_eq!(schedule("dynamic:16"), Ok(Schedule::Dynamic(16)));
        for wrong in [
            "",
            "dynamic",
            "dynamic:",
            "dynamic:0",
            "dynamic:-1",
            "equal:2",
            "Guided",
        ] {
            assert!(schedule(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn variants_keep_their_order_and_run_once() {
        let cli = Cli::parse_from([
            "powercouples",
            "--variant",
            "threads,pure",
            "--variant",
            "threads",
        ]);
        assert_eq!(cli.plan().variants, [Variant::Threads, Variant::Pure]);
    }
}
