//! Handles on their way: what keeps an object alive between the process that sends a handle and the one that gets it.
//!
//! The sender may drop its own handle as soon as it has sent it, so the message itself has to hold the object. How, depends
//! on who knows of the message's end, and whoever serialises a message says so by a scope around it:
//!
//! | scope | who holds the object | used for |
//! |---|---|---|
//! | [`keep`] | the sender, by handles that lie beside the message until it is not needed any more | arguments and contexts of pools: they may be read by none, one or many workers |
//! | [`send`] | a count at the object, which the receiver takes back | results, and items of queues: read once, by a process that is not known yet |
//! | [`grant`] | the receiver, in whose name the object is held before it is there | arguments of single processes |
//! | none | nobody | whatever users serialise themselves |

use std::any::Any;
use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::block::BlockId;
use super::error::ShareError;
use super::family;
use super::member::Expected;
use super::registry;
use crate::codec;

/// How a handle travels, as it stands in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Transit {
    /// Somebody else holds the object.
    Held,
    /// The object counts this message.
    InFlight,
    /// The receiver holds it already.
    Granted,
}

/// What is kept for the time of a message.
pub(crate) type Kept = Box<dyn Any + Send + Sync>;

enum Scope {
    Keep(Vec<Kept>),
    Send(Vec<BlockId>),
    Grant(Option<Expected>),
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Handles that are held for the time that a message is needed. Nearly always there are none.
#[derive(Default)]
pub(crate) struct Cargo {
    kept: Option<Box<Mutex<Vec<Kept>>>>,
}

impl Cargo {
    fn new(kept: Vec<Kept>) -> Self {
        Self {
            kept: (!kept.is_empty()).then(|| Box::new(Mutex::new(kept))),
        }
    }

    /// The message is not needed any more.
    pub(crate) fn unload(&self) {
        if let Some(kept) = &self.kept {
            let kept = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
            drop(kept);
        }
    }
}

impl std::fmt::Debug for Cargo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Cargo({})",
            if self.kept.is_some() { "some" } else { "none" }
        )
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
        if let Some(Scope::Send(sent)) = SCOPE.replace(self.0.take()) {
            recall(&sent);
        }
    }
}

/// Serialises something whose handles are kept by this process.
pub(crate) fn keep<R>(serialise: impl FnOnce() -> R) -> (R, Cargo) {
    let outer = Outer::enter(Scope::Keep(Vec::new()));
    let result = serialise();
    match outer.leave() {
        Some(Scope::Keep(kept)) => (result, Cargo::new(kept)),
        _ => (result, Cargo::default()),
    }
}

/// Serialises something whose handles are counted as under way; gives for which objects. If the message is not sent after
/// all, [`recall`] them.
pub(crate) fn send<R>(serialise: impl FnOnce() -> R) -> (R, Vec<BlockId>) {
    let outer = Outer::enter(Scope::Send(Vec::new()));
    let result = serialise();
    match outer.leave() {
        Some(Scope::Send(sent)) => (result, sent),
        _ => (result, Vec::new()),
    }
}

/// Serialises something whose handles are held in the name of a process that is about to be started; gives its place in
/// the family, if it was given any.
pub(crate) fn grant<R>(serialise: impl FnOnce() -> R) -> (R, Option<Expected>) {
    let outer = Outer::enter(Scope::Grant(None));
    let result = serialise();
    match outer.leave() {
        Some(Scope::Grant(expected)) => (result, expected),
        _ => (result, None),
    }
}

/// Appends the result of a task, in the worker.
#[inline]
pub(crate) fn append_result<R: Serialize + 'static>(
    out: &mut Vec<u8>,
    result: &R,
) -> Result<(), String> {
    if codec::fixed_size::<R>().is_some() {
        return codec::append(out, result);
    }
    let (appended, sent) = send(|| codec::append(out, result));
    if appended.is_err() {
        recall(&sent);
    }
    appended
}

/// Takes back what was [sent](send): no process will read it.
pub(crate) fn recall(sent: &[BlockId]) {
    for id in sent {
        registry::call_back(*id);
    }
}

/// Prepares an object for the way. `keep` makes a handle to keep; `granted` is called with the member in whose name the
/// object is held.
pub(super) fn load(
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
            Some(Scope::Send(sent)) => {
                family::get()?.launch(id);
                sent.push(id);
                Transit::InFlight
            }
            Some(Scope::Grant(expected)) => {
                let expected = match expected {
                    Some(expected) => expected,
                    None => expected.insert(Expected::new()?),
                };
                family::get()?.join(id, expected.number(), false)?;
                granted(expected.number());
                Transit::Granted
            }
        })
    })
}
