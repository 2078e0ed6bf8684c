//! A descriptor by which one thread gets another out of its `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{read, write};

use super::above_standard;
use super::refusal::refused;

#[derive(Debug)]
pub(crate) struct Alarm(OwnedFd);

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let refused = |error: io::Error| refused("eventfd", "waking a thread", error);
        let fd = EventFd::from_flags(flags).map_err(|error| refused(error.into()))?;
        Ok(Self(above_standard(fd.into()).map_err(refused)?))
    }

    /// Makes the descriptor readable. Never blocks.
    pub(crate) fn ring(&self) {
        // It fails only if no thread has listened for 2^64 rings.
        let _ = write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable again.
    pub(crate) fn silence(&self) {
        // It fails if the alarm has not rung.
        let _ = read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::os::readable::wait_readable;

    #[test]
    fn an_alarm_is_heard_until_it_is_silenced() {
        let alarm = Alarm::new().unwrap();
        let is_heard = || {
            let heard = wait_readable(&[alarm.as_fd()], Some(Duration::ZERO));
            heard.unwrap().is_some()
        };
        // To silence an alarm that has not rung does not wait.
        alarm.silence();
        assert!(!is_heard());
        alarm.ring();
        alarm.ring();
        assert!(is_heard() && is_heard());
        alarm.silence();
        assert!(!is_heard());
    }
}
