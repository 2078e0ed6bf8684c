//! [`Barrier`]: threads wait until all of them have come.

use std::panic::RefUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::{deadline, sleep};
use crate::barrier::{BarrierError, BarrierWaitResult};
use crate::shim::{Condvar, Mutex};

/// A place where threads wait until a fixed number of them has come. Then all go on together, and
/// the next round begins.
///
/// The barrier of `std` waits for ever when one of its threads never comes. So does
/// [`wait`](Self::wait) here. A thread that panics before it arrives is not noticed either: the
/// others wait for it. But each of them can use [`wait_timeout`](Self::wait_timeout), and when that
/// time is over the barrier is *broken*: the threads that wait, and all that come later, get
/// [`BarrierError::TimedOut`]. So all of them stop together instead of one after the other. Any
/// thread can break the barrier too, with [`abort`](Self::abort), for example on the way out of a
/// thread that fails. [`reset`](Self::reset) repairs it.
///
/// # Examples
///
/// ```
/// use manyhands::thread::Barrier;
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use std::thread;
///
/// let barrier = Barrier::new(3);
/// let (arrived, led) = (AtomicU32::new(0), AtomicU32::new(0));
/// thread::scope(|scope| {
///     for _ in 0..3 {
///         scope.spawn(|| {
///             for step in 1..=10 {
///                 arrived.fetch_add(1, Ordering::Relaxed);
///                 let pass = barrier.wait().expect("all come");
///                 assert!(arrived.load(Ordering::Relaxed) >= 3 * step); // none is a step behind
///                 if pass.is_leader() {
///                     led.fetch_add(1, Ordering::Relaxed);
///                 }
///             }
///         });
///     }
/// });
/// assert_eq!(led.into_inner(), 10);
/// ```
#[derive(Debug)]
pub struct Barrier {
    parties: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    waiting: usize,
    /// The round that the waiting threads wait for, if there are any. Each round has its own value:
    /// a thread that is slow to wake finds how *its* round has ended, whatever has happened to the
    /// barrier since. A count of rounds could not tell that.
    round: Option<Arc<Round>>,
    /// Why it is broken, if it is.
    broken: Option<BarrierError>,
}

#[derive(Debug, Default)]
struct Round {
    outcome: OnceLock<Result<(), BarrierError>>,
    ended: Condvar,
}

/// A panic never leaves it half changed.
impl RefUnwindSafe for Barrier {}

impl State {
    /// Ends the round: all threads that wait go on, with this outcome.
    fn end_round(&mut self, outcome: Result<(), BarrierError>) {
        self.waiting = 0;
        if let Some(round) = self.round.take() {
            // A round is taken out when it ends, so this is the first outcome.
            let _ = round.outcome.set(outcome);
            round.ended.notify_all();
        }
    }

    /// Breaks the barrier. If it is broken already, no thread waits, and the first reason stays.
    fn break_round(&mut self, reason: BarrierError) {
        self.broken.get_or_insert(reason);
        self.end_round(Err(reason));
    }
}

impl Barrier {
    /// Makes a barrier for `parties` threads.
    ///
    /// # Panics
    ///
    /// If `parties` is 0: no thread could ever be the last to come.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Barrier;
    ///
    /// static STEP: Barrier = Barrier::new(4);
    /// assert_eq!(STEP.parties(), 4);
    /// ```
    #[must_use]
    #[track_caller]
    pub const fn new(parties: usize) -> Self {
        assert!(parties > 0, "a barrier is for at least 1 party");
        Self {
            parties,
            state: Mutex::new(State {
                waiting: 0,
                round: None,
                broken: None,
            }),
        }
    }

    /// Waits until all parties have come.
    ///
    /// # Errors
    ///
    /// [`BarrierError`] if the barrier is broken, or is broken or reset before all have come.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Barrier;
    /// use std::thread;
    ///
    /// let barrier = Barrier::new(2);
    /// thread::scope(|scope| {
    ///     let other = scope.spawn(|| barrier.wait());
    ///     assert!(barrier.wait().is_ok());
    ///     assert!(other.join().unwrap().is_ok());
    /// });
    /// ```
    pub fn wait(&self) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_until(None)
    }

    /// Waits until all parties have come, but no longer than `timeout`. If they have not come by
    /// then, the barrier is broken for all of them.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait), and [`BarrierError::TimedOut`] when the time is over.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::{Barrier, BarrierError};
    /// use std::time::Duration;
    ///
    /// let barrier = Barrier::new(2);
    /// assert_eq!(
    ///     barrier.wait_timeout(Duration::from_millis(10)),
    ///     Err(BarrierError::TimedOut)
    /// );
    /// // A thread that comes too late learns why.
    /// assert_eq!(barrier.wait(), Err(BarrierError::TimedOut));
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_until(deadline(timeout))
    }

    /// Breaks the barrier: the threads that wait, and all that come later, get
    /// [`BarrierError::Aborted`]. A barrier that is broken already keeps its first reason.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::{Barrier, BarrierError};
    /// use std::thread;
    ///
    /// let barrier = Barrier::new(2);
    /// thread::scope(|scope| {
    ///     let other = scope.spawn(|| barrier.wait());
    ///     barrier.abort();
    ///     assert_eq!(other.join().unwrap(), Err(BarrierError::Aborted));
    /// });
    /// ```
    pub fn abort(&self) {
        self.state.lock().break_round(BarrierError::Aborted);
    }

    /// Makes the barrier as good as new. The threads that wait at that moment get
    /// [`BarrierError::Reset`].
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Barrier;
    ///
    /// let barrier = Barrier::new(1);
    /// barrier.abort();
    /// barrier.reset();
    /// assert!(barrier.wait().is_ok());
    /// ```
    pub fn reset(&self) {
        let mut state = self.state.lock();
        state.end_round(Err(BarrierError::Reset));
        state.broken = None;
    }

    /// Returns whether the barrier is broken.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Barrier;
    ///
    /// let barrier = Barrier::new(2);
    /// assert!(!barrier.is_broken());
    /// barrier.abort();
    /// assert!(barrier.is_broken());
    /// ```
    pub fn is_broken(&self) -> bool {
        self.state.lock().broken.is_some()
    }

    /// Returns the number of threads that have to come.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Barrier;
    ///
    /// assert_eq!(Barrier::new(3).parties(), 3);
    /// ```
    pub const fn parties(&self) -> usize {
        self.parties
    }

    /// Returns the number of threads that have come and wait for the others: 0 to `parties - 1`.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::thread::Barrier;
    ///
    /// assert_eq!(Barrier::new(3).waiting(), 0);
    /// ```
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<BarrierWaitResult, BarrierError> {
        let mut state = self.state.lock();
        if let Some(reason) = state.broken {
            return Err(reason);
        }
        let pass = BarrierWaitResult::new(state.waiting, self.parties);
        if pass.is_leader() {
            state.end_round(Ok(()));
            return Ok(pass);
        }
        state.waiting += 1;
        let round = Arc::clone(state.round.get_or_insert_default());
        loop {
            let is_late = sleep(&round.ended, &mut state, deadline);
            // An outcome counts even if it came at the last moment, when the time was over.
            if let Some(outcome) = round.outcome.get() {
                return outcome.map(|()| pass);
            }
            if is_late {
                state.break_round(BarrierError::TimedOut);
                return Err(BarrierError::TimedOut);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eventually, in_thread, leak, soon};
    use super::*;

    #[test]
    #[should_panic(expected = "at least 1 party")]
    fn a_barrier_for_nobody_is_refused() {
        let _ = Barrier::new(0);
    }

    #[test]
    fn who_is_slow_to_wake_learns_how_its_own_round_has_ended() {
        let barrier = leak(Barrier::new(2));
        for _ in 0..500 {
            let slow = in_thread(|| barrier.wait());
            eventually(|| barrier.waiting() == 1);
            barrier.abort();
            barrier.reset();
            // Two more rounds, one passed and one broken, while the first may still be waking.
            let other = in_thread(|| barrier.wait());
            eventually(|| barrier.waiting() == 1);
            assert_eq!(barrier.wait(), Ok(BarrierWaitResult::new(1, 2)));
            let broken = in_thread(|| barrier.wait());
            eventually(|| barrier.waiting() == 1);
            barrier.reset();
            assert_eq!(soon(&slow), Err(BarrierError::Aborted));
            assert_eq!(soon(&other), Ok(BarrierWaitResult::new(0, 2)));
            assert_eq!(soon(&broken), Err(BarrierError::Reset));
        }
    }
}
