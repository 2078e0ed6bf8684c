//! Runs the compiled program and looks at what comes out.

mod answers;
mod arguments;
mod deaths;
mod input;
mod outputs;
mod page;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs};

use serde_json::Value;

/// All variants, in the order in which they run by default.
const VARIANTS: [&str; 5] = ["pure", "c-function", "threads", "processes", "forked"];

/// How a run of the program ended.
#[derive(Debug)]
struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// The JSON on stdout, after a check that all went well.
    #[track_caller]
    fn json(&self) -> Value {
        assert_eq!(self.status, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks that the program refused to start.
    #[track_caller]
    fn assert_refused(&self, reason: &str) {
        assert_eq!(self.status, Some(2), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(
            self.stderr.contains(reason),
            "not about {reason:?}: {self:?}"
        );
    }
}

fn run(arguments: &[&str]) -> Ended {
    run_with_stdin(arguments, b"")
}

fn run_with_stdin(arguments: &[&str], text: &[u8]) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_powercouples"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The pipe holds the texts of these tests. A program that did not want them may be gone
    // already.
    let _ = child.stdin.take().unwrap().write_all(text);
    let output = child.wait_with_output().unwrap();
    Ended {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs once with these arguments and returns the JSON.
#[track_caller]
fn json_of(arguments: &[&str]) -> Value {
    run(&[&["--json", "-", "--repeats", "1"], arguments].concat()).json()
}

/// The results in this JSON, with what differs from run to run left out.
fn results(json: &Value) -> Vec<(&str, &Value)> {
    let variants = json["variants"].as_array().unwrap();
    variants
        .iter()
        .map(|variant| (variant["name"].as_str().unwrap(), &variant["result"]))
        .collect()
}

/// A path for a file of one test; nothing is there.
fn scratch(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    path
}

/// A file with this text.
fn file(name: &str, text: impl AsRef<[u8]>) -> String {
    let path = scratch(name);
    fs::write(&path, text).unwrap();
    path.into_os_string().into_string().unwrap()
}
