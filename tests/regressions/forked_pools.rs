//! Pools of forked children: what waits for room, what is told, what is kept and what is let go.

use std::path::PathBuf;

use manyhands::prelude::*;

use crate::common::Leftovers;
use crate::{Folder, forked, touch, wait_for};

/// The last result is on its way before the child has ended: it prints what it has buffered, and
/// waits for the children that it has started.
#[test]
fn a_forked_child_that_has_given_its_last_result_comes_to_its_own_end() {
    fn linger((folder, word): (PathBuf, String)) {
        wait_for(folder.join("told"));
        touch(folder.join(word));
    }
    let _none = Leftovers::none();
    let folder = Folder::new();
    let start = |n: u32| {
        let word = format!("child-{n}");
        drop(Process::spawn(linger, (folder.0.clone(), word)).unwrap());
        n
    };
    let told = folder.file("told");
    // The results have come when their children are told to go on.
    let pool = forked();
    let call = pool.call().chunk_size(1).on_progress(|p| {
        if p.done == 2 {
            std::fs::write(&told, "").unwrap();
        }
    });
    assert_eq!(call.map(start, 0..2), Ok(vec![0, 1]));
    assert!(folder.file("child-0").exists() && folder.file("child-1").exists());
}
