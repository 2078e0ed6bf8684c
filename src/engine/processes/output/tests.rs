use std::io::{PipeWriter, Write};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use super::*;
use crate::engine::processes::dispatch::made_up::IN_TIME;
use crate::os::handoff;

type Told = Arc<Mutex<Vec<(String, String)>>>;

/// Makes a listener that keeps what it is told.
fn listener() -> (Listener, Told, Stdio) {
    let told = Told::default();
    let keep = Arc::clone(&told);
    let output = Stdio::lines(move |worker, line| {
        keep.lock().push((worker.to_owned(), line.to_owned()));
    });
    let listener = Listener::start(1, &Stdio::null(), &output).unwrap();
    (listener.unwrap(), told, output)
}

fn pipe(listener: &Listener, worker: &str, output: &Stdio) -> PipeWriter {
    let (reader, writer) = handoff::pipe().unwrap();
    handoff::never_block(reader.as_fd()).unwrap();
    listener.add(worker, Some(reader), output);
    writer
}

fn lines(told: &Told, worker: &str) -> Vec<String> {
    let told = told.lock();
    let own = told.iter().filter(|(by, _)| by == worker);
    own.map(|(_, line)| line.clone()).collect()
}

#[test]
fn lines_are_put_together_from_whatever_comes_at_once() {
    let (listener, told, output) = listener();
    let mut one = pipe(&listener, "one", &output);
    let mut other = pipe(&listener, "other", &output);
    one.write_all(b"a\nb").unwrap();
    other.write_all(b"x").unwrap();
    one.write_all(b"c\n\nd\xff\n").unwrap();
    drop(one);
    other.write_all(b"y\nz").unwrap();
    drop(listener);
    assert_eq!(lines(&told, "one"), ["a", "bc", "", "d\u{fffd}"]);
    assert_eq!(lines(&told, "other"), ["xy", "z"]);
}

#[test]
fn a_line_that_is_too_long_is_told_in_pieces_and_the_next_one_is_whole() {
    let (listener, told, output) = listener();
    let mut writer = pipe(&listener, "one", &output);
    let text = vec![b'x'; 3 * LONGEST];
    writer.write_all(&text).unwrap();
    writer.write_all(b"end\nnext\n").unwrap();
    drop(listener);
    let mut told = lines(&told, "one");
    assert_eq!(told.pop().as_deref(), Some("next"));
    assert!(told.len() >= 3, "{} batches", told.len());
    let is_short = |batch: &String| batch.len() <= LONGEST + (64 << 10);
    assert!(told.iter().all(is_short), "a batch is too long");
    let whole = told.concat();
    assert!(whole.len() == text.len() + 3 && whole.ends_with("xend"));
}

#[test]
fn output_is_read_only_where_a_function_is_to_be_told() {
    let told = Stdio::lines(|_, _| {});
    let is_read = |stdout: &Stdio, stderr: &Stdio| {
        let listener = Listener::start(1, stdout, stderr).unwrap();
        listener.is_some()
    };
    for silent in [Stdio::null(), Stdio::inherit()] {
        assert!(!is_read(&silent, &Stdio::null()));
        assert!(is_read(&silent, &told) && is_read(&told, &silent));
    }
}

/// A stream of which each line that is told leaves another one to be read, so that it is never
/// empty until it is taken away; and the function that is told the lines of other streams.
struct Endless {
    more: Arc<Mutex<Option<PipeWriter>>>,
    output: Stdio,
    heard: Receiver<()>,
}

impl Endless {
    fn new() -> Self {
        let more = Arc::new(Mutex::new(None::<PipeWriter>));
        let (own, (send, heard)) = (Arc::clone(&more), channel());
        let output = Stdio::lines(move |worker, _| {
            if worker != "endless" {
                // The test may have failed.
                let _ = send.send(());
            } else if let Some(more) = &mut *own.lock() {
                // A full pipe is as good.
                let _ = more.write_all(b"more\nmore\n");
                // This leaves other processes of this machine some time.
                thread::sleep(Duration::from_micros(100));
            }
        });
        Self {
            more,
            output,
            heard,
        }
    }

    fn begin(&self, listener: &Listener) {
        let mut writer = pipe(listener, "endless", &self.output);
        handoff::never_block(writer.as_fd()).unwrap();
        // The lock keeps the function from being told of this before there is something to write
        // to.
        let mut more = self.more.lock();
        writer.write_all(b"more\n").unwrap();
        *more = Some(writer);
    }

    fn end(&self) {
        self.more.lock().take();
    }
}

#[test]
fn what_always_has_more_to_read_keeps_no_other_stream_waiting() {
    let endless = Endless::new();
    let listener = Listener::start(1, &endless.output, &Stdio::null());
    let listener = listener.unwrap().unwrap();
    endless.begin(&listener);
    let mut quiet = pipe(&listener, "quiet", &endless.output);
    quiet.write_all(b"here\n").unwrap();
    let is_heard = endless.heard.recv_timeout(IN_TIME);
    endless.end();
    assert_eq!(is_heard, Ok(()), "it is never told");
}

/// A process that a worker has started may keep the worker's output, and print for ever.
#[test]
fn what_prints_without_end_does_not_keep_a_pool_from_ending() {
    let endless = Endless::new();
    let listener = Listener::start(1, &endless.output, &Stdio::null());
    let listener = listener.unwrap().unwrap();
    endless.begin(&listener);
    let (send, ended) = channel();
    thread::spawn(move || {
        drop(listener);
        // The test may have failed.
        let _ = send.send(());
    });
    let ended = ended.recv_timeout(6 * LAST_READ);
    endless.end();
    assert_eq!(ended, Ok(()), "it is read for ever");
}
