//! Holds the arrows against the floors and the list of exceptions.

use std::collections::{BTreeMap, BTreeSet};

use super::circles::{circles, of_folders};
use super::graph::{Arrow, Graph};
use super::list::{COUNTS, List};

/// A floor: its name and what lies on it, by path below `src` without `.rs`. A folder stands for
/// all that is in it and has no longer entry.
pub(crate) type Floor = (&'static str, &'static [&'static str]);

/// What the judge found.
#[derive(Default)]
pub(crate) struct Verdict {
    /// What is wrong, each with what to do.
    pub(crate) complaints: Vec<String>,
    /// Lines of the list that no arrow needs any more.
    pub(crate) stale: BTreeSet<(String, String)>,
    /// How many arrows go up, by floors.
    pub(crate) up: BTreeMap<(usize, usize), usize>,
    /// By place in [`COUNTS`].
    pub(crate) counts: [usize; COUNTS.len()],
    pub(crate) circles: Vec<Vec<String>>,
    pub(crate) folder_circles: Vec<Vec<String>>,
}

/// Holds `graph` against `floors`, from the ground up, and the `list` of exceptions.
pub(crate) fn judge(graph: &Graph, floors: &[Floor], list: &List) -> Verdict {
    let mut verdict = Verdict {
        stale: list.arrows.clone(),
        ..Verdict::default()
    };
    verdict.complaints.extend(graph.problems.iter().cloned());
    verdict.complaints.extend(list.problems.iter().cloned());
    let floor_of = verdict.floors(graph, floors);
    let name = |floor: usize| floors[floor].0;

    let mut counted = Vec::new();
    for ((from, to), arrow) in &graph.arrows {
        let (Some(&low), Some(&high)) = (floor_of.get(from), floor_of.get(to)) else {
            continue;
        };
        // A table of contents is no use of what lies on the same floor.
        if arrow.uses.is_empty() && low == high {
            continue;
        }
        if high <= low {
            counted.push((from.as_str(), to.as_str()));
            continue;
        }
        *verdict.up.entry((low, high)).or_default() += 1;
        if !verdict.stale.remove(&(from.clone(), to.clone())) {
            verdict.complaints.push(format!(
                "an arrow goes up, from `{}` to `{}`:\n{}\n    move what {from} needs of {to} \
                 down to `{}`, or {from} up; if it must stay for now, the list has to say\n    \
                 {from} -> {to}",
                name(low),
                name(high),
                places(from, to, arrow),
                name(low),
            ));
        }
    }
    for (from, to) in &verdict.stale {
        verdict.complaints.push(format!(
            "no arrow goes up from {from} to {to} any more: take the line out of the list\n    \
             {from} -> {to}"
        ));
    }

    verdict.circles = owned(circles(counted.iter().copied()));
    let files = graph.files.iter().map(String::as_str);
    verdict.folder_circles = owned(of_folders(files, counted.iter().copied()));
    verdict.count(list);
    verdict
}

impl Verdict {
    /// Counts the circles, and holds the counts against those of the list.
    fn count(&mut self, list: &List) {
        let largest = |circles: &[Vec<String>]| circles.first().map_or(0, Vec::len);
        let members = self.circles.iter().map(Vec::len);
        self.counts = [
            largest(&self.circles),
            members.filter(|members| *members > 3).sum(),
            largest(&self.folder_circles),
        ];
        for (place, count) in self.counts.into_iter().enumerate() {
            let (what, allowed) = (COUNTS[place], list.counts[place]);
            if count > allowed {
                let circles = match place {
                    0 => &self.circles[..1],
                    1 => &self.circles[..self.circles.partition_point(|circle| circle.len() > 3)],
                    _ => &self.folder_circles[..1],
                };
                let circles = circles.iter().map(|circle| circle.join(" "));
                self.complaints.push(format!(
                    "{what}: {count}, and {allowed} are allowed. Cut an arrow of one of these \
                     circles:\n    {}",
                    circles.collect::<Vec<_>>().join("\n    ")
                ));
            } else if count < allowed {
                self.complaints.push(format!(
                    "{what}: only {count} any more. Write this number into the list, which says \
                     {allowed}"
                ));
            }
        }
    }

    /// Returns the floor of each file. Complains of files that have none, and of entries without
    /// files.
    fn floors(&mut self, graph: &Graph, floors: &[Floor]) -> BTreeMap<String, usize> {
        let mut unused: BTreeSet<&str> = floors
            .iter()
            .flat_map(|(_, entries)| entries.iter().copied())
            .collect();
        let mut floor_of = BTreeMap::new();
        for file in &graph.files {
            let entry = floors
                .iter()
                .enumerate()
                .flat_map(|(floor, (_, entries))| entries.iter().map(move |entry| (floor, *entry)))
                .filter(|(_, entry)| holds(entry, file))
                .max_by_key(|(_, entry)| entry.len());
            if let Some((floor, entry)) = entry {
                unused.remove(entry);
                floor_of.insert(file.clone(), floor);
            } else {
                self.complaints.push(format!(
                    "src/{file} is on no floor: give it one in tests/layers/floors.rs"
                ));
            }
        }
        for entry in unused {
            self.complaints.push(format!(
                "no file is left for `{entry}`: take it out of tests/layers/floors.rs"
            ));
        }
        floor_of
    }
}

/// Returns whether an entry of a floor is the file, or a folder that has it.
fn holds(entry: &str, file: &str) -> bool {
    file.strip_prefix(entry)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

/// Writes where an arrow comes from, one place a line.
fn places(from: &str, to: &str, arrow: &Arrow) -> String {
    let mut places: Vec<_> = arrow.uses.iter().chain(&arrow.contents).collect();
    places.sort();
    places.dedup();
    places
        .iter()
        .map(|(line, path)| format!("    src/{from}:{line}: `{path}` is in src/{to}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn owned(circles: Vec<Vec<&str>>) -> Vec<Vec<String>> {
    let owned = |members: Vec<&str>| members.into_iter().map(str::to_owned).collect();
    circles.into_iter().map(owned).collect()
}
