//! `PowerCouples`: one loop, written five times, from plain Rust to processes.
//!
//! A couple is two whole numbers (a, b). For each couple the program computes a^b exactly, counts
//! its decimal digits and adds them up. The couples do not depend on each other, so the loop over
//! them can run on all cores. Some of them cost far more than others, so it matters how they are
//! shared out.
//!
//! Read [`variants`] first, `pure` to `forked`, each beside the one before it. The files have the
//! same shape, and what differs is what there is to learn. The rest serves all of them alike:
//!
//! - [`couple`]: what goes into the loop and comes out of it.
//! - [`answer`]: what the program reports of that.
//! - [`power`] computes one power in Rust, [`kernel`] in C (`kernel/power.c`).
//! - [`cli`] and [`input`] read what to do; [`runner`] runs, times and compares.
//! - [`table`], [`json`], [`plot`] and [`progress`] show it.

mod answer;
mod cli;
mod couple;
mod input;
mod json;
mod kernel;
mod plot;
mod power;
mod progress;
mod runner;
mod table;
mod variants;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use cli::Cli;
use runner::Report;

/// A variant failed, variants disagree, or a result could not be written.
const FAILED: u8 = 1;
/// The arguments or the input are wrong, and nothing was run. clap ends with the same status.
const MISUSED: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let couples = match input::couples(&cli.source()) {
        Ok(couples) => couples,
        Err(error) => return stop(MISUSED, &error.to_string()),
    };
    // Opened before the work, so that the user does not wait for a result that cannot be written.
    let outputs = match Outputs::open(&cli) {
        Ok(outputs) => outputs,
        Err(error) => return stop(MISUSED, &error),
    };
    let report = match runner::run(&couples, &cli.plan()) {
        Ok(report) => report,
        Err(error) => return stop(FAILED, &error.to_string()),
    };
    if let Err(error) = outputs.write(&report) {
        return stop(FAILED, &error);
    }
    if report.agree() {
        return ExitCode::SUCCESS;
    }
    let differences = report.differences.join("\n  ");
    stop(
        FAILED,
        &format!("THE VARIANTS DISAGREE, so at least one of them is wrong:\n  {differences}"),
    )
}

/// Says why the program ends, on stderr.
fn stop(status: u8, message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::from(status)
}

/// Where the results go; the files with their names, for messages.
struct Outputs {
    table: Box<dyn Write>,
    json: Option<(String, Box<dyn Write>)>,
    plot: Option<(String, Box<dyn Write>)>,
}

impl Outputs {
    fn open(cli: &Cli) -> Result<Self, String> {
        // With JSON on stdout, the table goes to stderr: a program that reads the JSON does not
        // trip over the table.
        let json_on_stdout = cli.json.as_deref() == Some(Path::new("-"));
        let stdout = || Box::new(io::stdout()) as Box<dyn Write>;
        let table = if json_on_stdout {
            Box::new(io::stderr())
        } else {
            stdout()
        };
        let json = match &cli.json {
            Some(_) if json_on_stdout => Some(("standard output".to_owned(), stdout())),
            Some(path) => Some(create(path)?),
            None => None,
        };
        let plot = cli.plot.as_deref().map(create).transpose()?;
        Ok(Self { table, json, plot })
    }

    /// Writes them all, so that one that fails takes no other with it.
    fn write(mut self, report: &Report) -> Result<(), String> {
        let mut faults = Vec::new();
        if let Err(error) = table::write(&mut self.table, report) {
            faults.push(format!("the table: {error}"));
        }
        if let Some((name, file)) = &mut self.json
            && let Err(error) = json::write(file, report)
        {
            faults.push(format!("{name}: {error}"));
        }
        if let Some((name, file)) = &mut self.plot
            && let Err(error) = plot::write(file, report)
        {
            faults.push(format!("{name}: {error}"));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join("\n"))
        }
    }
}

/// A new file and its name.
fn create(path: &Path) -> Result<(String, Box<dyn Write>), String> {
    let name = path.display().to_string();
    match File::create(path) {
        Ok(file) => Ok((name, Box::new(file))),
        Err(error) => Err(format!("{name}: {error}")),
    }
}
