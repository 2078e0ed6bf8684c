//! [`Crash`]: what a worker that crashed has left of its end.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Message;
use crate::signals::signal_name;

/// How a worker crashed: the signal, the address that it was about, and the way to it.
///
/// A worker process or forked child writes it down as it dies of SIGSEGV, SIGBUS, SIGILL, SIGFPE or
/// SIGABRT, unless the program or a library handles that signal itself. Of a SIGKILL by which the
/// kernel has made room in a control group there is a crash without addresses.
///
/// It is printed with one line for the [`reason`](Self::reason), and one for each frame of the
/// stack, from the innermost outwards. Names of functions, and places in the source, come from the
/// files that were loaded, as far as they have symbols, and are looked up when the crash is
/// printed; that takes some milliseconds. Without the feature `symbols`, or in another program than
/// the one that crashed, a frame is printed as file and offset, which `addr2line -e FILE OFFSET`
/// takes. `{}` leaves out the frames of this crate and what called it, `{:#}` has all.
///
/// # Examples
///
/// ```
/// use manyhands::error::{Crash, CrashReason};
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(1)?;
/// let task = pool.submit(|()| -> () { std::process::abort() }, ());
/// let Err(TaskError::WorkerDied { crash: Some(crash), .. }) = task.result() else {
///     panic!("it lives")
/// };
/// assert_eq!(crash.signal, 6);
/// assert!(matches!(crash.reason, CrashReason::Aborted { said: None, .. }));
/// assert!(crash.to_string().starts_with("it called abort"));
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Crash {
    /// The signal: 11 is SIGSEGV, 7 SIGBUS, 4 SIGILL, 8 SIGFPE, 6 SIGABRT, 9 SIGKILL.
    pub signal: i32,
    /// The signal's code, `si_code`: with SIGSEGV, 1 says that there is no memory at the address, 2
    /// that it may not be used in this way.
    pub code: i32,
    /// What the signal was about.
    pub reason: CrashReason,
    /// The address that was used, or that of the instruction for SIGILL and SIGFPE; `None` if the
    /// processor does not say, and for signals that a process has sent.
    pub address: Option<u64>,
    /// The address of the instruction that ran; `None` if unknown. Of SIGABRT it lies in the C
    /// library.
    pub instruction: Option<u64>,
    /// The stack, from the innermost frame outwards, as far as it could be followed.
    pub frames: Vec<CrashFrame>,
    /// The build of the program that crashed; 0 if unknown.
    build: u64,
}

/// Why a worker crashed.
///
/// # Examples
///
/// ```
/// use manyhands::error::CrashReason;
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(1)?;
/// let deep = |()| {
///     fn sum(depth: u64) -> u64 {
///         let frame = std::hint::black_box([depth; 512]);
///         if depth == u64::MAX { 0 } else { sum(depth + 1) + frame[0] }
///     }
///     sum(0)
/// };
/// let outcome = pool.submit(deep, ()).result();
/// let Err(TaskError::WorkerDied { crash: Some(crash), .. }) = outcome else {
///     panic!("it lives")
/// };
/// assert_eq!(crash.reason, CrashReason::StackOverflow);
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CrashReason {
    /// The processor refused an instruction or an access to memory.
    Fault,
    /// It has used more stack than there is.
    StackOverflow,
    /// It called `abort`.
    #[non_exhaustive]
    Aborted {
        /// What came before, if it is known: the panics of the same item, because a panic while
        /// another one unwinds, or in code that must not unwind, aborts; or that the worker has
        /// found corrupted what it shares with its parent.
        said: Option<Message>,
    },
    /// A process has sent the signal.
    #[non_exhaustive]
    Sent {
        /// Its process id, which may be that of the worker itself; 0 if it is in another namespace.
        by: u32,
    },
    /// The kernel has killed it, because its control group was at its limit of memory.
    #[non_exhaustive]
    OutOfMemory {
        /// The limit in bytes, if it can be read.
        limit: Option<u64>,
    },
}

/// One frame of the stack of a [`Crash`].
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(1)?;
/// let task = pool.submit(|()| -> () { std::process::abort() }, ());
/// let Err(TaskError::WorkerDied { crash: Some(crash), .. }) = task.result() else {
///     panic!("it lives")
/// };
/// for frame in &crash.frames {
///     println!("{:#x} is in {:?}", frame.address, frame.file);
/// }
/// # Ok::<(), PoolError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CrashFrame {
    /// The address in the worker: that of the instruction in the innermost frame, and the return
    /// address in all others.
    pub address: u64,
    /// Path of the executable or library that the code is from; `None` for code that was made when
    /// the program ran, and for what is no code.
    pub file: Option<String>,
    /// How far the address is from where the file's start is mapped; 0 without a file.
    pub offset: u64,
}

/// Codes of signals, from the kernel's `uapi/asm-generic/siginfo.h`.
const MAPPING_ERROR: i32 = 1;
const ACCESS_ERROR: i32 = 2;
const ALIGNMENT: i32 = 1;
const INTEGER_DIVISION: i32 = 1;

const ILL: i32 = 4;
const ABRT: i32 = 6;
const BUS: i32 = 7;
const FPE: i32 = 8;

impl Crash {
    /// Returns the crash of a process that the kernel has killed for memory.
    #[cfg(target_os = "linux")]
    pub(crate) fn out_of_memory(limit: Option<u64>) -> Self {
        Self {
            signal: libc::SIGKILL,
            code: 0,
            reason: CrashReason::OutOfMemory { limit },
            address: None,
            instruction: None,
            frames: Vec::new(),
            build: 0,
        }
    }

    /// Makes one of what a process `pid` has left, and of what it has said of its last item.
    #[cfg(target_os = "linux")]
    pub(crate) fn of(found: crate::os::crash::Found, pid: u32, said: Option<String>) -> Self {
        let reason = if found.has_overflowed {
            CrashReason::StackOverflow
        } else if found.signal == ABRT && found.sender == pid {
            let said = said.map(Message::from);
            CrashReason::Aborted { said }
        } else if found.code <= 0 {
            CrashReason::Sent { by: found.sender }
        } else {
            CrashReason::Fault
        };
        let frames = found.frames.into_iter().map(|frame| {
            let (file, offset) = frame
                .place
                .map_or((None, 0), |(file, offset)| (Some(file), offset));
            CrashFrame {
                address: frame.address,
                file,
                offset,
            }
        });
        Self {
            signal: found.signal,
            code: found.code,
            reason,
            address: found.address,
            instruction: (found.instruction != 0).then_some(found.instruction),
            frames: frames.collect(),
            build: crate::os::image::Image::main().fingerprint(),
        }
    }

    fn write_fault(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { signal, code, .. } = *self;
        let Some(address) = self.address else {
            return f.write_str("it used an address that cannot be");
        };
        match (signal, code) {
            (ILL, _) => write!(
                f,
                "it came to an instruction at {address:#x} that the processor does not run"
            ),
            (FPE, INTEGER_DIVISION) => write!(
                f,
                "it divided integers at {address:#x}, and there is no result (by zero, or too large)"
            ),
            (FPE, _) => write!(f, "its arithmetic failed at {address:#x}"),
            (BUS, ALIGNMENT) => write!(f, "it used address {address:#x}, which is not aligned"),
            (BUS, _) => write!(
                f,
                "it used address {address:#x}, where what is mapped has ended (a file became shorter, or memory is full)"
            ),
            (_, MAPPING_ERROR) => {
                write!(f, "it used address {address:#x}, where nothing is mapped")
            }
            (_, ACCESS_ERROR) => write!(
                f,
                "it used address {address:#x}, which may not be read, written or run in this way"
            ),
            _ => write!(
                f,
                "it used address {address:#x}, which the processor refused"
            ),
        }
    }

    /// Writes the reason, in one line.
    pub(super) fn write_reason(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            CrashReason::Fault => self.write_fault(f),
            CrashReason::StackOverflow => f.write_str("it overflowed its stack"),
            CrashReason::Aborted { said: None } => f.write_str("it called abort"),
            CrashReason::Aborted { said: Some(said) } => write!(f, "it aborted after {said}"),
            CrashReason::Sent { by } => write!(f, "process {by} sent the signal"),
            CrashReason::OutOfMemory { limit: Some(limit) } => write!(
                f,
                "the kernel killed it for memory: its control group was at its limit of {limit} bytes"
            ),
            CrashReason::OutOfMemory { limit: None } => {
                f.write_str("the kernel killed it for memory: its control group was at its limit")
            }
        }
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_reason(f)?;
        let signal = self.signal;
        match signal_name(signal) {
            Some(name) => write!(f, " (signal {signal}, {name}, code {})", self.code)?,
            None => write!(f, " (signal {signal}, code {})", self.code)?,
        }
        let frames = named(&self.frames, self.build);
        let frames = if f.alternate() {
            &frames[..]
        } else {
            without_own(&frames)
        };
        for (number, frame) in frames.iter().enumerate() {
            write!(f, "\n{number:4}: {frame}")?;
        }
        Ok(())
    }
}

/// Returns the end of a message about a death: what the crash was.
pub(crate) fn because(crash: Option<&Crash>) -> String {
    struct Reason<'a>(&'a Crash);
    impl fmt::Display for Reason<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.write_reason(f)
        }
    }
    crash.map_or_else(String::new, |crash| format!(": {}", Reason(crash)))
}

/// A frame with the names of the functions in it: several where functions were inlined.
struct Named<'a> {
    frame: &'a CrashFrame,
    functions: Vec<Function>,
}

/// A function of a frame.
#[derive(Debug)]
struct Function {
    name: String,
    /// File and line, if they are known.
    place: Option<(String, u32)>,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CrashFrame {
            address,
            file,
            offset,
        } = self.frame;
        if self.functions.is_empty() {
            return match file {
                Some(file) => write!(f, "{file}+{offset:#x}"),
                None => write!(f, "{address:#x}"),
            };
        }
        for (number, function) in self.functions.iter().enumerate() {
            if number > 0 {
                f.write_str("\n      ")?;
            }
            f.write_str(&function.name)?;
            if let Some((file, line)) = &function.place {
                write!(f, " at {file}:{line}")?;
            }
        }
        Ok(())
    }
}

fn named(frames: &[CrashFrame], build: u64) -> Vec<Named<'_>> {
    let functions = functions(frames, build);
    let named = frames.iter().zip(functions);
    named
        .map(|(frame, functions)| Named { frame, functions })
        .collect()
}

/// Looks up the functions of these frames, if this process has what they were in.
#[cfg(all(target_os = "linux", feature = "symbols"))]
fn functions(frames: &[CrashFrame], build: u64) -> Vec<Vec<Function>> {
    use crate::os::symbols::Symbols;
    let symbols = Symbols::new(build);
    let functions = |(number, frame): (usize, &CrashFrame)| {
        let Some(file) = &frame.file else {
            return Vec::new();
        };
        let found = symbols.of(file, frame.offset, number == 0);
        let function = |(name, place)| Function { name, place };
        found.into_iter().map(function).collect()
    };
    frames.iter().enumerate().map(functions).collect()
}

#[cfg(not(all(target_os = "linux", feature = "symbols")))]
fn functions(frames: &[CrashFrame], _build: u64) -> Vec<Vec<Function>> {
    frames.iter().map(|_| Vec::new()).collect()
}

/// Returns the frames up to the first one of this crate, and not the calls of closures before it:
/// what comes then is how tasks are run.
fn without_own<'a, 'b>(frames: &'b [Named<'a>]) -> &'b [Named<'a>] {
    let is = |frame: &Named<'_>, kind: fn(&str) -> bool| {
        let mut functions = frame.functions.iter();
        functions.any(|function| kind(&function.name))
    };
    let own = frames
        .iter()
        .position(|frame| is(frame, super::backtrace::is_own));
    let Some(first @ 1..) = own else {
        return frames;
    };
    let mut kept = &frames[..first];
    while let [before @ .., last] = kept
        && !before.is_empty()
        && is(last, super::backtrace::is_glue)
    {
        kept = before;
    }
    kept
}
