//! What a text that names no engine was probably meant to say.

/// The names of the engines.
const NAMES: [&str; 4] = ["serial", "threads", "processes", "forked"];

/// Words of other libraries for the same.
const OTHER_WORDS: [(&str, &str); 6] = [
    ("sequential", "serial"),
    ("multithreading", "threads"),
    ("threadpool", "threads"),
    ("multiprocessing", "processes"),
    ("spawn", "processes"),
    ("fork", "forked"),
];

/// Returns what stands between the text and what was expected: what is wrong with it, where that
/// can be told.
pub(super) fn what_is_wrong(text: &str) -> String {
    let (name, count) = parts(text);
    let Some(meant) = meant(&name) else {
        return ". ".to_owned();
    };
    if meant == "serial" {
        // It has one worker, so a number is part of what is wrong.
        return ": did you mean serial? ".to_owned();
    }
    match count {
        Some(count) if is_number(count) => format!(": did you mean {meant}:{count}? "),
        Some(count) => format!(": {count:?} is no number of workers. "),
        None => format!(": did you mean {meant}? "),
    }
}

/// Returns the end of the sentence on what was expected: what N is, if a number was given.
pub(super) fn meaning_of_n(text: &str) -> &'static str {
    match parts(text).1 {
        Some(count) if !is_number(count) => ", where N is a whole number from 1 on",
        _ => "",
    }
}

fn parts(text: &str) -> (String, Option<&str>) {
    let (name, count) = match text.split_once(':') {
        Some((name, count)) => (name, Some(count.trim())),
        None => (text, None),
    };
    (name.trim().to_lowercase(), count)
}

fn is_number(count: &str) -> bool {
    count.parse::<usize>().is_ok()
}

/// Returns the engine that a name comes close to.
fn meant(name: &str) -> Option<&'static str> {
    let other = OTHER_WORDS.iter().find(|(word, _)| *word == name);
    if let Some((_, engine)) = other {
        return Some(engine);
    }
    let nearest = NAMES.iter().min_by_key(|engine| distance(name, engine))?;
    let is_near = distance(name, nearest) <= 2;
    is_near.then_some(nearest)
}

/// Returns how many letters must be added, removed or replaced to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    // The distances from what has been read of `one` to each beginning of `other`.
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (read, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = read + 1;
        for (at, &wanted) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != wanted);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use crate::error::PoolError;

    #[test]
    fn b117_a_text_that_names_no_engine_is_told_what_was_meant() {
        const EXPECTED: &str = "Expected serial, threads[:N], processes[:N] or forked[:N]";
        const NUMBER: &str = ", where N is a whole number from 1 on";
        for (text, wrong, end) in [
            ("thread:2", ": did you mean threads:2? ", ""),
            ("thread", ": did you mean threads? ", ""),
            ("Process : 4", ": did you mean processes:4? ", ""),
            ("fork:3", ": did you mean forked:3? ", ""),
            ("forkd", ": did you mean forked? ", ""),
            ("multiprocessing:8", ": did you mean processes:8? ", ""),
            ("serial:4", ": did you mean serial? ", ""),
            ("sereal", ": did you mean serial? ", ""),
            ("threads:x", ": \"x\" is no number of workers. ", NUMBER),
            ("threads:-1", ": \"-1\" is no number of workers. ", NUMBER),
            ("threads:", ": \"\" is no number of workers. ", NUMBER),
            ("fibers:3", ". ", ""),
            ("", ". ", ""),
            ("ürgs", ". ", ""),
        ] {
            let text = text.to_owned();
            let expected = format!("unknown engine {text:?}{wrong}{EXPECTED}{end}");
            assert_eq!(PoolError::UnknownEngine { text }.to_string(), expected);
        }
    }
}
