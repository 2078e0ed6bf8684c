//! Reads what workers print, and tells it to the user's function line by line.

use std::cell::Cell;
use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::call::service;
use crate::os::alarm::Alarm;
use crate::os::fork::Original;
use crate::os::readable::{pause, wait_readable};
use crate::os::task;
use crate::panic;
use crate::process::{LineCallback, Stdio};

/// The length from which a line is told in parts: a worker that prints without end must not use up
/// the memory of this process.
const LONGEST: usize = 1 << 20;

/// How long what is in the pipes is read at the end of a pool: a process that a worker has started
/// may hold the worker's output open, and print without end.
const LAST_READ: Duration = Duration::from_secs(5);

/// A thread that reads the pipes of a pool's workers.
pub(super) struct Listener {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    alarm: Alarm,
    news: Mutex<News>,
}

#[derive(Default)]
struct News {
    streams: Vec<Stream>,
    /// Whether no more streams will come: the thread ends when those that are there have ended.
    is_last: bool,
}

/// What one worker prints to one of its outputs.
struct Stream {
    worker: String,
    pipe: PipeReader,
    tell: LineCallback,
    /// The start of a line whose end has not come.
    line: Vec<u8>,
}

impl Listener {
    /// Starts a reader for the pool at this address. Returns `None` if the user wants no lines.
    pub(super) fn start(pool: usize, stdout: &Stdio, stderr: &Stdio) -> io::Result<Option<Self>> {
        if stdout.callback().is_none() && stderr.callback().is_none() {
            return Ok(None);
        }
        let shared = Arc::new(Shared {
            alarm: Alarm::new()?,
            news: Mutex::default(),
        });
        let reader = Arc::clone(&shared);
        let thread = task::start("manyhands-read", None, move || read(&reader, pool))?;
        Ok(Some(Self {
            shared,
            thread: Some(thread),
        }))
    }

    /// Has what comes out of `pipe` told to `output`.
    pub(super) fn add(&self, worker: &str, pipe: Option<PipeReader>, output: &Stdio) {
        if let (Some(pipe), Some(tell)) = (pipe, output.callback()) {
            self.shared.news.lock().streams.push(Stream {
                worker: worker.to_owned(),
                pipe,
                tell: Arc::clone(tell),
                line: Vec::new(),
            });
            self.shared.alarm.ring();
        }
    }
}

impl Drop for Listener {
    /// Waits until everything that has been printed has been told. The workers have ended. But
    /// processes that they have started may hold their outputs open, so the reader does not wait
    /// for the ends of the pipes.
    fn drop(&mut self) {
        self.shared.news.lock().is_last = true;
        self.shared.alarm.ring();
        if let Some(thread) = self.thread.take() {
            service::join(thread);
        }
    }
}

thread_local! {
    /// Address of the pool whose output this thread tells; 0 for none.
    static READS_FOR: Cell<usize> = const { Cell::new(0) };
}

/// Returns whether this thread tells what the workers of the pool at `pool` print. It must not wait
/// for the end of that pool.
pub(super) fn reads_for(pool: usize) -> bool {
    READS_FOR.get() == pool
}

fn read(shared: &Shared, pool: usize) {
    READS_FOR.set(pool);
    service::note_service();
    let mut streams: Vec<Stream> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut end = None;
    loop {
        if end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        let is_last = {
            let mut news = shared.news.lock();
            streams.append(&mut news.streams);
            news.is_last
        };
        if is_last {
            end.get_or_insert_with(|| Instant::now() + LAST_READ);
        }
        let fds: Vec<_> = std::iter::once(shared.alarm.as_fd())
            .chain(streams.iter().map(|stream| stream.pipe.as_fd()))
            .collect();
        // At the end only what is there already is read.
        let (skipped, options) = if is_last {
            (1, Some(Duration::ZERO))
        } else {
            (0, None)
        };
        match wait_readable(&fds[skipped..], options) {
            // The kernel has refused the wait: all pipes are tried in turn.
            Err(refused) => {
                let mut has_more = false;
                streams.retain_mut(|stream| {
                    let taken = stream.take(&mut buffer);
                    has_more |= taken == Taken::Some;
                    taken != Taken::End
                });
                if !has_more {
                    if is_last {
                        break;
                    }
                    pause(&refused, options);
                }
            }
            Ok(None) if is_last => break,
            Ok(None) => {}
            Ok(Some(index)) if index + skipped == 0 => shared.alarm.silence(),
            Ok(Some(index)) => {
                let index = index + skipped;
                let mut stream = streams.remove(index - 1);
                if stream.take(&mut buffer) != Taken::End {
                    // The stream goes to the end of the list: one that always has something must
                    // not keep the others waiting.
                    streams.push(stream);
                }
            }
        }
    }
    streams.iter_mut().for_each(Stream::end);
}

/// What a read from a stream has brought.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    Some,
    /// There is nothing now.
    None,
    /// There is nothing, and nothing more will come.
    End,
}

impl Stream {
    /// Reads what there is, and does not wait for more.
    fn take(&mut self, buffer: &mut [u8]) -> Taken {
        match self.pipe.read(buffer) {
            Ok(0) => {
                self.end();
                Taken::End
            }
            Ok(len) => {
                self.add(&buffer[..len]);
                Taken::Some
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Taken::Some,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Taken::None,
            Err(error) => {
                log::warn!("what {} prints cannot be read: {error}", self.worker);
                self.end();
                Taken::End
            }
        }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.line.extend_from_slice(&bytes[..end]);
            self.tell();
            bytes = &bytes[end + 1..];
        }
        self.line.extend_from_slice(bytes);
        if self.line.len() > LONGEST {
            self.tell();
        }
    }

    fn end(&mut self) {
        if !self.line.is_empty() {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        let original = Original::here();
        let told = panic::catch(|| (self.tell)(&self.worker, &line));
        // A copy that goes on would read lines away from this process.
        original.end_copy_after(&told);
        if let Err(caught) = told {
            log::error!(
                "what was to be told of a worker's output panicked: {}",
                caught.message
            );
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
