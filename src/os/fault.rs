//! Fault points: places between two steps of a change in shared memory, at which tests kill or stop
//! a process. In other builds there is nothing here.

#[cfg(not(all(test, not(loom))))]
pub(crate) use unarmed::{for_next_child, point};

#[cfg(all(test, not(loom)))]
pub(crate) use armed::{
    Child, Fate, Met, alone, arm_children, count_from_here, for_next_child, point,
};

#[cfg(not(all(test, not(loom))))]
mod unarmed {
    #[inline]
    pub(crate) fn point() {}

    pub(crate) struct Arming;

    /// Returns what the child that is forked next is to meet.
    #[inline]
    pub(crate) fn for_next_child() -> Arming {
        Arming
    }

    impl Arming {
        #[inline]
        #[allow(clippy::unused_self, reason = "as the armed one")]
        pub(crate) fn arm(self) {}
    }
}

#[cfg(all(test, not(loom)))]
mod armed {
    use std::cell::RefCell;
    use std::num::NonZeroUsize;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill, raise};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;
    use parking_lot::{Mutex, MutexGuard};

    use crate::os::fork::{self, Side};
    use crate::os::memory::SharedMemory;

    /// The number of fault points that this process passes before it is killed or stopped.
    static LEFT: AtomicI64 = AtomicI64::new(i64::MAX);

    /// [`fork::generation`] of the process that is armed. Its own children are spared.
    static ARMED_IN: AtomicU32 = AtomicU32::new(0);

    /// Where the process leaves its number, if the test wants to know.
    static MET: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());

    /// The signal that the process gets there.
    static SIGNAL: AtomicI32 = AtomicI32::new(0);

    pub(crate) fn point() {
        if LEFT.load(Ordering::Relaxed) != i64::MAX
            && ARMED_IN.load(Ordering::Relaxed) == fork::generation()
            && LEFT.fetch_sub(1, Ordering::Relaxed) == 0
            && let Ok(signal) = Signal::try_from(SIGNAL.load(Ordering::Relaxed))
        {
            // SAFETY: null, or the word of a mapping that this process keeps.
            #[allow(unsafe_code)]
            if let Some(met) = unsafe { MET.load(Ordering::Relaxed).as_ref() } {
                met.store(std::process::id(), Ordering::SeqCst);
            }
            let _ = raise(signal);
        }
    }

    fn arm(fate: Fate, number: i64) {
        let signal = match fate {
            Fate::Killed => Signal::SIGKILL,
            Fate::Paused | Fate::KilledLater => Signal::SIGSTOP,
        };
        SIGNAL.store(signal as i32, Ordering::Relaxed);
        ARMED_IN.store(fork::generation(), Ordering::Relaxed);
        LEFT.store(number, Ordering::Relaxed);
    }

    /// Counts the fault points of this armed child anew: its fate is at the one given, counted from
    /// here.
    pub(crate) fn count_from_here(number: i64) {
        LEFT.store(number, Ordering::Relaxed);
    }

    /// A word that says which process has met its fate, and whether one has.
    #[derive(Clone, Debug)]
    pub(crate) struct Met(Arc<SharedMemory>);

    impl Met {
        pub(crate) fn new() -> Self {
            let len = NonZeroUsize::new(4_096).unwrap();
            Self(Arc::new(SharedMemory::new("a test", len).unwrap().0))
        }

        fn word(&self) -> &AtomicU32 {
            // SAFETY: the mapping is large enough, zeros at first, and lives as long as `self`.
            #[allow(unsafe_code)]
            unsafe {
                self.0.start().cast::<AtomicU32>().as_ref()
            }
        }

        /// Returns the process that has met its fate.
        pub(crate) fn pid(&self) -> Option<u32> {
            let pid = self.word().load(Ordering::SeqCst);
            (pid != 0).then_some(pid)
        }
    }

    thread_local! {
        static NEXT_CHILDREN: RefCell<Vec<(Fate, i64, Met)>> = const { RefCell::new(Vec::new()) };
    }

    /// Arms children: each of the next `count` children that an engine forks on this thread meets
    /// `fate` at the fault point given. Forgets children that were armed before and not forked.
    pub(crate) fn arm_children(count: usize, fate: Fate, number: i64, met: &Met) {
        NEXT_CHILDREN.set(vec![(fate, number, met.clone()); count]);
    }

    pub(crate) struct Arming(Option<(Fate, i64, Met)>);

    /// Returns what the child that is forked next is to meet.
    pub(crate) fn for_next_child() -> Arming {
        Arming(NEXT_CHILDREN.with_borrow_mut(Vec::pop))
    }

    impl Arming {
        /// Arms this process. To be called in that child.
        pub(crate) fn arm(self) {
            if let Some((fate, number, met)) = self.0 {
                MET.store(std::ptr::from_ref(met.word()).cast_mut(), Ordering::Relaxed);
                std::mem::forget(met);
                arm(fate, number);
            }
        }
    }

    /// Waits for the other tests that stop processes, and keeps them from running: a process that
    /// they stop may have the lock of the family's ledger, and then calls of this test would not
    /// come as far as their fault points.
    pub(crate) fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock()
    }

    /// What becomes of a child at its fault point.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Fate {
        Killed,
        /// Stopped, and continued later.
        Paused,
        /// Stopped, and killed later.
        KilledLater,
    }

    /// The time that a child may take to meet its fate, or to end.
    const IN_TIME: Duration = Duration::from_secs(20);

    fn wait_beside(pid: Pid, flags: WaitPidFlag, mut meanwhile: impl FnMut()) -> WaitStatus {
        let end = Instant::now() + IN_TIME;
        loop {
            meanwhile();
            match waitpid(pid, Some(flags | WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => {}
                status => return status,
            }
            if Instant::now() >= end {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
                panic!("child {pid} does not go on");
            }
            std::thread::yield_now();
        }
    }

    /// A forked child that was at its fault point, or has come to its end without one.
    #[must_use = "it is to be ended"]
    pub(crate) struct Child {
        pid: Pid,
        fate: Fate,
        is_stopped: bool,
        is_through: bool,
    }

    impl Child {
        /// Runs `body` in a forked child that meets its fate at fault point `number`, from 0 on.
        pub(crate) fn run(fate: Fate, number: i64, body: impl FnOnce()) -> Self {
            let child = Self::start(fate, number, body);
            let status = waitpid(child.pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
            child.met(number, status)
        }

        /// Does the same. This process calls `meanwhile` again and again until the child is there.
        pub(crate) fn run_beside(
            fate: Fate,
            number: i64,
            body: impl FnOnce(),
            meanwhile: impl FnMut(),
        ) -> Self {
            let child = Self::start(fate, number, body);
            let status = wait_beside(child.pid, WaitPidFlag::WUNTRACED, meanwhile);
            child.met(number, status)
        }

        fn start(fate: Fate, number: i64, body: impl FnOnce()) -> Self {
            // The test harness holds these locks now and then, and the child may print or flush.
            let outputs = (std::io::stdout().lock(), std::io::stderr().lock());
            // SAFETY: other threads hold none of the locks that the child takes: the allocator's,
            // which the C library sees to, and those of objects that only the test has.
            #[allow(unsafe_code)]
            let side = unsafe { fork::fork() }.unwrap();
            drop(outputs);
            match side {
                Side::Child => {
                    arm(fate, number);
                    // Beyond this are the frames of the parent's test, whose thread would end
                    // without a message.
                    let ended = catch_unwind(AssertUnwindSafe(body));
                    fork::exit_now(if ended.is_ok() { 0 } else { 101 });
                }
                Side::Parent { child } => Self {
                    pid: Pid::from_raw(child.cast_signed()),
                    fate,
                    is_stopped: true,
                    is_through: false,
                },
            }
        }

        fn met(mut self, number: i64, status: WaitStatus) -> Self {
            (self.is_stopped, self.is_through) = match status {
                WaitStatus::Exited(_, 0) => (false, true),
                WaitStatus::Signaled(_, Signal::SIGKILL, _) => (false, false),
                WaitStatus::Stopped(..) => (true, false),
                status => {
                    self.is_stopped = false;
                    panic!("{status:?} at fault point {number}");
                }
            };
            self
        }

        pub(crate) fn pid(&self) -> u32 {
            self.pid.as_raw().cast_unsigned()
        }

        pub(crate) fn is_stopped(&self) -> bool {
            self.is_stopped
        }

        /// Lets a stopped child meet the rest of its fate. Returns whether it has come to its end
        /// before it met any.
        pub(crate) fn end(self) -> bool {
            self.end_beside(|| {})
        }

        /// Does the same. This process calls `meanwhile` again and again until the child has ended.
        pub(crate) fn end_beside(mut self, meanwhile: impl FnMut()) -> bool {
            if std::mem::take(&mut self.is_stopped) {
                let signal = match self.fate {
                    Fate::Paused => Signal::SIGCONT,
                    Fate::Killed | Fate::KilledLater => Signal::SIGKILL,
                };
                kill(self.pid, signal).unwrap();
                match wait_beside(self.pid, WaitPidFlag::empty(), meanwhile) {
                    WaitStatus::Exited(_, 0) => assert_eq!(self.fate, Fate::Paused),
                    WaitStatus::Signaled(_, Signal::SIGKILL, _) => {
                        assert_eq!(self.fate, Fate::KilledLater);
                    }
                    status => panic!("{status:?}"),
                }
            }
            self.is_through
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            if self.is_stopped {
                let _ = kill(self.pid, Signal::SIGKILL);
                let _ = waitpid(self.pid, None);
            }
        }
    }
}
