//! Where the couples come from: a grid, or text with one `a,b` on a line.
//!
//! The text is UTF-8 with lines ending in LF or CRLF. A byte order mark at its start is skipped.
//! Spaces around a number, blank lines, and comments from `#` to the end of a line mean nothing.
//! The first line that is left may be a header: `a,b` or `base,exponent`, in capitals or not, with
//! or without double quotes. Any other line that is not two numbers is an error, so that a typing
//! error in the first couple is not taken for a header.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::couple::{Couple, RANGE};

/// Where the couples come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// All couples of 1 to this number, a slowest.
    Grid(u32),
    /// A text file.
    File(PathBuf),
    /// Text on standard input.
    Stdin,
}

/// Why there are no couples.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InputError {
    /// The file, as the user called it.
    name: String,
    /// The bad line, counted from 1; `None` if the file as a whole is at fault.
    line: Option<usize>,
    reason: String,
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.name, self.reason),
            None => write!(f, "{}: {}", self.name, self.reason),
        }
    }
}

/// All couples of the source, in its order: at least one.
pub(crate) fn couples(source: &Source) -> Result<Vec<Couple>, InputError> {
    let (name, text) = match source {
        Source::Grid(n) => return Ok(grid(*n)),
        Source::File(path) => (path.display().to_string(), fs::read(path)),
        Source::Stdin => {
            let mut text = Vec::new();
            let read = io::stdin().read_to_end(&mut text);
            ("<stdin>".to_owned(), read.map(|_| text))
        }
    };
    let (line, reason) = match text
        .map_err(|error| (None, error.to_string()))
        .and_then(|text| parse(&text))
    {
        Ok(couples) => return Ok(couples),
        Err(fault) => fault,
    };
    Err(InputError { name, line, reason })
}

fn grid(n: u32) -> Vec<Couple> {
    (1..=n)
        .flat_map(|a| (1..=n).map(move |b| Couple { a, b }))
        .collect()
}

/// The couples of a text, or the line and the reason of its first fault.
fn parse(text: &[u8]) -> Result<Vec<Couple>, (Option<usize>, String)> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut couples = Vec::new();
    let mut header_may_come = true;
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let at_line = |reason| (Some(index + 1), reason);
        let line = str::from_utf8(line).map_err(|error| {
            let valid = error.valid_up_to();
            at_line(format!(
                "not UTF-8: byte 0x{:02x} in column {}",
                line[valid],
                valid + 1
            ))
        })?;
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        if !(header_may_come && is_header(line)) {
            couples.push(couple(line).map_err(at_line)?);
        }
        header_may_come = false;
    }
    if couples.is_empty() {
        // The answer names a best couple, and of none there is no best.
        return Err((None, "there are no couples in it".to_owned()));
    }
    Ok(couples)
}

fn is_header(line: &str) -> bool {
    let names = line.split(',').map(|name| {
        let name = name.trim();
        name.strip_prefix('"')
            .and_then(|name| name.strip_suffix('"'))
            .unwrap_or(name)
    });
    let names: Vec<String> = names.map(str::to_lowercase).collect();
    names == ["a", "b"] || names == ["base", "exponent"]
}

fn couple(line: &str) -> Result<Couple, String> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    match fields[..] {
        [a, b] => Ok(Couple {
            a: number("a", a)?,
            b: number("b", b)?,
        }),
        [_] => Err("expected two numbers with a comma between them, found 1 field".to_owned()),
        _ => Err(format!(
            "expected two numbers with a comma between them, found {} fields",
            fields.len()
        )),
    }
}

fn number(name: &str, field: &str) -> Result<u32, String> {
    let all_digits =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let fault = if field.is_empty() {
        return Err(format!("{name} is missing"));
    } else if all_digits(field) {
        // What does not fit is beyond the range all the more.
        match field.parse().unwrap_or(u32::MAX) {
            number if RANGE.contains(&number) => return Ok(number),
            0 => "is zero",
            _ => "is too large",
        }
    } else if field.strip_prefix('-').is_some_and(all_digits) {
        "is negative"
    } else {
        "is not a whole number written in digits"
    };
    Err(format!(
        "{name} {fault}: {}, where {} to {} are allowed",
        shortened(field),
        RANGE.start(),
        RANGE.end()
    ))
}

/// A field in quotes, with what a terminal could not show escaped.
fn shortened(field: &str) -> String {
    const LONGEST: usize = 30;
    match field.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &field[..end]),
        None => format!("{field:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &[u8]) -> Vec<(u32, u32)> {
        parse(text)
            .unwrap()
            .into_iter()
            .map(|Couple { a, b }| (a, b))
            .collect()
    }

    fn fault(text: &[u8]) -> String {
        let (line, reason) = parse(text).unwrap_err();
        line.map_or(reason.clone(), |line| format!("{line}: {reason}"))
    }

    #[test]
    fn a_grid_has_a_slowest() {
        let couples: Vec<_> = grid(2).into_iter().map(|Couple { a, b }| (a, b)).collect();
        assert_eq!(couples, [(1, 1), (1, 2), (2, 1), (2, 2)]);
    }

    #[test]
    fn spaces_blank_lines_comments_and_line_ends_mean_nothing() {
        let text =
            b"\xef\xbb\xbf# couples\r\n\r\n 2 , 3 \r\n\t\n100000,00001 # the greatest base\n7,7";
        assert_eq!(parsed(text), [(2, 3), (100_000, 1), (7, 7)]);
    }

    #[test]
    fn a_header_may_be_the_first_line_that_is_no_comment() {
        for header in ["a,b", "A, B", "base,exponent", "\"Base\" , \"Exponent\""] {
            assert_eq!(
                parsed(format!("# {header}\n\n{header}\n1,2\n").as_bytes()),
                [(1, 2)],
                "{header}"
            );
        }
    }

    #[test]
    fn other_words_and_later_headers_are_faults() {
        assert!(fault(b"x,y\n1,2\n").starts_with("1: a is not a whole number"));
        assert!(fault(b"b,a\n1,2\n").starts_with("1: a is not a whole number"));
        assert!(fault(b"1,2\na,b\n").starts_with("2: a is not a whole number"));
        assert!(fault(b"a,b\na,b\n1,2\n").starts_with("2: a is not a whole number"));
    }

    #[test]
    fn every_fault_names_its_line_and_reason() {
        let range = ", where 1 to 100000 are allowed";
        for (text, expected) in [
            (&b"1,2\n0,5\n"[..], format!("2: a is zero: \"0\"{range}")),
            (b"1,2\n\n3,-4\n", format!("3: b is negative: \"-4\"{range}")),
            (
                b"100001,1\n",
                format!("1: a is too large: \"100001\"{range}"),
            ),
            (
                b"1,99999999999999999999\n",
                format!("1: b is too large: \"99999999999999999999\"{range}"),
            ),
            (
                b"2.5,1\n",
                format!("1: a is not a whole number written in digits: \"2.5\"{range}"),
            ),
            (
                b"+2,1\n",
                format!("1: a is not a whole number written in digits: \"+2\"{range}"),
            ),
            (
                b"1,\x1b[2J\n",
                format!("1: b is not a whole number written in digits: \"\\u{{1b}}[2J\"{range}"),
            ),
            (
                b"1,2\r3,4\n",
                "1: expected two numbers with a comma between them, found 3 fields".to_owned(),
            ),
            (
                b"12\n",
                "1: expected two numbers with a comma between them, found 1 field".to_owned(),
            ),
            (
                b"1,2,\n",
                "1: expected two numbers with a comma between them, found 3 fields".to_owned(),
            ),
            (b"1,\n", "1: b is missing".to_owned()),
            (b", 1\n", "1: a is missing".to_owned()),
            (
                b"1,2\n3,\xff4\n",
                "2: not UTF-8: byte 0xff in column 3".to_owned(),
            ),
            (b"", "there are no couples in it".to_owned()),
            (b"# nothing\na,b\n", "there are no couples in it".to_owned()),
        ] {
            assert_eq!(fault(text), expected, "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a_long_field_is_shown_by_its_beginning() {
        let text = format!("{},1", "x".repeat(1_000));
        assert!(fault(text.as_bytes()).len() < 150);
    }
}
