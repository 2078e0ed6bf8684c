//! The list of exceptions: what the code does against the rules.

use std::collections::BTreeSet;

/// What is counted of circles.
pub(crate) const COUNTS: [&str; 3] = [
    "largest circle of files",
    "files in circles of more than three",
    "largest circle of folders",
];

/// What the list allows, and not more.
#[derive(Default)]
pub(crate) struct List {
    /// Arrows that go up.
    pub(crate) arrows: BTreeSet<(String, String)>,
    /// By place in [`COUNTS`].
    pub(crate) counts: [usize; COUNTS.len()],
    /// What is wrong with its lines.
    pub(crate) problems: Vec<String>,
}

/// What one line says, without the reason after `#`.
enum Line<'a> {
    /// The place in [`COUNTS`], and the number.
    Count(usize, usize),
    Arrow(&'a str, &'a str),
    Nothing,
    Unknown,
}

fn parse(line: &str) -> Line<'_> {
    let line = line.split('#').next().unwrap_or_default().trim();
    if let Some((from, to)) = line.split_once(" -> ") {
        return Line::Arrow(from.trim(), to.trim());
    }
    if line.is_empty() {
        return Line::Nothing;
    }
    let count = line.split_once(':').and_then(|(key, number)| {
        let place = COUNTS.iter().position(|known| *known == key)?;
        Some(Line::Count(place, number.trim().parse().ok()?))
    });
    count.unwrap_or(Line::Unknown)
}

impl List {
    /// Reads a list.
    pub(crate) fn read(text: &str) -> Self {
        let mut list = Self::default();
        for (number, line) in (1..).zip(text.lines()) {
            match parse(line) {
                Line::Count(place, count) => list.counts[place] = count,
                Line::Arrow(from, to) => {
                    let arrow = (from.to_owned(), to.to_owned());
                    if list.arrows.last().is_some_and(|last| *last >= arrow) {
                        let problem = format!("line {number} of the list is not in order: {line}");
                        list.problems.push(problem);
                    }
                    list.arrows.insert(arrow);
                }
                Line::Nothing => {}
                Line::Unknown => {
                    let problem = format!("line {number} of the list cannot be read: {line}");
                    list.problems.push(problem);
                }
            }
        }
        list
    }
}

/// Returns the text of a list without the arrows in `gone`, and with these counts where they are
/// smaller. Reasons stay.
pub(crate) fn shrunk(
    text: &str,
    gone: &BTreeSet<(String, String)>,
    counts: [usize; COUNTS.len()],
) -> String {
    let mut kept = Vec::new();
    for line in text.lines() {
        match parse(line) {
            Line::Arrow(from, to) if gone.contains(&(from.to_owned(), to.to_owned())) => {}
            Line::Count(place, count) if counts[place] < count => {
                kept.push(format!("{}: {}\n", COUNTS[place], counts[place]));
            }
            _ => kept.push(format!("{line}\n")),
        }
    }
    kept.concat()
}
