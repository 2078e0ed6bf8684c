//! Handles in transit: what keeps an object alive between the process that sends a handle and the
//! one that gets it.
//!
//! The sender may drop its own handle as soon as it has sent it, so the message itself has to hold
//! the object. How it does that depends on which process learns that the message is done with. The
//! code that serialises a message says so by a scope around it:
//!
//! | scope | who holds the object | used for |
//! |---|---|---|
//! | [`keep`] | the sender, as long as the message is needed | arguments and contexts of pools |
//! | [`send`] | a count at the object, until the message is read | results, and items of queues |
//! | [`grant`] | the receiver, also before it runs | arguments of single processes |
//! | none | no process | what users serialise themselves |
//!
//! In a scope of [`keep`], handles lie beside the message until it is not needed any more: it may
//! be read by no, one or many workers. In a scope of [`send`], the message is read once, by a
//! process that is not known yet. That process takes back the count. In a scope of [`grant`], the
//! object is held in the receiver's name before the receiver exists.

use std::any::Any;
use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::entry::BlockId;
use super::error::ShareError;
use super::family::{self, Family};
use super::member::{Expected, ledger_deadline};
use super::registry;

/// How a handle travels, as it stands in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Transit {
    /// Another process holds the object.
    Held,
    /// The object counts this message. The number is that of the handle in it: the reader of a
    /// message may try a handle more than once (serde's untagged enums do).
    InFlight(u32),
    /// The receiver holds it already.
    Granted,
}

/// What is kept while a message is under way.
pub(crate) type Kept = Box<dyn Any + Send + Sync>;

enum Scope {
    Keep(Vec<Kept>),
    Send(Sending),
    Grant(Option<Expected>),
}

/// A message whose handles count as under way.
#[derive(Default)]
struct Sending {
    handles: Vec<BlockId>,
    /// Until when a handle may wait for the ledger; `None`: for ever.
    deadline: Option<Instant>,
    /// Whether a handle has waited in vain.
    is_busy: bool,
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Handles that are held while a message is needed. Nearly always there are none.
#[derive(Default)]
pub(crate) struct KeptHandles {
    kept: Option<Box<Mutex<Vec<Kept>>>>,
}

impl KeptHandles {
    fn new(kept: Vec<Kept>) -> Self {
        Self {
            kept: (!kept.is_empty()).then(|| Box::new(Mutex::new(kept))),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_none()
    }

    /// Drops the handles: the message is not needed any more.
    pub(crate) fn let_go(&self) {
        if let Some(kept) = &self.kept {
            let kept = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
            drop(kept);
        }
    }
}

/// Puts back the scope that was there before, also after a panic of the user's code.
struct Outer(Option<Scope>);

impl Outer {
    fn enter(scope: Scope) -> Self {
        Self(SCOPE.replace(Some(scope)))
    }

    fn leave(mut self) -> Option<Scope> {
        let inner = SCOPE.replace(self.0.take());
        std::mem::forget(self);
        inner
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        // A message that was not finished is not sent.
        if let Some(Scope::Send(sending)) = SCOPE.replace(self.0.take()) {
            call_back(&sending.handles);
        }
    }
}

/// Serialises something whose handles this process keeps.
pub(crate) fn keep<R>(serialise: impl FnOnce() -> R) -> (R, KeptHandles) {
    let outer = Outer::enter(Scope::Keep(Vec::new()));
    let result = serialise();
    match outer.leave() {
        Some(Scope::Keep(kept)) => (result, KeptHandles::new(kept)),
        _ => (result, KeptHandles::default()),
    }
}

/// Handles that count as under way. When this is dropped, they are called back: no process will
/// read the message.
#[derive(Debug, Default)]
#[must_use = "dropped, it calls the handles back"]
pub(crate) struct Sent {
    handles: Vec<BlockId>,
    is_busy: bool,
}

impl Sent {
    /// Leaves the handles to the receiver: the message is on its way.
    pub(crate) fn deliver(self) {
        self.into_handles();
    }

    /// Leaves the handles to the receiver like [`deliver`](Self::deliver), and returns the list of
    /// them, for a process that may have to [`call_back`] the message.
    pub(crate) fn into_handles(mut self) -> Vec<BlockId> {
        std::mem::take(&mut self.handles)
    }

    pub(crate) fn handles(&self) -> &[BlockId] {
        &self.handles
    }

    /// Returns whether a handle could not be serialised, because a process that does not go on has
    /// the ledger locked.
    pub(crate) fn is_busy(&self) -> bool {
        self.is_busy
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        call_back(&self.handles);
    }
}

/// Serialises something whose handles are counted as under way. A handle that a forked child has
/// not used yet takes the ledger, and waits for it until the deadline.
pub(crate) fn send<R>(deadline: Option<Instant>, serialise: impl FnOnce() -> R) -> (R, Sent) {
    let outer = Outer::enter(Scope::Send(Sending {
        deadline,
        ..Sending::default()
    }));
    let result = serialise();
    match outer.leave() {
        Some(Scope::Send(Sending {
            handles, is_busy, ..
        })) => (result, Sent { handles, is_busy }),
        _ => (result, Sent::default()),
    }
}

/// Returns until when a handle that is serialised right now may wait for the ledger; `None`: for
/// ever.
pub(super) fn deadline() -> Option<Instant> {
    SCOPE.with_borrow(|scope| match scope {
        Some(Scope::Send(sending)) => sending.deadline,
        _ => None,
    })
}

/// Notes that a handle has waited for the ledger in vain.
pub(super) fn set_busy() {
    SCOPE.with_borrow_mut(|scope| {
        if let Some(Scope::Send(sending)) = scope {
            sending.is_busy = true;
        }
    });
}

/// Returns whether any process of the family has ever sent a handle that counts.
pub(crate) fn was_ever_sent() -> bool {
    family::if_any().is_some_and(Family::has_launched)
}

/// Serialises something whose handles are held in the name of a process that is about to be
/// started. Returns the slot of that process in the family, if it was given any handle.
pub(crate) fn grant<R>(serialise: impl FnOnce() -> R) -> (R, Option<Expected>) {
    let outer = Outer::enter(Scope::Grant(None));
    let result = serialise();
    match outer.leave() {
        Some(Scope::Grant(expected)) => (result, expected),
        _ => (result, None),
    }
}

/// Takes back what was [sent](send): no process will read it.
pub(crate) fn call_back(sent: &[BlockId]) {
    for id in sent {
        registry::call_back(*id);
    }
}

/// Prepares an object for the way. `keep` makes a handle to keep; `granted` is called with the
/// member in whose name the object is held.
pub(super) fn depart(
    id: BlockId,
    keep: impl FnOnce() -> Kept,
    granted: impl FnOnce(u16),
) -> Result<Transit, ShareError> {
    SCOPE.with_borrow_mut(|scope| {
        Ok(match scope {
            None => Transit::Held,
            Some(Scope::Keep(kept)) => {
                kept.push(keep());
                Transit::Held
            }
            Some(Scope::Send(sending)) => {
                family::get()?.launch(id);
                sending.handles.push(id);
                Transit::InFlight(sending.handles.len() as u32)
            }
            Some(Scope::Grant(expected)) => {
                // The first handle for the receiver takes a slot for it.
                let expected = match expected {
                    Some(expected) => expected,
                    None => expected.insert(Expected::new()?),
                };
                let family = family::get()?;
                let lock = family.lock(ledger_deadline)?;
                family.join(&lock, id, expected.number(), false)?;
                drop(lock);
                granted(expected.number());
                Transit::Granted
            }
        })
    })
}

/// What this thread has met in the message that it reads at present.
#[derive(Default)]
struct Receiving {
    /// Handles that are kept until all is read: a handle that was tried and dropped may be wanted
    /// at the next try.
    opened: Vec<Kept>,
    /// Handles that count as under way, each with its number in the message.
    landed: Vec<(BlockId, u32)>,
}

thread_local! {
    static RECEIVING: RefCell<Option<Receiving>> = const { RefCell::new(None) };
}

/// Reads a message. After all of it is read, its handles cease to count as under way, each once.
pub(crate) fn receive<R>(read: impl FnOnce() -> R) -> R {
    /// Puts back what was there before, also after a panic of the user's code.
    struct Outer(Option<Receiving>);
    impl Drop for Outer {
        fn drop(&mut self) {
            let Some(Receiving { opened, landed }) = RECEIVING.replace(self.0.take()) else {
                return;
            };
            for (id, _) in landed {
                registry::call_back(id);
            }
            drop(opened);
        }
    }
    let _outer = Outer(RECEIVING.replace(Some(Receiving::default())));
    read()
}

/// Notes that a handle has been read, or that it could not be. `opened` is what was made from it.
pub(super) fn arrive(id: BlockId, transit: Transit, opened: Option<Kept>) {
    RECEIVING.with_borrow_mut(|unpacking| match (unpacking, transit) {
        (
            Some(Receiving {
                opened: all,
                landed,
            }),
            transit,
        ) => {
            all.extend(opened);
            if let Transit::InFlight(number) = transit
                && !landed.contains(&(id, number))
            {
                landed.push((id, number));
            }
        }
        // The handle was read outside of a message: its count is taken back at once.
        (None, Transit::InFlight(_)) => registry::call_back(id),
        (None, _) => {}
    });
}
