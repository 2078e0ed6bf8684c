//! A gate at which tasks wait.
#![allow(unreachable_pub, reason = "a module of a test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The longest wait at a gate: longer than a test waits for any condition, so that the test fails
/// first and says which.
const LONGEST: Duration = crate::common::DEADLINE.saturating_mul(2);

/// A gate in the file system, at which tasks wait, in whatever process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Gate {
    folder: std::path::PathBuf,
}

impl Gate {
    pub fn new() -> Self {
        static GATES: AtomicUsize = AtomicUsize::new(0);
        // A test that was killed may have left the folder of an earlier process with this pid.
        let folder = loop {
            let number = GATES.fetch_add(1, Ordering::Relaxed);
            let name = format!("gate-{}-{number}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            match std::fs::create_dir(&folder) {
                Ok(()) => break folder,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists),
            }
        };
        Self { folder }
    }

    pub fn open(&self) {
        std::fs::write(self.folder.join("open"), "").unwrap();
    }

    /// Waits until the gate is open, or gone with its test. A gate that never opens is a panic,
    /// so that a test whose condition never comes true fails and does not hang.
    pub fn pass(&self) -> String {
        let start = Instant::now();
        while self.folder.exists() && !self.folder.join("open").exists() {
            assert!(start.elapsed() < LONGEST, "this gate was never opened");
            std::thread::sleep(crate::common::PAUSE);
        }
        "passed".to_owned()
    }

    /// How many are at the gate.
    pub fn waiting(&self) -> usize {
        std::fs::read_dir(&self.folder).map_or(0, |entries| {
            let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
            names.filter(|name| name != "open").count()
        })
    }

    pub fn close(&self) {
        std::fs::remove_file(self.folder.join("open")).unwrap();
    }

    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Leaves a mark, which counts as one that waits.
    pub fn mark(&self, name: &str) {
        std::fs::write(self.folder.join(name), "").unwrap();
    }

    /// Kills this process, unless one was killed here before.
    pub fn dies_once(&self) {
        if std::fs::File::create_new(self.folder.join("died")).is_ok() {
            crate::common::kill(std::process::id());
            unreachable!("SIGKILL cannot be survived");
        }
    }

    pub fn has_died(&self) -> bool {
        self.folder.join("died").exists()
    }

    /// Passes, and says how many were at the gate then, itself included.
    pub fn pass_counted(&self) -> usize {
        static NAMES: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "{}-{}",
            std::process::id(),
            NAMES.fetch_add(1, Ordering::Relaxed)
        );
        // The gate may have been taken away by the end of its test, here and below.
        let _ = std::fs::write(self.folder.join(&name), "");
        self.pass();
        let most = self.waiting();
        let _ = std::fs::remove_file(self.folder.join(name));
        most
    }
}

/// Takes the gate away at the end of its test.
pub struct Fence(pub Gate);

impl Drop for Fence {
    fn drop(&mut self) {
        // In one step: a task that comes while the files are removed one by one would find a gate
        // that is there and not open, and keep the folder from being removed by its own mark.
        let gone = self.0.folder.with_extension("gone");
        if std::fs::rename(&self.0.folder, &gone).is_ok() {
            let _ = std::fs::remove_dir_all(gone);
        }
    }
}

/// Opens the gate at the end of a part of a test, however it ends.
pub struct Opens<'g>(pub &'g Gate);

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}
