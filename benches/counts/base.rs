//! Counts another commit, where the kept counts are of other versions.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

use crate::kept::{self, Counts};

/// Returns the commit that last changed the kept counts.
pub(crate) fn commit_of_kept() -> io::Result<String> {
    let path = kept::path();
    let mut git = Command::new("git");
    git.current_dir(env!("CARGO_MANIFEST_DIR"));
    git.args(["log", "-1", "--format=%H", "--"]).arg(&path);
    let output = git.output()?;
    let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || commit.is_empty() {
        let reason = "git knows no commit of the kept counts";
        return Err(io::Error::other(reason));
    }
    Ok(commit)
}

/// Builds a commit in a clone of its own and has it count.
pub(crate) fn count(commit: &str) -> io::Result<Counts> {
    let clone = Clone::new()?;
    let here = env!("CARGO_MANIFEST_DIR");
    let mut git = Command::new("git");
    git.args(["clone", "--quiet", "--shared", "--no-checkout", here]);
    run(git.arg(&clone.0))?;
    let mut git = Command::new("git");
    git.current_dir(&clone.0);
    run(git.args(["checkout", "--quiet", "--detach", commit]))?;
    let counted = clone.0.join("counted.txt");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&clone.0);
    cargo.args(["bench", "--quiet", "--locked", "--bench", "counts", "--"]);
    cargo.arg(format!("--keep={}", counted.display()));
    // It prints what it writes.
    cargo.stdout(Stdio::null());
    // What both depend on is there already.
    if let Some(target) = target()? {
        cargo.env("CARGO_TARGET_DIR", target);
    }
    run(&mut cargo)?;
    Ok(kept::read(&counted)?.1)
}

/// The target directory in which this executable lies, as `release/deps/counts-…`.
fn target() -> io::Result<Option<PathBuf>> {
    let executable = env::current_exe()?;
    Ok(executable.ancestors().nth(3).map(Path::to_owned))
}

fn run(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{command:?}: {status}")))
}

/// A clone of the repository, gone with this value.
struct Clone(PathBuf);

impl Clone {
    fn new() -> io::Result<Self> {
        let path = env::temp_dir().join(format!("counts-base-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
