//! The ways in which an array is claimed: at once, for the time of a call, or with a timeout.

use std::ops::Range;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use super::SharedArray;
use super::claim::{Claim, own_number};
use super::claim_mode::{Mode, Terms};
use super::claims::Refusal;
use super::guards::{ArrayReadGuard, ArrayWriteGuard};
use crate::error::ClaimError;
use crate::memory::shareable::Shareable;
use crate::memory::wait_mode::WaitMode;

impl<T: Shareable> SharedArray<T> {
    pub(super) fn terms(mode: Mode, range: &Range<usize>) -> Result<Terms, Refusal> {
        Ok(Terms {
            member: own_number()?,
            mode,
            start: range.start as u64,
            end: range.end as u64,
            lend: 0,
        })
    }

    pub(super) fn claim(&self, mode: Mode, range: &Range<usize>) -> Result<Claim<'_>, Refusal> {
        let ends = (range.start as u64, range.end as u64);
        Claim::new(&self.object, mode, ends, true)
    }

    /// Claims all elements for the time of a call.
    pub(super) fn briefly(&self, mode: Mode) -> Result<(Claim<'_>, NonNull<[T]>), Refusal> {
        let claim = Claim::copying(&self.object, mode, (0, self.len() as u64), 0)?;
        Ok((claim, self.elements()))
    }

    pub(super) fn read_briefly(&self) -> Result<ArrayReadGuard<'_, T>, ClaimError> {
        let (claim, elements) = self.briefly(Mode::Read)?;
        Ok(ArrayReadGuard::new(claim, elements))
    }

    pub(super) fn write_briefly(&self) -> Result<ArrayWriteGuard<'_, T>, ClaimError> {
        let (claim, elements) = self.briefly(Mode::Write)?;
        Ok(ArrayWriteGuard::new(claim, elements))
    }

    /// Claims, and waits at most `timeout` for others to give back the claims that clash.
    pub(super) fn claim_within(
        &self,
        mode: Mode,
        range: &Range<usize>,
        timeout: Duration,
    ) -> Result<Claim<'_>, Refusal> {
        let mode_of_wait = WaitMode::within(timeout);
        if !self.object.reach(|| mode_of_wait.lock_deadline()) {
            return Err(Refusal::Locked(None));
        }
        self.object.head().wait(
            mode_of_wait.deadline(),
            || {
                // The last look is late already, and the wait has looked for the dead before it.
                let deadline = mode_of_wait.deadline();
                let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
                let ends = (range.start as u64, range.end as u64);
                Claim::new(&self.object, mode, ends, !is_late)
            },
            |refusal| {
                refusal.is_locked() || matches!(refusal, Refusal::Clash(_) | Refusal::Full { .. })
            },
        )
    }
}
