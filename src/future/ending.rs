//! [`Ending`]: what may end a call before its items have ended, and what is done then.
//!
//! A call that can be ended has one of these. It is *over* from the moment at which its token is
//! cancelled or its deadline passes, and what looks at it sees that at once. It *fires* once: the
//! hooks run that wake the callers and stop the tasks. A token fires what hangs on it on the thread
//! that cancels. A deadline is fired by the caller, if that waits until then, or else by the thread
//! of the [`deadlines`](super::deadlines).
//!
//! A call may have a *grace period*. Then its hooks of the first kind ([`Ending::watch`]) ask the
//! tasks that run to stop, and those of the second kind ([`Ending::watch_kill`]) stop them when the
//! period has passed. Without one, both come at once.
//!
//! Hooks run without a lock of this module, and take the locks of engines. Tasks keep their
//! [`Watch`], which may be dropped under such a lock: it takes only the lock of the list.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::deadlines::{self, Entry};
use crate::error::{PoolError, TaskError};
#[cfg(target_os = "linux")]
use crate::os::fork::PerProcess;

/// Why a call has ended before its items have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    Cancelled,
    DeadlineExceeded,
}

impl Reason {
    /// Returns the error of the tasks that have no result for this reason.
    pub(crate) fn error(self) -> TaskError {
        match self {
            Self::Cancelled => TaskError::Cancelled {},
            Self::DeadlineExceeded => TaskError::DeadlineExceeded {},
        }
    }

    /// Returns the word that says this, and which thread has ended the call. A deadline passes by
    /// itself, whichever thread sees it.
    fn to_word(self) -> usize {
        match self {
            Self::Cancelled => CANCELLED | ThreadNumber::here().0,
            Self::DeadlineExceeded => DEADLINE_EXCEEDED,
        }
    }

    fn from_word(word: usize) -> Option<Self> {
        match word & REASON {
            CANCELLED => Some(Self::Cancelled),
            DEADLINE_EXCEEDED => Some(Self::DeadlineExceeded),
            _ => None,
        }
    }
}

/// Values of [`State::reason`]; 0 for none.
const CANCELLED: usize = 1;
const DEADLINE_EXCEEDED: usize = 2;
/// The bits of these; the rest is the [`ThreadNumber`].
const REASON: usize = 3;

/// A number that no other thread of this process has, or has had. It is not 0; its two lowest bits
/// are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadNumber(pub(crate) usize);

impl ThreadNumber {
    /// Returns that of the calling thread.
    pub(crate) fn here() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        thread_local! {
            static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) << 2;
        }
        Self(OWN.with(|own| *own))
    }
}

/// The number of the next hook.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// What is done when a call ends early. It takes locks of engines, and none of this module.
type Hook = Box<dyn FnOnce(Reason) + Send>;

#[derive(Default)]
struct Hooks {
    /// The hooks, each with its number.
    list: Vec<(u64, Hook)>,
    has_fired: bool,
    /// The same for the end of the grace period.
    kills: Vec<(u64, Hook)>,
    has_killed: bool,
}

/// What may end a call, shared by all that must hear of it.
#[derive(Clone)]
pub(crate) struct Ending(Arc<State>);

struct State {
    /// Why the call is over, once it is.
    reason: AtomicUsize,
    deadline: Option<Instant>,
    /// Each process has its own list. A forked child must not wake what its parent watches, and
    /// another thread may have had the lock when the child was forked.
    #[cfg(target_os = "linux")]
    hooks: PerProcess<Mutex<Hooks>>,
    #[cfg(not(target_os = "linux"))]
    hooks: Mutex<Hooks>,
    /// What the call hears of its tokens by.
    tokens: OnceLock<Vec<Watch>>,
    /// What fires the deadline when no caller waits for it.
    entry: OnceLock<Entry>,
    /// How long what runs may go on after the end, if it may.
    grace: Option<Duration>,
    /// When the call was over, once it is and if there is a grace period.
    over_at: OnceLock<Instant>,
    /// What fires the end of the grace period.
    kill: OnceLock<Entry>,
}

impl State {
    fn hooks(&self) -> MutexGuard<'_, Hooks> {
        #[cfg(target_os = "linux")]
        let hooks = self.hooks.own();
        #[cfg(not(target_os = "linux"))]
        let hooks = &self.hooks;
        // Nothing that could panic happens under the lock, so poison is ignored.
        hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ending {
    /// Makes one that only [`end`](Self::end) ends.
    pub(super) fn new() -> Self {
        Self::with_deadline(None, None)
    }

    fn with_deadline(deadline: Option<Instant>, grace: Option<Duration>) -> Self {
        Self(Arc::new(State {
            reason: AtomicUsize::new(0),
            deadline,
            #[cfg(target_os = "linux")]
            hooks: PerProcess::new(Mutex::default()),
            #[cfg(not(target_os = "linux"))]
            hooks: Mutex::default(),
            tokens: OnceLock::new(),
            entry: OnceLock::new(),
            grace,
            over_at: OnceLock::new(),
            kill: OnceLock::new(),
        }))
    }

    /// Makes that of a call, which ends with the first of these and at its deadline. What runs then
    /// may go on for `grace`.
    pub(super) fn of_call<'t>(
        tokens: impl Iterator<Item = &'t Self>,
        deadline: Option<Instant>,
        grace: Option<Duration>,
    ) -> Self {
        let ending = Self::with_deadline(deadline, grace);
        let watches = tokens.map(|token| {
            let own = Arc::downgrade(&ending.0);
            token.watch(move |reason| {
                if let Some(state) = Weak::upgrade(&own) {
                    Self(state).end(reason);
                }
            })
        });
        let watches = watches.collect();
        // The place is empty: no other thread has this.
        let _ = ending.0.tokens.set(watches);
        ending
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.0.deadline
    }

    /// Returns why the call is over, if it is. That does not change afterwards. This runs no hook,
    /// and takes no lock.
    #[inline]
    pub(crate) fn reason(&self) -> Option<Reason> {
        let state = &self.0;
        let reason = Reason::from_word(state.reason.load(Ordering::Acquire));
        if reason.is_some() || state.deadline.is_none_or(|at| Instant::now() < at) {
            return reason;
        }
        Some(self.settle(Reason::DeadlineExceeded))
    }

    /// Returns which thread has cancelled the call, if one has.
    fn cancelled_by(&self) -> Option<ThreadNumber> {
        let word = self.0.reason.load(Ordering::Acquire);
        let number = ThreadNumber(word & !REASON);
        (word & REASON == CANCELLED).then_some(number)
    }

    /// Returns whether what runs may go on for a while after the end.
    pub(crate) fn has_grace(&self) -> bool {
        self.0.grace.is_some()
    }

    /// Returns when the grace period ends, once the call is over; `None` too if that is never.
    pub(crate) fn killed_at(&self) -> Option<Instant> {
        self.reason()?;
        let over_at = self.0.over_at.get()?;
        over_at.checked_add(self.0.grace?)
    }

    /// Returns why what runs is to be stopped, if it is: the call is over, and its grace period has
    /// passed.
    #[inline]
    pub(crate) fn killed(&self) -> Option<Reason> {
        let reason = self.reason()?;
        if self.has_grace() && self.killed_at().is_none_or(|at| Instant::now() < at) {
            return None;
        }
        Some(reason)
    }

    /// Sets why the call is over, if that is not set yet. Returns why it is.
    fn settle(&self, reason: Reason) -> Reason {
        let word = &self.0.reason;
        let (success, failure) = (Ordering::SeqCst, Ordering::SeqCst);
        match word.compare_exchange(0, reason.to_word(), success, failure) {
            Ok(_) => {
                if self.has_grace() {
                    let deadline = self.deadline();
                    let deadline = deadline.filter(|_| reason == Reason::DeadlineExceeded);
                    let _ = self.0.over_at.set(deadline.unwrap_or_else(Instant::now));
                }
                reason
            }
            Err(before) => Reason::from_word(before).unwrap_or(reason),
        }
    }

    /// Ends the call for this reason, unless it is over already, and fires. No lock of an engine
    /// may be held.
    pub(crate) fn end(&self, reason: Reason) {
        let reason = self.settle(reason);
        let (hooks, is_first) = {
            let mut hooks = self.0.hooks();
            let is_first = !std::mem::replace(&mut hooks.has_fired, true);
            (std::mem::take(&mut hooks.list), is_first)
        };
        for (_, hook) in hooks {
            hook(reason);
        }
        if is_first && self.has_grace() {
            self.kill_later(reason);
        }
    }

    /// Has the end of the grace period fire, or lets it fire now if the system refuses the thread
    /// that does it.
    fn kill_later(&self, reason: Reason) {
        let own = Arc::downgrade(&self.0);
        let fire = move || {
            if let Some(state) = own.upgrade() {
                Self(state).kill(reason);
            }
        };
        // A period that ends never needs no thread.
        let Some(at) = self.killed_at() else { return };
        match deadlines::at(at, Box::new(fire)) {
            // This is the first and only one.
            Ok(entry) => _ = self.0.kill.set(entry),
            Err(error) => {
                log::warn!("a grace period cannot be kept, and is cut short: {error}");
                self.kill(reason);
            }
        }
    }

    /// Stops what runs.
    fn kill(&self, reason: Reason) {
        let hooks = {
            let mut hooks = self.0.hooks();
            hooks.has_killed = true;
            std::mem::take(&mut hooks.kills)
        };
        for (_, hook) in hooks {
            hook(reason);
        }
    }

    /// Fires if the call is over. Returns why it is.
    pub(crate) fn fire_if_over(&self) -> Option<Reason> {
        let reason = self.reason()?;
        self.end(reason);
        Some(reason)
    }

    /// Runs `hook` when the call ends early, or now if it has. No lock of an engine may be held.
    /// The hook is forgotten when the returned value is dropped.
    pub(crate) fn watch(&self, hook: impl FnOnce(Reason) + Send + 'static) -> Watch {
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let mut hooks = self.0.hooks();
        if hooks.has_fired {
            drop(hooks);
            hook(self.reason().unwrap_or(Reason::Cancelled));
        } else {
            hooks.list.push((number, Box::new(hook)));
        }
        Watch {
            ending: self.clone(),
            number,
            other: None,
        }
    }

    /// Does the same, and tells the hook which thread has cancelled the call, if one has.
    pub(crate) fn watch_cancel(
        &self,
        hook: impl FnOnce(Reason, Option<ThreadNumber>) + Send + 'static,
    ) -> Watch {
        let own = Arc::downgrade(&self.0);
        self.watch(move |reason| {
            let by = own.upgrade().and_then(|state| Self(state).cancelled_by());
            hook(reason, by);
        })
    }

    /// Runs `hook` when the grace period of the call ends, or now if it has: like
    /// [`watch`](Self::watch) if there is none.
    pub(crate) fn watch_kill(&self, hook: impl FnOnce(Reason) + Send + 'static) -> Watch {
        if !self.has_grace() {
            return self.watch(hook);
        }
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let mut hooks = self.0.hooks();
        if hooks.has_killed {
            drop(hooks);
            hook(self.reason().unwrap_or(Reason::Cancelled));
        } else {
            hooks.kills.push((number, Box::new(hook)));
        }
        Watch {
            ending: self.clone(),
            number,
            other: None,
        }
    }

    /// Has the deadline, if there is one, fire by itself, also if no caller waits for it.
    ///
    /// # Errors
    ///
    /// If the system refuses the thread that does it.
    pub(crate) fn arm(&self) -> Result<(), PoolError> {
        let Some(at) = self.deadline() else {
            return Ok(());
        };
        let own = Arc::downgrade(&self.0);
        let fire = move || {
            if let Some(state) = own.upgrade() {
                Self(state).end(Reason::DeadlineExceeded);
            }
        };
        let entry = deadlines::at(at, Box::new(fire)).map_err(|error| PoolError::System {
            what: "the deadline of the call cannot be kept".into(),
            reason: error.to_string(),
        })?;
        // It was armed before: one entry is enough.
        let _ = self.0.entry.set(entry);
        Ok(())
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ending")
            .field("reason", &self.reason())
            .field("deadline", &self.deadline())
            .finish_non_exhaustive()
    }
}

/// A hook that waits for the end of a call. Dropping this forgets the hook, if it has not begun to
/// run.
#[must_use = "the hook is forgotten when this is dropped"]
pub(crate) struct Watch {
    ending: Ending,
    number: u64,
    other: Option<Box<Watch>>,
}

impl Watch {
    /// Forgets this other hook together with its own.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.other = Some(Box::new(other));
        self
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let hook = {
            let mut hooks = self.ending.0.hooks();
            // In a forked child the number may be one of its parent, and is not on the list.
            let take = |list: &mut Vec<(u64, Hook)>| {
                let at = list.iter().rposition(|(number, _)| *number == self.number);
                at.map(|at| list.swap_remove(at))
            };
            take(&mut hooks.list).or_else(|| take(&mut hooks.kills))
        };
        drop(hook);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
