//! Circles: files, or folders, each of which uses all others of its circle, perhaps by way of them.

use std::collections::{BTreeMap, BTreeSet};

type Edges<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// Returns the circles with more than one member, largest first.
pub(crate) fn circles<'a>(arrows: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Vec<&'a str>> {
    let (mut forward, mut backward) = (Edges::new(), Edges::new());
    for (from, to) in arrows {
        forward.entry(from).or_default().insert(to);
        backward.entry(to).or_default().insert(from);
    }
    // Kosaraju's way: what is left last going forward begins each circle going backward.
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for node in forward.keys() {
        walk(node, &forward, &mut seen, &mut order);
    }
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
    for node in order.iter().rev() {
        let mut members = Vec::new();
        walk(node, &backward, &mut seen, &mut members);
        if members.len() > 1 {
            members.sort_unstable();
            circles.push(members);
        }
    }
    circles.sort_by_key(|members| usize::MAX - members.len());
    circles
}

/// Adds to `order` what can be reached from `node` and was not seen, each after what it leads to.
fn walk<'a>(
    node: &'a str,
    edges: &Edges<'a>,
    seen: &mut BTreeSet<&'a str>,
    order: &mut Vec<&'a str>,
) {
    if seen.insert(node) {
        for next in edges.get(node).into_iter().flatten() {
            walk(next, edges, seen, order);
        }
        order.push(node);
    }
}

/// Returns the circles of folders with more than one member: of all that lies directly in `src`,
/// and of the folders that lie in the same folder. A file `a.rs` belongs to the folder `a`, if
/// there is one; a file directly in `src` is a folder of its own.
pub(crate) fn of_folders<'a>(
    files: impl Iterator<Item = &'a str>,
    arrows: impl Iterator<Item = (&'a str, &'a str)>,
) -> Vec<Vec<&'a str>> {
    let folders: BTreeSet<_> = files
        .filter_map(|file| file.rsplit_once('/'))
        .map(|(folder, _)| folder)
        .collect();
    let between: BTreeSet<_> = arrows
        .filter_map(|(from, to)| part(from, to, &folders))
        .collect();
    circles(between.into_iter())
}

/// Returns the two folders at which the paths part, if both are folders.
fn part<'a>(from: &'a str, to: &'a str, folders: &BTreeSet<&str>) -> Option<(&'a str, &'a str)> {
    let shared = from
        .match_indices('/')
        .map(|(slash, _)| slash + 1)
        .rfind(|end| to.starts_with(&from[..*end]))
        .unwrap_or(0);
    let folder = |path: &'a str| match path[shared..].find('/') {
        Some(length) => Some(&path[..shared + length]),
        None => path
            .strip_suffix(".rs")
            .filter(|folder| shared == 0 || folders.contains(folder)),
    };
    let (from, to) = (folder(from)?, folder(to)?);
    (from != to).then_some((from, to))
}
