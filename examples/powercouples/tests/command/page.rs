//! `docs/powercouples.md`: its code is the code, its commands run, its links lead somewhere.
//!
//! An HTML comment before a block says what it shows. `<!-- file: PATH -->` is the whole of a file
//! without its leading doc comment. `<!-- change: PATH -->` is a change to one, as an exercise.
//! Paths start at the root of the repository.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{VARIANTS, run, run_with_stdin, scratch};

/// A fenced block of the page.
#[derive(Debug)]
struct Block {
    /// The comment on the line before it: what it shows and of which file.
    marker: Option<(String, String)>,
    language: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn page() -> String {
    fs::read_to_string(root().join("docs/powercouples.md")).unwrap()
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = page.split_inclusive('\n');
    let mut before = "";
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            blocks.push(Block {
                marker: marker(before),
                language: language.trim_end().to_owned(),
                text: lines
                    .by_ref()
                    .take_while(|line| line.trim_end() != "```")
                    .collect(),
            });
        }
        before = line;
    }
    blocks
}

fn marker(line: &str) -> Option<(String, String)> {
    let comment = line.trim().strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    let (kind, path) = comment.split_once(": ")?;
    Some((kind.to_owned(), path.to_owned()))
}

/// The blocks with a marker of this kind: the path in it, and the text.
fn marked<'b>(blocks: &'b [Block], kind: &str) -> Vec<(&'b str, &'b str)> {
    let marked = blocks.iter().filter_map(|block| match &block.marker {
        Some((found, path)) if found == kind => Some((path.as_str(), block.text.as_str())),
        _ => None,
    });
    marked.collect()
}

/// Returns a file of the repository without the doc comment that it opens with, and without the
/// blank line after that.
fn without_doc_comment(path: &str) -> String {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let is_doc = |line: &&str| line.starts_with("//!");
    let code: String = text.split_inclusive('\n').skip_while(is_doc).collect();
    code.strip_prefix('\n').unwrap_or(&code).to_owned()
}

#[test]
fn every_file_shown_is_the_file() {
    let page = page();
    let blocks = blocks(&page);
    for (path, shown) in marked(&blocks, "file") {
        let file = without_doc_comment(path);
        assert!(
            shown == file,
            "docs/powercouples.md shows {path} as it is not; it is\n{file}"
        );
    }
}

#[test]
fn every_variant_is_shown_in_the_order_of_the_program() {
    const VARIANTS_AT: &str = "examples/powercouples/src/variants";
    let page = page();
    let blocks = blocks(&page);
    let shown: Vec<&str> = marked(&blocks, "file")
        .into_iter()
        .filter_map(|(path, _)| path.strip_prefix(VARIANTS_AT)?.strip_prefix('/'))
        .collect();
    let expected = VARIANTS.map(|name| format!("{}.rs", name.replace('-', "_")));
    assert_eq!(shown, expected);
    // And they are all there are.
    let files: BTreeSet<String> = fs::read_dir(root().join(VARIANTS_AT))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "mod.rs")
        .collect();
    assert_eq!(files, BTreeSet::from(expected));
}

#[test]
fn no_block_of_rust_goes_unchecked() {
    for block in blocks(&page()) {
        let kind = block.marker.as_ref().map(|(kind, _)| kind.as_str());
        match block.language.as_str() {
            "rust" => assert_eq!(kind, Some("file"), "{block:?}"),
            "diff" => assert_eq!(kind, Some("change"), "{block:?}"),
            "sh" | "text" => assert_eq!(kind, None, "{block:?}"),
            _ => panic!("a block of a language that no test here knows: {block:?}"),
        }
    }
}

/// What an exercise takes out, or shows around that, has to be there.
#[test]
fn every_change_fits_its_file() {
    let page = page();
    let blocks = blocks(&page);
    for (path, change) in marked(&blocks, "change") {
        let file = without_doc_comment(path);
        for line in change.lines() {
            let (sign, rest) = line.split_at_checked(1).unwrap_or_default();
            match sign {
                "-" | " " => assert!(
                    file.lines().any(|found| found == rest),
                    "{path} has no line {rest:?}"
                ),
                "+" => {}
                _ => panic!("neither taken out nor put in nor kept: {line:?}"),
            }
        }
    }
}

/// The arguments of every command of the page that runs the program.
fn commands(page: &str) -> Vec<Vec<&str>> {
    const START: &str = "cargo run --release -p powercouples";
    let mut commands = Vec::new();
    for (at, _) in page.match_indices("cargo run") {
        let end = page[at..]
            .find(['\n', '`', '|', '>', '<', '&', ';', '#'])
            .map_or(page.len(), |end| at + end);
        let command = page[at..end].trim_end();
        let rest = command
            .strip_prefix(START)
            .unwrap_or_else(|| panic!("does not start with {START:?}: {command}"));
        let mut words = rest.split_whitespace();
        assert!(
            matches!(words.next(), None | Some("--")),
            "between the package and its arguments stands --: {command}"
        );
        commands.push(words.collect());
    }
    commands
}

#[test]
fn every_command_is_understood() {
    let page = page();
    let commands = commands(&page);
    assert!(!commands.is_empty());
    for arguments in commands {
        // As it stands, but without the work: --help is answered after what is before it has been
        // read.
        let ended = run(&[&arguments[..], &["--help"]].concat());
        assert_eq!(ended.status, Some(0), "{arguments:?}: {ended:?}");

        // And in earnest, with little work.
        let cheap = cheap(&arguments);
        let cheap: Vec<&str> = cheap.iter().map(String::as_str).collect();
        let ended = run_with_stdin(&cheap, b"3,5\n2,7\n");
        assert_eq!(ended.status, Some(0), "{cheap:?}: {ended:?}");
    }
}

/// The same flags, with less to do and files elsewhere.
fn cheap(arguments: &[&str]) -> Vec<String> {
    let mut cheap = Vec::new();
    let mut has_input = false;
    let mut arguments = arguments.iter();
    while let Some(&flag) = arguments.next() {
        cheap.push(flag.to_owned());
        has_input |= flag == "--grid" || flag == "--input";
        let Some(&value) = arguments.next() else {
            continue;
        };
        cheap.push(match flag {
            "--grid" => "3".to_owned(),
            "--input" => "-".to_owned(),
            "--repeats" => "1".to_owned(),
            "--json" | "--plot" => {
                let path = scratch(value).into_os_string();
                path.into_string().unwrap()
            }
            _ => value.to_owned(),
        });
    }
    if !has_input {
        cheap.extend(["--grid", "3"].map(str::to_owned));
    }
    cheap
}

#[test]
fn every_link_leads_to_a_file_or_a_heading() {
    let page = page();
    let anchors: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|heading| anchor(heading.trim_start_matches('#').trim()))
        .collect();
    let targets: Vec<&str> = page
        .match_indices("](")
        .map(|(at, opening)| {
            let rest = &page[at + opening.len()..];
            &rest[..rest.find(')').expect("a link has an end")]
        })
        .collect();
    assert!(!targets.is_empty());
    let leads_nowhere = |target: &&str| match target.strip_prefix('#') {
        Some(heading) => !anchors.contains(heading),
        None => !target.contains("://") && !root().join("docs").join(target).is_file(),
    };
    let broken: Vec<&str> = targets.into_iter().filter(leads_nowhere).collect();
    assert!(broken.is_empty(), "these lead nowhere: {broken:?}");
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}
