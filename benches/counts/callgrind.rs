//! Runs one program under callgrind and reads what was counted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

use crate::programs::{Blocks, Program, Row, Side};
use crate::rest;

/// The variable that tells this executable which program it is.
pub(crate) const PROGRAM: &str = "COUNTED_PROGRAM";

/// Returns the instructions of one operation, for each row of the program.
pub(crate) fn count(program: &Program) -> io::Result<Vec<f64>> {
    let folder = Folder::new()?;
    let path = |kind: &str| folder.0.join(format!("%p.{kind}")).display().to_string();
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--quiet", "--trace-children=yes"])
        .args(["--separate-threads=yes", "--combine-dumps=yes"])
        .arg("--dump-before=count_mark")
        .arg(format!("--callgrind-out-file={}", path("out")))
        .arg(format!("--log-file={}", path("log")))
        .arg(env::current_exe()?)
        // Variables that change what glibc or this crate does would change the counts.
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env(PROGRAM, program.name)
        // What an allocation costs depends on what was freed before, unless a cache takes all of
        // it, and on the thread that made it, unless all threads share one arena.
        .env(
            "GLIBC_TUNABLES",
            "glibc.malloc.tcache_count=65535:glibc.malloc.arena_max=1",
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let (Some(questions), Some(answers)) = (child.stdout.take(), child.stdin.take()) else {
        unreachable!("both are pipes");
    };
    let answered = rest::answer(questions, answers);
    if answered.is_err() {
        // Its worker ends with it.
        child.kill()?;
    }
    let status = child.wait()?;
    if answered.is_err() || !status.success() {
        let logs = folder.read("log")?.into_values().collect::<String>();
        let reason = answered.err().map(|error| error.to_string());
        let reason = reason.unwrap_or_default();
        let name = program.name;
        let reason = format!("{name} under valgrind: {status} {reason}\n{logs}");
        return Err(io::Error::other(reason));
    }
    let outputs = folder.read("out")?;
    let mut counts = Vec::new();
    for row in program.rows {
        let is_program = |pid: &u32| *pid == child.id();
        let is_wanted = |pid: &u32| is_program(pid) != matches!(row.side, Side::Worker);
        let mut wanted = outputs.iter().filter(|(pid, _)| is_wanted(pid));
        let (Some((_, output)), None) = (wanted.next(), wanted.next()) else {
            return Err(io::Error::other(format!("{}: not one process", row.name)));
        };
        counts.push(per_operation(row, program.blocks, &Totals::parse(output)?)?);
    }
    Ok(counts)
}

/// Returns the difference between the larger and the smaller blocks, for each operation more. Of
/// each size the middle block counts. In a block that is not like most others, another thread has
/// done a part of the work, or this thread did something else besides.
fn per_operation(row: &Row, blocks: Blocks, totals: &Totals) -> io::Result<f64> {
    let thread = match row.side {
        Side::Caller | Side::Worker => 1,
        Side::Thread => 2,
    };
    let totals = totals.0.get(&thread).map_or(&[][..], Vec::as_slice);
    let middle = |size: usize| {
        let mut sorted = Vec::with_capacity(blocks.rounds);
        for round in 1..=blocks.rounds {
            let block = 2 * (row.operation * (blocks.rounds + 1) + round) + size;
            // A thread's first total is what came before its first mark. From then on every other
            // one is a block.
            let total = totals.get(2 * block + 1);
            let missing = || io::Error::other(format!("{}: a block is missing", row.name));
            sorted.push(*total.ok_or_else(missing)?);
        }
        sorted.sort_unstable();
        io::Result::Ok(sorted[blocks.rounds / 2] as f64)
    };
    let [few, many] = blocks.sizes;
    Ok((middle(1)? - middle(0)?) / (many - few) as f64)
}

/// The totals of each thread, in the order of its marks.
#[derive(Default)]
struct Totals(HashMap<u64, Vec<u64>>);

impl Totals {
    fn parse(output: &str) -> io::Result<Self> {
        let mut totals = Self::default();
        let mut thread = 0;
        for line in output.lines() {
            let Some((field, value)) = line.split_once(": ") else {
                continue;
            };
            let number = || {
                let bad = |_| io::Error::other(format!("callgrind wrote: {line}"));
                value.trim().parse::<u64>().map_err(bad)
            };
            match field {
                "thread" => thread = number()?,
                "totals" => totals.0.entry(thread).or_default().push(number()?),
                _ => {}
            }
        }
        Ok(totals)
    }
}

/// A folder for what valgrind writes, gone with this value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        let path = env::temp_dir().join(format!("counts-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Reads the files of this kind. Each is named by the process that it is about.
    fn read(&self, kind: &str) -> io::Result<HashMap<u32, String>> {
        let mut files = HashMap::new();
        for file in fs::read_dir(&self.0)? {
            let path = file?.path();
            if path.extension().is_some_and(|it| it == kind)
                && let Some(pid) = process_of(&path)
            {
                files.insert(pid, fs::read_to_string(path)?);
            }
        }
        Ok(files)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn process_of(path: &Path) -> Option<u32> {
    path.file_stem()?.to_str()?.parse().ok()
}
