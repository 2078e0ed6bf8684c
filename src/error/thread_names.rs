//! The names of threads in a message.

/// How many different names a message has.
const MOST: usize = 5;

/// Returns how many threads there are, with their names: `3 threads (blas ×2, timer)`.
pub(crate) fn listed(names: &[String]) -> String {
    let mut different: Vec<(&str, usize)> = Vec::new();
    for name in names {
        match different.iter_mut().find(|(known, _)| known == name) {
            Some((_, count)) => *count += 1,
            None => different.push((name, 1)),
        }
    }
    let shown = different
        .iter()
        .take(MOST)
        .map(|(name, count)| match count {
            1 => (*name).to_owned(),
            count => format!("{name} ×{count}"),
        });
    let mut list = shown.collect::<Vec<_>>().join(", ");
    if different.len() > MOST {
        list.push_str(", …");
    }
    match names.len() {
        1 => format!("1 thread ({list})"),
        count => format!("{count} threads ({list})"),
    }
}

/// Returns the same with its verb.
pub(super) fn running(names: &[String]) -> String {
    let verb = if names.len() == 1 { "runs" } else { "run" };
    format!("{} {verb}", listed(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b118_threads_are_named_and_counted() {
        let of =
            |names: &[&str]| running(&names.iter().map(|&name| name.into()).collect::<Vec<_>>());
        assert_eq!(of(&["tokio-rt"]), "1 thread (tokio-rt) runs");
        assert_eq!(of(&["a", "b", "a"]), "3 threads (a ×2, b) run");
        let many = of(&["a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!(many, "7 threads (a, b, c, d, e, …) run");
    }
}
