//! Counts the words in all files of a directory and below it, on any engine.
//!
//! Run it with `cargo run --release --example word_count -- [DIRECTORY] [ENGINE]`. By default it
//! counts this crate's own `docs`, on processes. Other engines are `serial`, `threads:4`,
//! `forked:4` and so on. A file that cannot be read, or is not text, is reported and not counted.

mod common;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use common::Arguments;
use serde::{Deserialize, Serialize};

const USAGE: &str = "word_count [DIRECTORY] [ENGINE]

DIRECTORY is this crate's docs by default.
ENGINE is serial, threads[:N], processes[:N] or forked[:N], with N workers; processes by default.";

/// What is known of some files: of one when it has been read, of all when everything is merged.
#[derive(Default, Serialize, Deserialize)]
struct Counts {
    files: u64,
    words: BTreeMap<String, u64>,
    /// Files that were not counted, and why.
    failed: Vec<(OsString, String)>,
}

/// Counts one file, on a worker. It takes an `OsString`, because a path need not be UTF-8 and
/// serde's `PathBuf` must.
fn count(path: OsString) -> Counts {
    let mut counts = Counts::default();
    match fs::read_to_string(&path) {
        Err(error) => counts.failed.push((path, error.to_string())),
        Ok(text) => {
            counts.files = 1;
            for word in text.split(|c: char| !c.is_alphabetic()) {
                if !word.is_empty() {
                    *counts.words.entry(word.to_lowercase()).or_default() += 1;
                }
            }
        }
    }
    counts
}

/// Makes one of two, on the workers as well.
fn merge(mut left: Counts, right: Counts) -> Counts {
    left.files += right.files;
    for (word, count) in right.words {
        *left.words.entry(word).or_default() += count;
    }
    left.failed.extend(right.failed);
    left
}

/// Lists the files in `directory` and below it. A link is taken for a file, so that none leads
/// round in a circle.
fn list(directory: &Path, files: &mut Vec<PathBuf>, failed: &mut Vec<(OsString, String)>) {
    let mut entries = || -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                list(&entry.path(), files, failed);
            } else if kind.is_file() || kind.is_symlink() {
                files.push(entry.path());
            }
        }
        Ok(())
    };
    if let Err(error) = entries() {
        failed.push((directory.into(), error.to_string()));
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = Arguments::new(USAGE);
    let directory = arguments
        .word()
        .unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/docs").into());
    let pool = arguments.pool();
    arguments.end();

    let (mut files, mut failed) = (Vec::new(), Vec::new());
    list(Path::new(&directory), &mut files, &mut failed);
    // The system lists them in any order.
    files.sort();

    let paths = files.into_iter().map(PathBuf::into_os_string);
    let counted = pool.map_reduce(count, merge, paths)?;
    let counts = counted.unwrap_or_default();
    failed.extend(counts.failed);

    let total: u64 = counts.words.values().sum();
    let different = counts.words.len();
    println!(
        "{} files, {total} words, {different} different",
        counts.files
    );
    let mut top: Vec<_> = counts.words.into_iter().collect();
    // Words that are as frequent stay in the order of the alphabet.
    top.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (word, count) in top.iter().take(10) {
        println!("{count:8} {word}");
    }
    for (path, reason) in failed {
        println!("not counted: {}: {reason}", Path::new(&path).display());
    }
    Ok(pool.close()?)
}
