//! The counts that are kept in the repository, what they depend on, and how others compare with
//! them.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs, io};

/// A row that grew by more than this fails.
const MOST_GROWTH: f64 = 0.10;
/// A row that changed by more than this is worth a look.
const NOTABLE: f64 = 0.02;

/// The file in the repository.
pub(crate) fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/counts/kept.txt")
}

/// What counts depend on besides the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    rustc: String,
    valgrind: String,
    libc: String,
    /// The instruction set. It decides which processor valgrind shows to the program, and so which
    /// string functions glibc takes: for each set it is one and the same, whatever the model.
    machine: String,
}

impl Setting {
    pub(crate) fn here() -> io::Result<Self> {
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        Ok(Self {
            rustc: version_of(&rustc)?,
            valgrind: version_of("valgrind")?,
            libc: version_of("ldd")?,
            machine: format!("{}{}", std::env::consts::ARCH, vectors()),
        })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rustc,
            valgrind,
            libc,
            machine,
        } = self;
        write!(f, "{rustc}; {valgrind}; {libc}; {machine}")
    }
}

/// The first line of what a tool says of its version.
fn version_of(tool: &str) -> io::Result<String> {
    let output = Command::new(tool).arg("--version").output();
    let output = output.map_err(|error| io::Error::other(format!("{tool}: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// The value of the first line of `/proc/cpuinfo` with this name.
fn processor(name: &str) -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    let line = lines.find(|(field, _)| field.trim() == name);
    line.map_or("unknown", |(_, value)| value.trim()).to_owned()
}

/// The widest vectors that valgrind knows of.
fn vectors() -> &'static str {
    let flags = processor("flags");
    let has = |flag| flags.split(' ').any(|it| it == flag);
    match (has("avx2"), has("avx")) {
        (true, _) => ", AVX2",
        (false, true) => ", AVX",
        (false, false) => "",
    }
}

/// Rows with their instructions, in order.
pub(crate) type Counts = Vec<(String, f64)>;

/// The text of the file.
pub(crate) fn write(path: &Path, setting: &Setting, counts: &Counts) -> io::Result<()> {
    let Setting {
        rustc,
        valgrind,
        libc,
        machine,
    } = setting;
    let mut text = format!(
        "# Instructions of one operation. Written by `cargo bench --bench counts -- --keep`; see \
         benches/README.md.\n\
         rustc: {rustc}\nvalgrind: {valgrind}\nlibc: {libc}\nmachine: {machine}\nprocessor: {}\n\n",
        processor("model name")
    );
    for (name, count) in counts {
        let _ = writeln!(text, "{count:>10.1}  {name}");
    }
    fs::write(path, text)
}

pub(crate) fn read(path: &Path) -> io::Result<(Setting, Counts)> {
    let text = fs::read_to_string(path)?;
    let bad = |line: &str| io::Error::other(format!("{}: {line}", path.display()));
    let field = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(": "));
        let line = lines.find(|(field, _)| *field == name);
        line.map(|(_, value)| value.to_owned())
            .ok_or_else(|| bad(&format!("no line begins with {name}")))
    };
    let setting = Setting {
        rustc: field("rustc")?,
        valgrind: field("valgrind")?,
        libc: field("libc")?,
        machine: field("machine")?,
    };
    let rows = text.lines().skip_while(|line| !line.is_empty()).skip(1);
    let rows = rows.map(|line| {
        let (count, name) = line.trim().split_once("  ").ok_or_else(|| bad(line))?;
        Ok((name.to_owned(), count.parse().map_err(|_| bad(line))?))
    });
    Ok((setting, rows.collect::<io::Result<_>>()?))
}

/// Prints the counts beside those of the base. Returns what is wrong, one line each.
pub(crate) fn compare(base: &Counts, now: &Counts) -> Vec<String> {
    let mut wrong = Vec::new();
    println!(
        "{:44} {:>10} {:>10}   change",
        "instructions of one operation", "base", "now"
    );
    for (name, count) in now {
        let Some((_, before)) = base.iter().find(|(known, _)| known == name) else {
            println!("{name:44} {:>10} {count:>10.1}", "");
            wrong.push(format!("{name}: the base does not have this row"));
            continue;
        };
        let growth = count / before - 1.0;
        let mark = if growth.abs() > NOTABLE { "  !" } else { "" };
        let percent = growth * 100.0;
        println!("{name:44} {before:>10.1} {count:>10.1} {percent:>+7.1} %{mark}");
        if growth > MOST_GROWTH {
            wrong.push(format!("{name}: grew by {percent:.1} %"));
        }
    }
    for (name, _) in base {
        if !now.iter().any(|(known, _)| known == name) {
            wrong.push(format!(
                "{name}: the base has this row, and it is not counted"
            ));
        }
    }
    wrong
}
