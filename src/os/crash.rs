//! What a worker or forked child writes down when a signal ends it that stands for a crash.
//!
//! The handler runs in a process in which anything may be broken. So it takes no lock and no heap,
//! and reads memory only where the kernel says that it is there. It writes the signal, its address
//! and the way up the stack into memory that the parent reads after the death. Then the process
//! dies of the same signal, with the same `siginfo`, so that a core dump is what it would have
//! been.
//!
//! Signals that the program or a library handles stay theirs: the handler is installed only where
//! the default is in place. The one exception is the handler by which the standard library reports
//! that a stack has overflowed. It is in place on SIGSEGV and SIGBUS in every child that is forked
//! by a program that has run `main`, and would hide each crash. It is still called, and first.

mod maps;
mod peek;
mod record;
mod unwind;

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use nix::errno::Errno;

use super::fork::OwnPointer;
use super::image::Image;
use super::oom;
pub(crate) use maps::Maps;
use record::Head;
pub(crate) use record::{CrashRecord, Found};
use unwind::{Registers, Step, Walk};

/// The signals that stand for a crash.
const SIGNALS: [c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
];

/// From the kernel's `uapi/asm-generic/siginfo.h`: what the codes of signals begin with that the
/// kernel itself sends, but for no address.
const SI_KERNEL: c_int = 0x80;
/// From the kernel's `uapi/asm/signal.h`. The C library sets it by itself.
const SA_RESTORER: c_int = 0x0400_0000;

/// How far below a stack its overflow may reach: the size of the largest frame.
const FRAME_BYTES: usize = 1 << 20;
/// How far below the stack pointer code writes: a page at a time where the compiler probes, and
/// less elsewhere.
const BELOW_POINTER: usize = 4_096 + 256;

/// Bytes of the stack on which handlers run.
const STACK_BYTES: usize = 64 << 10;

type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// The place of this process's record; null in processes that are not workers, and in copies of
/// workers.
static RECORD: OwnPointer<CrashRecord> = OwnPointer::null();

/// The handlers of the standard library for SIGSEGV and SIGBUS, if they were in place. 0 if not.
static STD: AtomicUsize = AtomicUsize::new(0);

/// The thread that writes the record; 0 for none.
static WRITER: AtomicI32 = AtomicI32::new(0);

/// Whether the writer is in the handler of the standard library.
static IS_IN_STD: AtomicBool = AtomicBool::new(false);

/// Whether the handler of the standard library has given its signal the default action.
static IS_GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// Room that the handler uses, of which a stack has not enough.
struct Room {
    maps: Maps,
    walk: Walk,
}

struct Only<T>(UnsafeCell<T>);

// SAFETY: the room is used by the thread that is `WRITER`; the stack by the kernel, for the one
// thread that it was given for.
unsafe impl<T> Sync for Only<T> {}

static ROOM: Only<Room> = Only(UnsafeCell::new(Room {
    maps: Maps::new(),
    walk: Walk::new(),
}));

/// The stack for handlers. It takes no memory until a handler runs on it.
static STACK: Only<MaybeUninit<[u128; STACK_BYTES / 16]>> =
    Only(UnsafeCell::new(MaybeUninit::uninit()));

/// Where the code of the main executable lies; empty until [`prepare`] was called. Not an
/// [`Image`]: a forked child might find that half-way made for ever.
static CODE_START: AtomicUsize = AtomicUsize::new(0);
static CODE_END: AtomicUsize = AtomicUsize::new(0);

/// Does what takes a lock. Called before a fork after which the child calls [`write_down`]: without
/// it the handlers of the standard library are not known in the child, and stay in place.
pub(crate) fn prepare() {
    let code = Image::main().code_span();
    CODE_START.store(code.start, Ordering::Relaxed);
    CODE_END.store(code.end, Ordering::Relaxed);
}

/// Has crashes of this process written to `record`, which must stay where it is as long as the
/// process lives. The caller's thread is the one whose stack may overflow.
pub(crate) fn write_down(record: &CrashRecord) -> io::Result<()> {
    RECORD.set(ptr::from_ref(record).cast_mut());
    WRITER.store(0, Ordering::Relaxed);
    IS_GIVEN_UP.store(false, Ordering::Relaxed);
    use_own_stack()?;
    let std = std_handler();
    for signal in SIGNALS {
        let present = action(signal)?;
        let is_std = std.is_some_and(|std| present.sa_sigaction == std);
        if present.sa_sigaction == libc::SIG_DFL || is_std {
            install(signal)?;
        }
    }
    if let Some(std) = std {
        STD.store(std, Ordering::Relaxed);
    }
    Ok(())
}

/// Has aborts go through this handler, also if they had another one.
pub(super) fn take_aborts() -> io::Result<()> {
    install(libc::SIGABRT)
}

/// Has handlers run on a stack of their own on this thread: its own may be what has overflowed.
fn use_own_stack() -> io::Result<()> {
    let stack = libc::stack_t {
        ss_sp: STACK.0.get().cast::<c_void>(),
        ss_flags: 0,
        ss_size: STACK_BYTES,
    };
    // SAFETY: the memory is static, and no other thread is given it: this is called by the one
    // thread of a worker or forked child that begins.
    Errno::result(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) })?;
    Ok(())
}

fn action(signal: c_int) -> io::Result<libc::sigaction> {
    let mut present = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the call only writes the present action.
    Errno::result(unsafe { libc::sigaction(signal, ptr::null(), present.as_mut_ptr()) })?;
    // SAFETY: the call has succeeded, and zeros are valid too.
    Ok(unsafe { present.assume_init() })
}

fn install(signal: c_int) -> io::Result<()> {
    let handler: Handler = handle;
    set_action(
        signal,
        handler as usize,
        libc::SA_SIGINFO | libc::SA_ONSTACK,
    )
}

fn set_action(signal: c_int, handler: usize, flags: c_int) -> io::Result<()> {
    // SAFETY: zeros are valid: no flags, and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the handler is the default, or `handle`, which may run at any point.
    Errno::result(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) })?;
    Ok(())
}

/// Returns the handler of the standard library, if it is in place. It cannot be named; it is known
/// by its form: the same function of this program for SIGSEGV and SIGBUS, with flags as it has
/// them.
///
/// A handler of the program's that looks the same is treated the same: it is called first, and what
/// it handles is handled.
fn std_handler() -> Option<usize> {
    let [segv, bus] = [libc::SIGSEGV, libc::SIGBUS].map(|signal| action(signal).ok());
    let (segv, bus) = (segv?, bus?);
    let handler = segv.sa_sigaction;
    let is_formed = |action: &libc::sigaction| {
        action.sa_flags & !SA_RESTORER == libc::SA_SIGINFO | libc::SA_ONSTACK
    };
    let own: Handler = handle;
    let is_std = handler == bus.sa_sigaction
        && is_formed(&segv)
        && is_formed(&bus)
        && handler != own as usize
        && (CODE_START.load(Ordering::Relaxed)..CODE_END.load(Ordering::Relaxed))
            .contains(&handler);
    is_std.then_some(handler)
}

/// The handler.
unsafe extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let error = Errno::last();
    // SAFETY: null, or set by `write_down`, whose caller keeps the record.
    let record = unsafe { RECORD.get().as_ref() };
    // SAFETY: the kernel has given it to the handler.
    let signal_info = unsafe { &*info };
    // SAFETY: as above.
    let interrupted = unsafe { &*context.cast::<libc::ucontext_t>() };
    let head = head(signal, signal_info, interrupted);
    let record = record.filter(|record| begin(record, &head));
    let std = STD.load(Ordering::Relaxed);
    let is_std = std != 0 && matches!(signal, libc::SIGSEGV | libc::SIGBUS);
    if is_std && !IS_GIVEN_UP.load(Ordering::Acquire) {
        // SAFETY: this was in place as a handler of this kind.
        let std = unsafe { std::mem::transmute::<usize, Handler>(std) };
        IS_IN_STD.store(record.is_some(), Ordering::Relaxed);
        // SAFETY: the arguments are those that the kernel gave.
        unsafe { std(signal, info, context) };
        IS_IN_STD.store(false, Ordering::Relaxed);
        // If it has not given the signal up, the process goes on.
        let is_given_up = action(signal).is_ok_and(|now| now.sa_sigaction == libc::SIG_DFL);
        if !is_given_up {
            if let Some(record) = record {
                record.take_back();
                WRITER.store(0, Ordering::Release);
            }
            error.set();
            return;
        }
        // The process is to die. Other threads that crash meanwhile must not end it before the
        // record is written.
        IS_GIVEN_UP.store(true, Ordering::Release);
        let _ = install(signal);
    }
    if signal == libc::SIGABRT {
        oom::note_abort(error, stack_pointer(interrupted));
    }
    match record {
        Some(record) => write_stack(record, &head, interrupted),
        None => await_writer(),
    }
    // SAFETY: the pointer is the kernel's.
    unsafe { die(signal, info) };
}

/// Returns what the kernel says of a signal.
fn head(signal: c_int, info: &libc::siginfo_t, context: &libc::ucontext_t) -> Head {
    let code = info.si_code;
    let has_address = code > 0 && code != SI_KERNEL && signal != libc::SIGABRT;
    // SAFETY: the kernel sets the address for these signals, unless a process has sent them.
    let address = has_address.then(|| unsafe { info.si_addr() }.addr());
    // SAFETY: the kernel sets the sender for signals that a process has sent. For others the bytes
    // are part of something else, and are not used.
    let sender = unsafe { info.si_pid() };
    let sender = if code <= 0 { sender } else { 0 };
    Head {
        signal,
        code,
        address,
        instruction: registers(context)[unwind::PC],
        sender: sender.cast_unsigned(),
    }
}

/// Writes the signal down, if this thread is the first one that crashes. Returns whether it is.
fn begin(record: &CrashRecord, head: &Head) -> bool {
    // SAFETY: gettid takes nothing.
    let own = unsafe { libc::gettid() };
    match WRITER.compare_exchange(0, own, Ordering::Acquire, Ordering::Relaxed) {
        Ok(_) => {}
        // The standard library's handler has been called for a signal, and aborts: that is what the
        // process dies of.
        Err(writer) if writer == own && IS_IN_STD.swap(false, Ordering::Relaxed) => {
            record.take_back();
        }
        Err(_) => return false,
    }
    record.write_head(head);
    true
}

/// Waits for the thread that writes the record to end the process, but not for ever.
fn await_writer() {
    let writer = WRITER.load(Ordering::Relaxed);
    // SAFETY: gettid takes nothing.
    let own = unsafe { libc::gettid() };
    // The writer itself may be here a second time: its writing has crashed. In a copy of a worker
    // there is no record, and the writer is a thread of the original.
    if writer != 0 && writer != own && !RECORD.get().is_null() {
        let pause = libc::timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        // SAFETY: the call reads the time.
        unsafe { libc::nanosleep(&raw const pause, ptr::null_mut()) };
    }
}

/// Has the process die of this signal when the handler returns.
unsafe fn die(signal: c_int, info: *mut libc::siginfo_t) {
    let _ = set_action(signal, libc::SIG_DFL, 0);
    // The signal is blocked until the handler returns. It is sent again, because the code that was
    // interrupted need not raise it again.
    // SAFETY: getpid takes nothing.
    let process = unsafe { libc::getpid() };
    // SAFETY: gettid takes nothing.
    let thread = unsafe { libc::gettid() };
    // SAFETY: the call takes three integers, and reads what the kernel has given.
    let sent = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info) };
    if sent != 0 {
        // SAFETY: raise may be called in a handler.
        unsafe { libc::raise(signal) };
    }
}

/// Writes the stack down. Called by the thread that is the writer.
fn write_stack(record: &CrashRecord, head: &Head, context: &libc::ucontext_t) {
    let registers = registers(context);
    // SAFETY: this thread is the writer.
    let Room { maps, walk } = unsafe { &mut *ROOM.0.get() };
    let is_access = matches!(head.signal, libc::SIGSEGV | libc::SIGBUS);
    let access = head.address.filter(|_| is_access);
    let fault = access.map(|address| (address, registers[unwind::RSP]));
    let mut interrupted = None;
    if let Some((address, stack)) = fault
        && has_overflowed(maps, address, stack)
    {
        record.set_overflowed();
    }
    // A thread of the program's may have a small stack for handlers, and not enough for the walk.
    if is_on_small_stack(context) {
        record.finish();
        return;
    }
    maps.read();
    walk.up(maps, registers, |step| match step {
        Step::Frame(address) => {
            // A return address may be the first behind its function.
            let module = maps
                .find(address)
                .or_else(|| maps.find(address.wrapping_sub(1)));
            if let Some(module) = module {
                record.add_module(module.start, module.end, module.base, maps.name(module));
            }
            record.add_frame(address)
        }
        Step::Signal {
            number,
            address,
            stack,
        } => {
            // The standard library's handler has found that a stack has overflowed, and aborts.
            if number == libc::SIGSEGV.cast_unsigned() || number == libc::SIGBUS.cast_unsigned() {
                interrupted.get_or_insert((address, stack));
                // What comes now is the way to it. The handler's is of no interest.
                record.forget_frames();
            }
            true
        }
    });
    if let Some((address, stack)) = interrupted
        && has_overflowed(maps, address, stack)
    {
        record.set_overflowed();
    }
    record.finish();
}

/// Returns whether the handler runs on a stack for handlers that is smaller than this module's.
fn is_on_small_stack(context: &libc::ucontext_t) -> bool {
    let here = ptr::from_ref(&context).addr();
    let stack = &context.uc_stack;
    here.wrapping_sub(stack.ss_sp.addr()) < stack.ss_size && stack.ss_size < STACK_BYTES
}

/// Returns whether an access to this address has run over the lower end of the stack.
fn has_overflowed(maps: &mut Maps, address: usize, pointer: usize) -> bool {
    // What lies above the guard of a stack is the stack.
    let Some(stack) = maps.writable_above(address) else {
        return false;
    };
    stack.wrapping_sub(address) <= FRAME_BYTES
        && pointer < stack.wrapping_add(4_096)
        && pointer.wrapping_add(FRAME_BYTES) >= address
        && pointer <= address.wrapping_add(BELOW_POINTER)
}

/// Returns the registers of the code that a signal has interrupted.
#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> Registers {
    const ORDER: [c_int; unwind::REGISTERS] = [
        libc::REG_RAX,
        libc::REG_RDX,
        libc::REG_RCX,
        libc::REG_RBX,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_RBP,
        libc::REG_RSP,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
        libc::REG_RIP,
    ];
    ORDER.map(|register| {
        context.uc_mcontext.gregs[register.cast_unsigned() as usize].cast_unsigned() as usize
    })
}

#[cfg(target_arch = "x86_64")]
fn stack_pointer(context: &libc::ucontext_t) -> usize {
    registers(context)[unwind::RSP]
}

#[cfg(target_arch = "aarch64")]
fn stack_pointer(context: &libc::ucontext_t) -> usize {
    context.uc_mcontext.sp as usize
}

/// Returns where nothing is found: where the pointer is kept is not known.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn stack_pointer(_: &libc::ucontext_t) -> usize {
    0
}

/// Returns no registers: what is known of other processors is the signal and its address.
#[cfg(not(target_arch = "x86_64"))]
fn registers(_: &libc::ucontext_t) -> Registers {
    [0; unwind::REGISTERS]
}

#[cfg(all(test, not(loom)))]
mod tests;
