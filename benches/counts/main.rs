//! How many instructions one operation takes, under valgrind's callgrind, and whether that grew.
//!
//! Times drift with the machine; counts repeat. `cargo bench --bench counts` compares with the
//! counts that are kept in `kept.txt`, and fails if a row grew by more than 10 %.
//! `benches/README.md` says more.

mod base;
mod callgrind;
mod kept;
mod programs;
mod rest;

use std::process::ExitCode;
use std::{env, io};

use self::kept::{Counts, Setting};

/// What the command line asks for.
enum Task {
    /// Compare with the kept counts.
    Compare,
    /// Compare with another commit, which is counted here.
    CompareWith(String),
    /// Write the counts to a file.
    Keep(std::path::PathBuf),
}

impl Task {
    fn parse(arguments: impl Iterator<Item = String>) -> io::Result<Self> {
        let mut task = Self::Compare;
        for argument in arguments {
            let (option, value) = match argument.split_once('=') {
                Some((option, value)) => (option, Some(value)),
                None => (&*argument, None),
            };
            task = match (option, value) {
                // From `cargo bench`.
                ("--bench", None) => task,
                ("--base", Some(commit)) => Self::CompareWith(commit.to_owned()),
                ("--keep", path) => Self::Keep(path.map_or_else(kept::path, Into::into)),
                _ => {
                    let usage = "the options are --keep, --keep=FILE and --base=COMMIT";
                    return Err(io::Error::other(usage));
                }
            };
        }
        Ok(task)
    }
}

fn count() -> io::Result<Counts> {
    let mut counts = Vec::new();
    for program in programs::PROGRAMS {
        let names = program.rows.iter().map(|row| row.name.to_owned());
        counts.extend(names.zip(callgrind::count(program)?));
    }
    Ok(counts)
}

/// Returns the counts to compare with; `None` if there are none.
fn find_base(task: Task, here: &Setting) -> io::Result<Option<Counts>> {
    let commit = match task {
        Task::Keep(_) => return Ok(None),
        Task::CompareWith(commit) => return base::count(&commit).map(Some),
        Task::Compare => {
            let (setting, counts) = kept::read(&kept::path())?;
            if setting == *here {
                return Ok(Some(counts));
            }
            println!("the kept counts are of {setting}\nhere are {here}");
            base::commit_of_kept()
        }
    };
    let counted = commit.and_then(|commit| {
        println!("so the base is counted here: commit {commit}");
        base::count(&commit)
    });
    match counted {
        Ok(counts) => Ok(Some(counts)),
        Err(error) => {
            println!("NOT COMPARED: the base could not be counted: {error}");
            Ok(None)
        }
    }
}

fn run() -> io::Result<ExitCode> {
    if let Ok(name) = env::var(callgrind::PROGRAM) {
        programs::run(&name)?;
        return Ok(ExitCode::SUCCESS);
    }
    let task = Task::parse(env::args().skip(1))?;
    let here = Setting::here()?;
    let now = count()?;
    if let Task::Keep(path) = &task {
        kept::write(path, &here, &now)?;
    }
    let Some(base) = find_base(task, &here)? else {
        for (name, count) in now {
            println!("{name:44} {count:>10.1}");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let wrong = kept::compare(&base, &now);
    if wrong.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("\n{}", wrong.join("\n"));
    eprintln!("if this is meant: cargo bench --bench counts -- --keep, and say why in the commit");
    Ok(ExitCode::FAILURE)
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}
