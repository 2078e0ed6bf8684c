//! Fault points: places between two steps of a change in shared memory, at which tests kill or stop
//! a process. In other builds there is nothing here.

#[cfg(not(all(test, not(loom))))]
#[inline]
pub(crate) fn point() {}

#[cfg(all(test, not(loom)))]
pub(crate) use armed::{Child, Fate, point};

#[cfg(all(test, not(loom)))]
mod armed {
    use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};

    use nix::sys::signal::{Signal, kill, raise};
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;

    use crate::os::fork::{self, Side};

    /// How many fault points this process passes before it is killed or stopped.
    static LEFT: AtomicI64 = AtomicI64::new(i64::MAX);

    /// The signal that it gets there.
    static SIGNAL: AtomicI32 = AtomicI32::new(0);

    pub(crate) fn point() {
        if LEFT.load(Ordering::Relaxed) != i64::MAX
            && LEFT.fetch_sub(1, Ordering::Relaxed) == 0
            && let Ok(signal) = Signal::try_from(SIGNAL.load(Ordering::Relaxed))
        {
            let _ = raise(signal);
        }
    }

    /// What becomes of a child at its fault point.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Fate {
        Killed,
        /// Stopped, and let go on later.
        Paused,
        /// Stopped, and killed later.
        KilledLater,
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
        /// Runs `body` in a forked child that meets its fate at the fault point given, counted from
        /// 0.
        pub(crate) fn run(fate: Fate, number: i64, body: impl FnOnce()) -> Self {
            // SAFETY: other threads hold none of the locks that the child takes: the allocator's,
            // which the C library sees to, and those of objects that only the test has.
            #[allow(unsafe_code)]
            match unsafe { fork::fork() }.unwrap() {
                Side::Child => {
                    let signal = match fate {
                        Fate::Killed => Signal::SIGKILL,
                        Fate::Paused | Fate::KilledLater => Signal::SIGSTOP,
                    };
                    SIGNAL.store(signal as i32, Ordering::Relaxed);
                    LEFT.store(number, Ordering::Relaxed);
                    body();
                    fork::exit_now(0);
                }
                Side::Parent { child } => {
                    let pid = Pid::from_raw(child.cast_signed());
                    let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
                    let (is_stopped, is_through) = match status {
                        WaitStatus::Exited(_, 0) => (false, true),
                        WaitStatus::Signaled(_, Signal::SIGKILL, _) => (false, false),
                        WaitStatus::Stopped(..) => (true, false),
                        status => panic!("{status:?} at fault point {number}"),
                    };
                    Self {
                        pid,
                        fate,
                        is_stopped,
                        is_through,
                    }
                }
            }
        }

        pub(crate) fn pid(&self) -> u32 {
            self.pid.as_raw().cast_unsigned()
        }

        pub(crate) fn is_stopped(&self) -> bool {
            self.is_stopped
        }

        /// Lets a stopped child meet the rest of its fate. Whether it has come to its end before it
        /// met any.
        pub(crate) fn end(mut self) -> bool {
            if std::mem::take(&mut self.is_stopped) {
                let signal = match self.fate {
                    Fate::Paused => Signal::SIGCONT,
                    Fate::Killed | Fate::KilledLater => Signal::SIGKILL,
                };
                kill(self.pid, signal).unwrap();
                match waitpid(self.pid, None).unwrap() {
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
