//! How a counted program waits until its worker sleeps, by the same number of instructions each
//! time.
//!
//! What the program does to find that out would be counted. So it asks the process that started
//! valgrind, which is not counted: it writes the numbers of the thread to standard output, and
//! reads one byte from standard input. The byte comes when that thread sleeps.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;

/// A thread that sleeps on a futex when it has nothing to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sleeper {
    process: u32,
    thread: u32,
}

impl Sleeper {
    const BYTES: usize = 8;

    /// The main thread of a process.
    pub(crate) fn process(pid: u32) -> Self {
        Self {
            process: pid,
            thread: pid,
        }
    }

    pub(crate) fn this_thread() -> Self {
        Self {
            process: std::process::id(),
            thread: nix::unistd::gettid().as_raw().unsigned_abs(),
        }
    }

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.process.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.thread.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let number = |at: usize| {
            let bytes = bytes[at..].first_chunk().copied();
            u32::from_ne_bytes(bytes.expect("each number has four bytes"))
        };
        Self {
            process: number(0),
            thread: number(4),
        }
    }

    /// Whether it sleeps on a futex. A thread that has been woken and does not run yet is running,
    /// says the kernel. A thread that waits until valgrind lets it run reads from a pipe of
    /// valgrind's.
    fn sleeps(self) -> io::Result<bool> {
        let Self { process, thread } = self;
        let call = fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall"))?;
        let number = call.split(' ').next().unwrap_or_default();
        Ok(number.parse() == Ok(libc::SYS_futex))
    }
}

/// Waits until the thread sleeps. Only the counted program calls this.
pub(crate) fn rest(thread: Sleeper) {
    let asked = nix::unistd::write(io::stdout(), &thread.to_bytes());
    assert_eq!(asked, Ok(Sleeper::BYTES), "the question is written at once");
    let mut answer = [0];
    let answered = nix::unistd::read(io::stdin(), &mut answer);
    assert_eq!(answered, Ok(1), "each question is answered");
}

/// Longer than any block of operations takes between two questions.
const DEADLINE: Duration = Duration::from_secs(60);

/// Answers the questions of the program until it closes its standard output.
pub(crate) fn answer(mut questions: ChildStdout, mut answers: ChildStdin) -> io::Result<()> {
    let late = |what| io::Error::new(ErrorKind::TimedOut, what);
    loop {
        let mut readable = [PollFd::new(questions.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(DEADLINE).map_err(io::Error::other)?;
        if poll(&mut readable, limit)? == 0 {
            return Err(late("the program neither asked anything nor ended"));
        }
        let mut bytes = [0; Sleeper::BYTES];
        match questions.read_exact(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let thread = Sleeper::from_bytes(bytes);
        let start = Instant::now();
        while !thread.sleeps()? {
            if start.elapsed() > DEADLINE {
                return Err(late("the worker did not fall asleep"));
            }
            thread::sleep(Duration::from_micros(20));
        }
        answers.write_all(&[1])?;
    }
}
