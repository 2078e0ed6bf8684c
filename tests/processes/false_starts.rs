//! Workers that die before they start an item: of what comes before it, a context or an argument.

use std::path::PathBuf;

use manyhands::prelude::*;
use manyhands::process::Stdio;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::common::Leftovers;
use crate::{Folder, touch};

/// After this many deaths in a row the item is given up.
const MOST: u32 = 16;

/// Kills the process that reads it, which leaves a mark; but spares those after the last mark that
/// is asked for.
#[derive(Clone, Debug)]
struct Poison {
    folder: PathBuf,
    kills: usize,
}

impl Serialize for Poison {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.folder, self.kills).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Poison {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (folder, kills) = <(PathBuf, usize)>::deserialize(deserializer)?;
        let read = Self { folder, kills };
        if read.count() < kills {
            touch(read.folder.join(format!("killed-{}", std::process::id())));
            std::process::abort();
        }
        Ok(read)
    }
}

impl Poison {
    fn new(folder: &Folder, kills: usize) -> Self {
        let folder = folder.0.clone();
        Self { folder, kills }
    }

    /// How many processes it has killed.
    fn count(&self) -> usize {
        let entries = std::fs::read_dir(&self.folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("killed-")).count()
    }
}

fn pool(workers: usize) -> Pool<Processes> {
    let pool = Processes::builder().workers(workers).stderr(Stdio::null());
    pool.build().unwrap()
}

/// The outcome of a call that must end; one that goes on fails the test and is left behind.
#[track_caller]
fn in_time<R: Send + 'static>(run: impl FnOnce() -> R + Send + 'static) -> R {
    let (send, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(run()));
    let ended = ended.recv_timeout(crate::common::DEADLINE);
    ended.expect("workers are started for ever")
}

/// A worker that has too little memory for the message with the argument dies before the item
/// starts. The next one fares no better.
#[test]
fn an_argument_that_no_worker_can_take_in_is_given_up_after_sixteen() {
    let _none = Leftovers::none();
    let (ended, after, died) = in_time(|| {
        let builder = Processes::builder().workers(1).memory_limit(1 << 20);
        let pool = builder.stderr(Stdio::null()).build().unwrap();
        // Retries are for items that have started.
        let call = pool.call().retries(2);
        let ended = call.submit(|bytes: Vec<u8>| bytes.len(), vec![1; 64 << 20]);
        let ended = ended.result();
        let after = pool.submit(|x: u32| x, 7).result();
        (ended, after, pool.stats().total().respawns)
    });
    let is_given_up = matches!(ended, Err(TaskError::OutOfMemory { attempts: MOST, .. }));
    assert!(is_given_up, "{ended:?}");
    assert_eq!((after, died), (Ok(7), u64::from(MOST)));
}

/// A context is read when the first item starts: the death is that of the item.
#[test]
fn a_context_that_kills_workers_is_tried_as_often_as_its_item() {
    let _none = Leftovers::none();
    let folder = Folder::new();
    let poison = Poison::new(&folder, usize::MAX);
    let (ended, died) = in_time(move || {
        let pool = pool(1);
        let call = pool.call().retries(2);
        // No other item: the next worker may begin with one before the caller has the failure.
        let ended = call.map_with(&poison, |_: &Poison, x: u32| x, 0..1);
        (ended, poison.count())
    });
    let is_own = matches!(
        ended,
        Err(TaskError::WorkerDied {
            index,
            cause: Death::Signal(6),
            attempts: 3,
            ..
        }) if index == Some(0)
    );
    assert!(is_own && died == 3, "{ended:?} after {died} deaths");
    let folder = Folder::new();
    let poison = Poison::new(&folder, 2);
    let ended = in_time(move || {
        let call = pool(1);
        let call = call.call().retries(2);
        call.map_with(&poison, |_: &Poison, x: u32| x, 0..3)
    });
    assert_eq!(ended, Ok(vec![0, 1, 2]));
}
