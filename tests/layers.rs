//! The layers of `src`: a file uses its own floor and those below, never one above.
//!
//! `layers/floors.rs` has the floors, from the ground up, and what lies on each. An **arrow** leads
//! from a file to the file that defines what it mentions. The judge finds arrows in every path:
//! after `use`, in expressions, types, patterns, attributes, and among the tokens of macros. It
//! follows re-exports and stars to the item: `crate::Pool` leads to `src/pool/mod.rs`. A path ends
//! at the first item that is no module; a module alone is only a way, and makes no arrow. What a
//! re-export takes from another crate belongs to the file with the re-export. A path whose end is
//! not found is an error, so that nothing is passed over.
//!
//! Not counted:
//!
//! - Code for tests, fuzzing and the README. All other `cfg`s count with both of their sides: the
//!   stand-ins for loom, and those for other systems.
//! - A re-export of what lies in the module's own folder, on the same floor. It is a table of
//!   contents, as `mod` is. If the file uses the name itself, that counts.
//! - Links in documentation.
//! - What has no path: methods, and types that are inferred. A file that calls a method got the
//!   value from somewhere, and that has a path.
//!
//! A **circle of files** is a largest set of files in which arrows lead from each to every other,
//! perhaps by way of others in the set (a strongly connected component with more than one member).
//! Arrows that go up are not counted in it: each of them is in the list of exceptions by itself, so
//! a circle lies on one floor.
//! A **circle of folders** is the same for all that lies directly in `src`, files and folders
//! alike, and for the folders inside one folder: one uses another if any of its files does.
//!
//! `layers/exceptions.txt` has what the code does against this: the arrows that go up, how many
//! members the largest circles have, and how many files are in circles of more than three. It may
//! only shrink. An arrow that is not in it fails, and so does a line that no arrow needs any more,
//! a count that is larger, and one that is smaller.
//! `MANYHANDS_LAYERS=shrink cargo test --test layers` takes out what is no longer needed, and never
//! puts anything in. `cargo test --test layers -- --nocapture` counts the arrows up by floors, and
//! tells all circles.

#[path = "layers/mod.rs"]
mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{env, fs};

use judge::{FLOORS, List, Verdict, graph, judge, shrunk};

/// The list of exceptions, below the crate's folder.
const LIST: &str = "tests/layers/exceptions.txt";

#[test]
fn arrows_go_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = BTreeMap::new();
    read(&root.join("src"), "", &mut sources);
    let graph = graph(sources, foreign(root));
    let text = fs::read_to_string(root.join(LIST)).unwrap();
    let mut verdict = judge(&graph, FLOORS, &List::read(&text));
    tell(&verdict);

    if env::var("MANYHANDS_LAYERS").is_ok_and(|wish| wish == "shrink") {
        let text = shrunk(&text, &verdict.stale, verdict.counts);
        verdict = judge(&graph, FLOORS, &List::read(&text));
        fs::write(root.join(LIST), text).unwrap();
    }
    assert!(
        verdict.complaints.is_empty(),
        "the layers of src do not hold. {LIST} is the list of exceptions; \
         `MANYHANDS_LAYERS=shrink cargo test --test layers` takes out of it what is not needed any \
         more\n\n{}\n",
        verdict.complaints.join("\n\n")
    );
}

/// Reads all Rust files below `folder`, by their path below `src`.
fn read(folder: &Path, name: &str, sources: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read(&entry.path(), &format!("{name}/"), sources);
        } else if entry.path().extension().is_some_and(|end| end == "rs") {
            sources.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

/// Returns the names of the crates that a path may begin with: the compiler's, and those in
/// `Cargo.toml`.
fn foreign(root: &Path) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let mut names = BTreeSet::from(["std", "core", "alloc"].map(str::to_owned));
    let mut lists = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            lists = line.ends_with("dependencies]");
        } else if lists && let Some((name, _)) = line.split_once('=') {
            names.insert(name.trim().replace('-', "_"));
        }
    }
    names
}

/// Prints what goes up, by floors, and the circles.
fn tell(verdict: &Verdict) {
    for ((low, high), count) in &verdict.up {
        println!(
            "{count:3} up from `{}` to `{}`",
            FLOORS[*low].0, FLOORS[*high].0
        );
    }
    for (what, circles) in [
        ("files", &verdict.circles),
        ("folders", &verdict.folder_circles),
    ] {
        for circle in circles {
            println!("a circle of {} {what}: {}", circle.len(), circle.join(" "));
        }
    }
}
