//! What a sandbox does: system calls that are refused, in this process and in all that it starts
//! from then on.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What a sandbox may have taken away from a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The limit on open descriptors is 0: `poll` takes none any more, and none can be opened.
    Descriptors,
    /// A filter refuses `poll` and `ppoll`.
    Poll,
    /// A filter refuses all that waits for descriptors, except `epoll`.
    AllWaits,
    /// There are no pidfds, as before Linux 5.3 and under valgrind.
    Pidfds,
    /// There are no pidfds, and a filter refuses all waits, as above.
    PidfdsAndAllWaits,
}

impl Refused {
    pub const ALL: [Self; 5] = [
        Self::Descriptors,
        Self::Poll,
        Self::AllWaits,
        Self::Pidfds,
        Self::PidfdsAndAllWaits,
    ];

    pub fn name(self) -> String {
        format!("{self:?}")
    }

    pub fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|it| it.name() == name).unwrap()
    }

    /// What a program is without from its start. To be called before it has started anything.
    pub fn begin(self) {
        if matches!(self, Self::Pidfds | Self::PidfdsAndAllWaits) {
            refuse(&[libc::SYS_pidfd_open], libc::ENOSYS);
        }
    }

    /// Takes away the rest, from this process with all its threads.
    pub fn take_away(self) {
        #[cfg(target_arch = "x86_64")]
        const POLL: &[libc::c_long] = &[libc::SYS_poll, libc::SYS_ppoll];
        #[cfg(not(target_arch = "x86_64"))]
        const POLL: &[libc::c_long] = &[libc::SYS_ppoll];
        #[cfg(target_arch = "x86_64")]
        const SELECT: &[libc::c_long] = &[libc::SYS_select, libc::SYS_pselect6];
        #[cfg(not(target_arch = "x86_64"))]
        const SELECT: &[libc::c_long] = &[libc::SYS_pselect6];
        match self {
            Self::Descriptors => {
                let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
                setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
            }
            Self::Poll => refuse(POLL, libc::EPERM),
            Self::AllWaits | Self::PidfdsAndAllWaits => {
                refuse(&[POLL, SELECT].concat(), libc::EPERM);
            }
            Self::Pidfds => {}
        }
    }
}

/// Has these system calls fail with `error`.
pub fn refuse(calls: &[libc::c_long], error: libc::c_int) {
    let op = |code: u32, jt: usize, jf: u8, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: u8::try_from(jt).unwrap(),
        jf,
        k,
    };
    // The number of the call comes first in what a filter is given.
    let mut filter = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for (index, call) in calls.iter().enumerate() {
        let to_the_end = calls.len() - index;
        let number = u32::try_from(*call).unwrap();
        filter.push(op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            to_the_end,
            0,
            number,
        ));
    }
    let error = libc::SECCOMP_RET_ERRNO | error.cast_unsigned();
    filter.push(op(
        libc::BPF_RET | libc::BPF_K,
        0,
        0,
        libc::SECCOMP_RET_ALLOW,
    ));
    filter.push(op(libc::BPF_RET | libc::BPF_K, 0, 0, error));
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: prctl takes integers here.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    Errno::result(done).unwrap();
    // SAFETY: the program and its instructions live as long as the call, which only reads them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    assert_eq!(
        Errno::result(done).unwrap(),
        0,
        "a thread could not be told"
    );
}
