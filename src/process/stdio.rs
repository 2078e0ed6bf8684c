//! [`Stdio`]: what a standard stream of a child, or of the workers of a pool, is connected to.

use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::os::handoff;
use crate::os::start::Stream;

/// The function that is called with the name of a process and a line that it has printed.
pub(crate) type LineCallback = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// What a standard stream of a [`Process`](super::Process), or of the workers of a pool of
/// processes, is connected to. The setters of
/// [`ProcessBuilder`](super::ProcessBuilder) and
/// [`ProcessesBuilder`](crate::engine::ProcessesBuilder) take it.
///
/// A file, an end of a pipe and any other [`OwnedFd`] become one by `into`. The workers of a pool
/// share it; it stays open as long as the builder and its clones, the pool and the handles of its
/// tasks. A pipe is at its end only then, and when all its processes have ended.
/// A process that was forked from this one meanwhile
/// ([`Forked`](crate::Forked), [`StartMethod::Fork`](crate::engine::StartMethod::Fork)) keeps it
/// open too. [`lines`](Self::lines) is for pools only.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
/// use std::io::{Read, read_to_string};
///
/// let (mut reader, writer) = std::io::pipe()?;
/// let child = Process::builder()
///     .stdout(writer)
///     .spawn(|()| print!("from the child"), ())?;
/// let mut printed = String::new();
/// reader.read_to_string(&mut printed)?;
/// assert_eq!(printed, "from the child");
/// # child.join()?;
///
/// let (reader, writer) = std::io::pipe()?;
/// let pool = Processes::builder().workers(2).stdout(writer).build()?;
/// pool.map(|_: u8| println!("from a worker"), 0..3)?;
/// drop(pool);
/// assert_eq!(read_to_string(reader)?.lines().count(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Default)]
pub struct Stdio(Target);

/// What is behind a [`Stdio`].
#[derive(Clone, Default)]
enum Target {
    /// The stream of this process.
    #[default]
    Inherit,
    /// `/dev/null`.
    Null,
    Fd(Arc<OwnedFd>),
    /// A function of this process.
    Lines(LineCallback),
}

impl Stdio {
    /// Makes a stream that is the one of this process. This is the [`Default`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::{Process, Stdio};
    ///
    /// // The child reads what this program is given, which it does not get otherwise.
    /// let child = Process::builder()
    ///     .stdin(Stdio::inherit())
    ///     .spawn(|()| {}, ())?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn inherit() -> Self {
        Self(Target::Inherit)
    }

    /// Makes a stream that is `/dev/null`: there is nothing to read, and what is written is thrown
    /// away.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::process::{Process, Stdio};
    ///
    /// let child = Process::builder()
    ///     .stdout(Stdio::null())
    ///     .spawn(|()| println!("not shown"), ())?;
    /// assert!(child.join()?.success());
    /// # Ok::<(), manyhands::process::ProcessError>(())
    /// ```
    pub fn null() -> Self {
        Self(Target::Null)
    }

    /// Makes a stream of which `tell` gets each line, for the standard output or error of a pool's
    /// workers. It is called with the name of the worker (`manyhands:POOL:0`) and the line, without
    /// the line's end. Bytes that are not UTF-8 are replaced, and a `\r` before the end stays.
    ///
    /// Lines of one worker come in order, on a thread of the pool's. The last line comes also if it
    /// has no end. A line of more than 1 MiB comes in parts. When the pool has ended, all lines
    /// have come.
    ///
    /// For a single process, it is refused: the caller can give it the writer of
    /// [`std::io::pipe`], and read the lines from the reader.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::process::Stdio;
    /// use std::sync::mpsc::channel;
    ///
    /// let (send, receive) = channel();
    /// let tell =
    ///     move |worker: &str, line: &str| send.send(format!("{worker} says {line}")).unwrap();
    /// let pool = Processes::builder()
    ///     .workers(1)
    ///     .name("talk")
    ///     .stdout(Stdio::lines(tell))
    ///     .build()?;
    /// pool.submit(|()| println!("hello"), ()).result()?;
    /// pool.close()?;
    /// assert_eq!(receive.recv()?, "manyhands:talk:0 says hello");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// Both streams in one:
    ///
    /// ```
    /// use manyhands::prelude::*;
    /// use manyhands::process::Stdio;
    /// use std::sync::{Arc, Mutex};
    ///
    /// let log: Arc<Mutex<Vec<String>>> = Arc::default();
    /// let copy = Arc::clone(&log);
    /// let both = Stdio::lines(move |_, line| copy.lock().unwrap().push(line.to_owned()));
    /// let builder = Processes::builder().workers(1).stderr(both.clone());
    /// let pool = builder.stdout(both).build()?;
    /// pool.submit(
    ///     |()| {
    ///         println!("out");
    ///         eprintln!("err")
    ///     },
    ///     (),
    /// )
    /// .result()?;
    /// pool.close()?;
    /// assert_eq!(log.lock().unwrap().len(), 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn lines(tell: impl Fn(&str, &str) + Send + Sync + 'static) -> Self {
        Self(Target::Lines(Arc::new(tell)))
    }

    /// Makes the stream of a new process, and the end of a pipe to read from if the user wants
    /// lines.
    pub(crate) fn stream(&self) -> io::Result<(Stream, Option<PipeReader>)> {
        Ok(match &self.0 {
            Target::Inherit => (Stream::Inherit, None),
            Target::Null => (Stream::Null, None),
            Target::Fd(fd) => (Stream::Fd(fd.try_clone()?), None),
            Target::Lines(_) => {
                let (reader, writer) = handoff::pipe()?;
                handoff::never_block(reader.as_fd())?;
                (Stream::Fd(writer.into()), Some(reader))
            }
        })
    }

    /// Returns the function that gets the lines, if there is one.
    pub(crate) fn callback(&self) -> Option<&LineCallback> {
        match &self.0 {
            Target::Lines(tell) => Some(tell),
            Target::Inherit | Target::Null | Target::Fd(_) => None,
        }
    }
}

macro_rules! from_what_has_a_descriptor {
    ($($source:ty)*) => {$(
        impl From<$source> for Stdio {
            fn from(source: $source) -> Self {
                Self(Target::Fd(Arc::new(source.into())))
            }
        }
    )*};
}
from_what_has_a_descriptor!(OwnedFd File PipeReader PipeWriter);

// The function runs on a thread of the pool's, which catches its panics. A `Stdio` itself has
// nothing that a panic could leave half done.
impl UnwindSafe for Stdio {}
impl RefUnwindSafe for Stdio {}

impl fmt::Debug for Stdio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::Inherit => f.write_str("Inherit"),
            Target::Null => f.write_str("Null"),
            Target::Fd(fd) => f.debug_tuple("Fd").field(fd).finish(),
            Target::Lines(_) => f.write_str("Lines(..)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::ProcessBuilder;

    #[test]
    fn builders_with_streams_are_values_that_a_panic_does_not_spoil() {
        fn check<T: Clone + Send + Sync + UnwindSafe + RefUnwindSafe>() {}
        check::<Stdio>();
        check::<ProcessBuilder>();
    }
}
