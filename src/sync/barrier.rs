//! A place where several threads wait for one another.

use std::fmt;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use crate::barrier::{BarrierError, BarrierWaitResult};
use crate::memory::ShareError;
use crate::memory::deferred::Limit;
use crate::memory::kind::{Head, Kind};
use crate::memory::member::{self, End, MEMBERS};
use crate::memory::object::{Object, handle, same_object};
use crate::memory::wait::Waiters;
use crate::memory::wait_mode::WaitMode;
use crate::os::fault;
use crate::os::robust::{Held, RobustMutex};

/// A place where a number of threads, of any processes, wait until all of them have come.
///
/// Then all go on, and the barrier is ready for the next time. If it becomes clear that not all
/// will come, it breaks: all parties that wait get a [`BarrierError`] with the reason, and so do
/// those that come later, until a process calls [`reset`](Self::reset). It breaks when
///
/// - a process that has a handle of it is killed, or crashes, whether it waits right now or not
///   ([`PartyDied`](BarrierError::PartyDied));
/// - a process ends by itself while one of its threads waits (also `PartyDied`);
/// - a party has waited for longer than its timeout ([`wait_timeout`](Self::wait_timeout);
///   [`TimedOut`](BarrierError::TimedOut));
/// - a process calls [`abort`](Self::abort) ([`Aborted`](BarrierError::Aborted)).
///
/// Of several reasons, the first one counts.
///
/// A process that ends by itself without waiting (with an exit status, whatever it is), or drops
/// its handles, breaks nothing.
///
/// # Examples
///
/// ```
/// use manyhands::{Process, sync::Barrier};
///
/// let barrier = Barrier::new(3)?;
/// let run = |barrier: Barrier| {
///     for _ in 0..10 {
///         barrier.wait().unwrap();
///     }
/// };
/// let children = [
///     Process::spawn(run, barrier.clone())?,
///     Process::spawn(run, barrier.clone())?,
/// ];
/// for _ in 0..10 {
///     barrier.wait()?;
/// }
/// for child in children {
///     assert!(child.join()?.success());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Barrier {
    object: Object<BarrierHead>,
}

/// The number of broken generations that are remembered.
const REMEMBERED: usize = 32;

/// The reason of a break takes up so many bits below the number of its generation.
const REASON_BITS: u32 = 3;

/// Returns the number by which the head has this reason; never 0.
fn code(reason: BarrierError) -> u32 {
    match reason {
        BarrierError::TimedOut => 1,
        BarrierError::PartyDied => 2,
        BarrierError::Aborted => 3,
        BarrierError::Reset => 4,
    }
}

/// Returns the reason with this number. A number that no process of this crate wrote counts as a
/// death: the process that wrote it is at fault.
fn reason(code: u32) -> BarrierError {
    match code {
        1 => BarrierError::TimedOut,
        3 => BarrierError::Aborted,
        4 => BarrierError::Reset,
        _ => BarrierError::PartyDied,
    }
}

/// The head of a barrier. All of it but `waiters` is changed under the lock. The next owner breaks
/// the barrier if a process was killed with the lock, which puts every word in order. Nearly always
/// that process was a party, so the barrier breaks anyhow. A process without a handle takes the
/// lock only to reclaim what a dead one held. If it is killed then, the barrier breaks as well: the
/// next owner cannot tell the two apart.
#[repr(C)]
pub(super) struct BarrierHead {
    lock: RobustMutex,
    parties: AtomicU32,
    /// The number of parties of the present generation that have arrived.
    arrived: AtomicU32,
    /// The reason why it is broken, as a [`code`]; 0: it is not.
    broken: AtomicU32,
    waiters: Waiters,
    /// One more with each pass and each break, from 1 on. Parties that have arrived wait for the
    /// next one. Changed as the last step of both.
    generation: AtomicU64,
    /// How often the barrier broke. With `broken_generations`, which has those generations in turn,
    /// a party that wakes up late finds out how its own has ended. A party that sleeps through 32
    /// breaks takes it for a pass. Each word has the generation and, in its lower bits, the reason,
    /// so that one store writes both.
    breaks: AtomicU32,
    /// How often the barrier was reset.
    resets: AtomicU32,
    broken_generations: [AtomicU64; REMEMBERED],
    /// For each member, the generation in which a party of it last arrived; its lower bits.
    generations: [AtomicU32; MEMBERS],
}

// SAFETY: it is of atomics, and the lock in `LOCKS`.
#[allow(unsafe_code)]
unsafe impl Head for BarrierHead {
    const KIND: Kind = Kind::Barrier;
    const LOCKS: &'static [usize] = &[offset_of!(Self, lock)];
}

impl BarrierHead {
    /// Takes the lock. Waits at most until the deadline that `limit` gives.
    fn hold(&self, limit: impl FnOnce() -> Option<Instant>) -> Option<Held<'_>> {
        let held = super::hold(&self.lock, limit)?;
        // The last owner died with the lock. The break puts in order what it left half-changed. A
        // barrier that was broken before stays broken for its first reason.
        if held.owner_died() {
            self.break_up(self.broken_for().unwrap_or(BarrierError::PartyDied));
            self.waiters.notify_all();
        }
        Some(held)
    }

    /// Returns why the barrier is broken. A reset that is under way is no reason.
    fn broken_for(&self) -> Option<BarrierError> {
        self.reason()
            .filter(|&reason| reason != BarrierError::Reset)
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed) != 0
    }

    /// Returns why the barrier is broken, if it is.
    fn reason(&self) -> Option<BarrierError> {
        match self.broken.load(Ordering::Relaxed) {
            0 => None,
            code => Some(reason(code)),
        }
    }

    fn generation(&self) -> u64 {
        // Acquire pairs with the store in `next`: a thread that sees the new generation sees how
        // the old one has ended.
        self.generation.load(Ordering::Acquire)
    }

    /// Begins the next generation. The caller has the lock.
    fn next(&self) {
        let generation = self.generation.load(Ordering::Relaxed);
        self.arrived.store(0, Ordering::Relaxed);
        fault::point();
        self.generation.store(generation + 1, Ordering::Release);
    }

    /// Ends the present generation without a pass. The caller has the lock, and notifies all
    /// parties afterwards. If it is killed in the middle, the next owner does it once more, and
    /// then the reason is that death.
    fn break_up(&self, reason: BarrierError) {
        let breaks = self.breaks.load(Ordering::Relaxed);
        let generation = self.generation.load(Ordering::Relaxed);
        fault::point();
        let word = generation << REASON_BITS | u64::from(code(reason));
        self.broken_generations[breaks as usize % REMEMBERED].store(word, Ordering::Relaxed);
        fault::point();
        self.breaks.store(breaks.wrapping_add(1), Ordering::Relaxed);
        fault::point();
        self.broken.store(code(reason), Ordering::Relaxed);
        fault::point();
        self.next();
    }

    /// Breaks the barrier for this reason if `condition` says so under the lock and it is not
    /// broken already. Returns false if the lock was not free before the deadline.
    fn break_if(
        &self,
        limit: Limit,
        reason: BarrierError,
        condition: impl FnOnce() -> bool,
    ) -> bool {
        let Some(held) = self.hold(|| limit.at()) else {
            return false;
        };
        if !self.is_broken() && condition() {
            self.break_up(reason);
        }
        drop(held);
        self.waiters.notify_all();
        true
    }

    /// Returns why this generation has ended without a pass, if it has. If its break was done
    /// twice, because a process died in the middle of the first, both reasons are true.
    fn broken_by(&self, generation: u64) -> Option<BarrierError> {
        let words = self.broken_generations.iter();
        let mut words = words.map(|word| word.load(Ordering::Relaxed));
        let word = words.find(|word| word >> REASON_BITS == generation)?;
        Some(reason((word & ((1 << REASON_BITS) - 1)) as u32))
    }

    fn is_waiting(&self, member: u16) -> bool {
        let since = self.generations[usize::from(member) % MEMBERS].load(Ordering::Relaxed);
        since == self.generation.load(Ordering::Relaxed) as u32
    }

    /// Breaks the barrier for a member that has ended, if it was killed or has a party that waits.
    /// Returns false if the caller has to try again later, because the lock was not free before the
    /// deadline.
    pub(super) fn reclaim(&self, member: u16, end: End, deadline: Instant) -> bool {
        let is_meant = || end == End::Killed || self.is_waiting(member);
        self.break_if(Limit::Until(deadline), BarrierError::PartyDied, is_meant)
    }
}

impl Barrier {
    /// Makes a barrier for `parties` parties.
    ///
    /// # Errors
    ///
    /// [`ShareError::Invalid`] for no parties, and for more than `u32::MAX`;
    /// [`ShareError::OutOfMemory`], and what else can keep a process from sharing objects.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::{sync::Barrier, shm::ShareError};
    ///
    /// assert_eq!(Barrier::new(2)?.parties(), 2);
    /// assert!(matches!(Barrier::new(0), Err(ShareError::Invalid { .. })));
    /// # Ok::<(), ShareError>(())
    /// ```
    pub fn new(parties: usize) -> Result<Self, ShareError> {
        let invalid = |reason: &'static str| ShareError::Invalid {
            what: "the number of parties of a barrier".into(),
            value: parties.to_string(),
            reason: reason.into(),
        };
        if parties == 0 {
            return Err(invalid("no party would ever come"));
        }
        let parties =
            u32::try_from(parties).map_err(|_| invalid("there are not so many threads"))?;
        let object = Object::<BarrierHead>::new(0, 0, |_, _| Ok(()))?;
        let head = object.head();
        head.parties.store(parties, Ordering::Relaxed);
        head.generation.store(1, Ordering::Relaxed);
        Ok(Self { object })
    }

    fn head(&self) -> &BarrierHead {
        self.object.head()
    }

    fn arrive(&self, mode: WaitMode) -> Result<BarrierWaitResult, BarrierError> {
        if !self.object.reach(|| mode.lock_deadline()) {
            // This is a forked child that has not been able in time to make its copy of the handle
            // its own.
            self.break_later(BarrierError::TimedOut);
            return Err(BarrierError::TimedOut);
        }
        let (head, member) = (self.head(), member::own_number());
        let generation = head.generation();
        let Some(lock) = head.hold(|| mode.lock_deadline()) else {
            self.give_up(generation)?;
            // All others have passed without this party. It was not part of this generation, and
            // its time is up.
            return Err(BarrierError::TimedOut);
        };
        fault::point();
        if let Some(reason) = head.reason() {
            return Err(reason);
        }
        let generation = head.generation.load(Ordering::Relaxed);
        let index = head.arrived.load(Ordering::Relaxed);
        let parties = head.parties.load(Ordering::Relaxed);
        let pass = BarrierWaitResult::new(index as usize, parties as usize);
        head.generations[usize::from(member) % MEMBERS].store(generation as u32, Ordering::Relaxed);
        // The last party has come: all pass.
        if pass.is_leader() {
            head.next();
            drop(lock);
            head.waiters.notify_all();
            return Ok(pass);
        }
        fault::point();
        head.arrived.store(index + 1, Ordering::Relaxed);
        fault::point();
        drop(lock);
        let ready = || (head.generation() != generation).then_some(());
        let waiters = &head.waiters;
        let woken = waiters.wait(mode.deadline(), ready, member::poll_for_dead);
        if woken.is_none() {
            self.give_up(generation)?;
        }
        // The generation has ended, by a break or by a pass.
        head.broken_by(generation).map_or(Ok(pass), Err)
    }

    /// Breaks the barrier, now or as soon as the lock is free, unless it has been reset by then.
    fn break_later(&self, reason: BarrierError) {
        let mut resets = None;
        self.object.now_or_later(move |head, limit| {
            let now = || head.resets.load(Ordering::Relaxed);
            let then = *resets.get_or_insert_with(now);
            head.break_if(limit, reason, || now() == then)
        });
    }

    /// Breaks the generation, because the time of this party is up, unless the generation has ended
    /// meanwhile. If a process is stopped with the lock, the barrier is broken as soon as that is
    /// possible.
    fn give_up(&self, generation: u64) -> Result<(), BarrierError> {
        let reason = BarrierError::TimedOut;
        self.object.now_or_later(move |head, limit| {
            head.break_if(limit, reason, || head.generation() == generation)
        });
        let head = self.head();
        // The break is put off, or this party came to a barrier that was broken already.
        if head.generation() == generation {
            return Err(head.broken_for().unwrap_or(reason));
        }
        // The generation was broken, here or for another reason just before. Otherwise all have
        // passed.
        head.broken_by(generation).map_or(Ok(()), Err)
    }

    /// Waits until all parties have come.
    ///
    /// # Errors
    ///
    /// [`BarrierError`], if not all will come, or another party resets the barrier.
    ///
    /// # Examples
    ///
    /// See [`Barrier`].
    pub fn wait(&self) -> Result<BarrierWaitResult, BarrierError> {
        self.arrive(WaitMode::Forever)
    }

    /// Waits until all parties have come, and breaks the barrier if that takes longer than
    /// `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`wait`](Self::wait), and [`BarrierError::TimedOut`] when the time is over. The other
    /// parties get `TimedOut` then, too.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::{Barrier, BarrierError};
    /// # use std::time::Duration;
    /// let barrier = Barrier::new(2)?;
    /// assert_eq!(
    ///     barrier.wait_timeout(Duration::from_millis(1)),
    ///     Err(BarrierError::TimedOut)
    /// );
    /// assert!(barrier.is_broken());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, BarrierError> {
        self.arrive(WaitMode::within(timeout))
    }

    /// Breaks the barrier, for a party that will not come. All parties get
    /// [`BarrierError::Aborted`], if the barrier was not broken before.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::Process;
    /// use manyhands::sync::{Barrier, BarrierError};
    ///
    /// let barrier = Barrier::new(2)?;
    /// let child = Process::spawn(
    ///     |barrier: Barrier| {
    ///         // … what it was to prepare has failed, so the other one need not wait for it …
    ///         barrier.abort();
    ///     },
    ///     barrier.clone(),
    /// )?;
    /// assert_eq!(barrier.wait(), Err(BarrierError::Aborted));
    /// assert!(child.join()?.success());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn abort(&self) {
        self.break_later(BarrierError::Aborted);
    }

    /// Makes the barrier usable again. Parties that wait get [`BarrierError::Reset`].
    ///
    /// Processes that were killed before this do not break it again, unless another process is
    /// stopped in the middle of a change to a shared object. The call waits for a process that is
    /// stopped in the middle of a change to this barrier.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::sync::Barrier;
    /// let barrier = Barrier::new(1)?;
    /// barrier.abort();
    /// barrier.reset();
    /// assert!(barrier.wait().is_ok());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn reset(&self) {
        let head = self.head();
        member::reclaim_dead();
        let lock = head.hold(|| None);
        if head.arrived.load(Ordering::Relaxed) > 0 {
            head.break_up(BarrierError::Reset);
        } else {
            // A party whose time was up before the reset may not have had the lock to say so yet.
            // It must not break the barrier of the next pass: that has another number.
            head.next();
        }
        head.resets.fetch_add(1, Ordering::Relaxed);
        head.broken.store(0, Ordering::Relaxed);
        drop(lock);
        head.waiters.notify_all();
    }

    /// Returns whether the barrier is broken. The death of a party may show only when a thread
    /// waits.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(!manyhands::sync::Barrier::new(1)?.is_broken());
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn is_broken(&self) -> bool {
        self.head().is_broken()
    }

    /// Returns the number of parties that the barrier is for.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(manyhands::sync::Barrier::new(5)?.parties(), 5);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn parties(&self) -> usize {
        self.head().parties.load(Ordering::Relaxed) as usize
    }

    /// Returns the number of parties that wait right now.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(manyhands::sync::Barrier::new(5)?.waiting(), 0);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn waiting(&self) -> usize {
        self.head().arrived.load(Ordering::Relaxed) as usize
    }
}

same_object!([] Barrier, "manyhands::sync::Barrier::new(2)?", object);
handle!(Barrier { object }, 0);

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier")
            .field("parties", &self.parties())
            .field("waiting", &self.waiting())
            .field("is_broken", &self.is_broken())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::thread::{self, Scope};

    use super::*;

    /// Has another thread take the barrier's lock. It keeps the lock until what this returns is
    /// dropped, as a stopped process would.
    fn hold<'scope>(scope: &'scope Scope<'scope, '_>, barrier: &'scope Barrier) -> Sender<()> {
        let ((tell, told), (go, may_go)) = (channel(), channel());
        scope.spawn(move || {
            let _lock = barrier.head().hold(|| None);
            tell.send(()).unwrap();
            let _: Result<(), _> = may_go.recv();
        });
        told.recv().unwrap();
        go
    }

    /// Without these wake-ups a party looks by itself, some time later.
    #[test]
    fn what_ends_a_generation_wakes_all_parties() {
        type Change = fn(&Barrier);
        let passes: Change = |barrier| assert!(barrier.wait().unwrap().is_leader());
        let ends: [(&str, Change, Option<BarrierError>); 6] = [
            ("a pass", passes, None),
            ("abort", Barrier::abort, Some(BarrierError::Aborted)),
            ("reset", Barrier::reset, None),
            (
                "a party that is late",
                |barrier| {
                    let late = barrier.give_up(barrier.head().generation());
                    assert_eq!(late, Err(BarrierError::TimedOut));
                },
                Some(BarrierError::TimedOut),
            ),
            (
                "a killed process",
                |barrier| assert!(barrier.head().reclaim(0, End::Killed, Instant::now())),
                Some(BarrierError::PartyDied),
            ),
            (
                "a reset with a party that waits",
                |barrier| {
                    barrier.head().arrived.store(1, Ordering::Relaxed);
                    barrier.reset();
                },
                Some(BarrierError::Reset),
            ),
        ];
        for (what, end, reason) in ends {
            let barrier = Barrier::new(1).unwrap();
            let token = barrier.head().waiters.token();
            let generation = barrier.head().generation();
            end(&barrier);
            let (word, seen) = token.word();
            assert_ne!(word.load(Ordering::Relaxed), seen, "{what}");
            assert_ne!(barrier.head().generation(), generation, "{what}");
            assert_eq!(barrier.head().broken_by(generation), reason, "{what}");
            // A reset leaves a barrier that is whole.
            let is_reset = reason == Some(BarrierError::Reset);
            let left = reason.filter(|_| !is_reset);
            assert_eq!(barrier.head().reason(), left, "{what}");
        }
    }

    /// A party whose time is up at the same moment as another reason gets the one that came first.
    #[test]
    fn a_party_that_gives_up_too_late_hears_what_broke_its_generation() {
        let barrier = Barrier::new(2).unwrap();
        let generation = barrier.head().generation();
        barrier.abort();
        assert_eq!(barrier.give_up(generation), Err(BarrierError::Aborted));
        barrier.reset();
        let next = barrier.head().generation();
        assert_eq!(barrier.give_up(next), Err(BarrierError::TimedOut));
        assert_eq!(barrier.give_up(generation), Err(BarrierError::Aborted));
    }

    /// The lock is held as a stopped process holds it. The reason is read without it.
    #[test]
    fn a_broken_barrier_whose_lock_is_held_tells_its_reason() {
        let barrier = Barrier::new(2).unwrap();
        barrier.abort();
        thread::scope(|scope| {
            let held = hold(scope, &barrier);
            let late = barrier.wait_timeout(Duration::from_millis(1));
            assert_eq!(late, Err(BarrierError::Aborted));
            drop(held);
        });
    }

    #[test]
    fn each_reason_has_a_number_that_gives_it_back() {
        use BarrierError::{Aborted, PartyDied, Reset, TimedOut};
        for one in [TimedOut, PartyDied, Aborted, Reset] {
            assert_eq!(reason(code(one)), one);
            assert!((1..1 << REASON_BITS).contains(&code(one)), "{one:?}");
        }
        assert_eq!(reason(7), PartyDied);
    }

    /// A party may sleep through breaks and resets that follow the break of its own generation.
    #[test]
    fn the_last_32_breaks_are_remembered_and_no_pass_is_taken_for_one() {
        let barrier = Barrier::new(1).unwrap();
        let head = barrier.head();
        let mut broken = Vec::new();
        for round in 0..REMEMBERED + 8 {
            let passed = head.generation();
            barrier.wait().unwrap();
            assert_eq!(head.broken_by(passed), None, "round {round}");
            broken.push(head.generation());
            barrier.abort();
            barrier.reset();
            let start = broken.len().saturating_sub(REMEMBERED);
            let mut last = broken[start..].iter();
            let aborted = Some(BarrierError::Aborted);
            assert!(
                last.all(|&one| head.broken_by(one) == aborted),
                "round {round}"
            );
        }
    }

    /// An `abort` that was put off, because a process was stopped with the lock, is from before the
    /// reset.
    #[test]
    fn a_reset_is_not_undone_by_what_came_before_it() {
        for _ in 0..20 {
            let barrier = Barrier::new(2).unwrap();
            thread::scope(|scope| {
                let held = hold(scope, &barrier);
                barrier.abort();
                let resets = scope.spawn(|| barrier.reset());
                drop(held);
                resets.join().unwrap();
            });
            // What was put off comes now, at the latest.
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(60) {
                assert!(!barrier.is_broken());
                thread::yield_now();
            }
        }
    }
}
