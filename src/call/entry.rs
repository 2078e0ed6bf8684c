//! Where a worker enters the user's code: one function for each combination of function, argument
//! and result. Its number travels with the task.

use std::any::Any;

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};

use super::code;
use crate::lane::ResponseWriter;
use crate::lane::message::Fault;
use crate::memory::wire;
use crate::os::fork::COPY_RETURNED;
use crate::{codec, panic};

/// A function that runs one chunk of a task. Its number comes from [`code`].
pub(crate) type Entry = fn(&mut Chunk<'_>);

/// A number of items of one task, as the worker got them.
pub(crate) struct Chunk<'a> {
    pub(crate) count: u32,
    /// The items, as the codec wrote them.
    pub(crate) items: &'a [u8],
    pub(crate) context: Option<&'a mut Context>,
    pub(crate) responses: &'a mut ResponseWriter,
    /// Room for one result, kept from chunk to chunk.
    pub(crate) scratch: &'a mut Vec<u8>,
}

/// The values that a function takes along: first the bytes as they came, then the value that the
/// first chunk made of them.
pub(crate) enum Context {
    Encoded(Vec<u8>),
    Value(Box<dyn Any>),
    /// The context did not decode, for this reason. Every item that needs it fails with it.
    Broken(String),
}

impl Context {
    fn get<C: DeserializeOwned + 'static>(&mut self) -> Result<&C, String> {
        if let Self::Encoded(bytes) = self {
            *self = match wire::take::<C>(&mut bytes.as_slice()) {
                Ok(value) => Self::Value(Box::new(value)),
                Err(reason) => Self::Broken(reason),
            };
        }
        match self {
            Self::Value(value) => value
                .downcast_ref()
                .ok_or_else(|| "the context is of another type".to_owned()),
            Self::Broken(reason) => Err(reason.clone()),
            Self::Encoded(_) => Err("the context was not decoded".to_owned()),
        }
    }
}

/// Runs a chunk of a function that captures nothing.
pub(crate) fn plain<F, A, R>(chunk: &mut Chunk<'_>)
where
    F: Fn(A) -> R,
    A: DeserializeOwned + 'static,
    R: Serialize + 'static,
{
    let f = zero_sized::<F>();
    chunk.run(f);
}

/// Runs a chunk of a function with a context.
pub(crate) fn with_context<C, F, A, R>(chunk: &mut Chunk<'_>)
where
    F: Fn(&C, A) -> R,
    C: DeserializeOwned + 'static,
    A: DeserializeOwned + 'static,
    R: Serialize + 'static,
{
    let f = zero_sized::<F>();
    let mut missing = Context::Broken("the worker was not sent it".to_owned());
    let cell = chunk.context.take().unwrap_or(&mut missing);
    // A panic in the context's Deserialize fails the first item; the next item tries again.
    while chunk.count > 0 && chunk.responses.goes_on() {
        chunk.responses.item_starts();
        match panic::catch(|| cell.get::<C>()) {
            Ok(Ok(context)) => {
                chunk.run(|argument| f(context, argument));
                return;
            }
            // The context did not decode: this item fails, and so will the others.
            Ok(Err(reason)) => chunk.responses.fault(&Fault::ContextDecode(reason)),
            Err(caught) => chunk.responses.fault(&Fault::Panicked(caught)),
        }
        chunk.count -= 1;
        // Skips the argument of the failed item.
        let skipped = match codec::fixed_size::<A>() {
            Some(size) => size,
            None => codec::records_len(chunk.items, 1).unwrap_or(chunk.items.len()),
        };
        chunk.items = &chunk.items[skipped.min(chunk.items.len())..];
    }
    chunk.responses.end();
}

/// The lent part and the context, as they are sent. The context is encoded separately: of the
/// context of a `closure!` only its encoding is known.
#[derive(Serialize, Deserialize)]
pub(crate) struct SentLoan<L> {
    pub(crate) lent: L,
    pub(crate) context: Vec<u8>,
}

/// The same, decoded in a worker.
struct Loan<L, C> {
    lent: L,
    context: C,
}

impl<'de, L: DeserializeOwned, C: DeserializeOwned + 'static> Deserialize<'de> for Loan<L, C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let SentLoan { lent, context } = SentLoan::deserialize(deserializer)?;
        let context = wire::take(&mut context.as_slice()).map_err(D::Error::custom)?;
        Ok(Self { lent, context })
    }
}

/// Returns the entry of a function that works on a lent array: `run` takes the context, what is
/// lent, and the index of an item.
pub(crate) fn lent<L, C, G>(_run: G) -> Entry
where
    L: DeserializeOwned + 'static,
    C: DeserializeOwned + 'static,
    G: Fn(&C, &L, usize) + Copy,
{
    fn of<X, G>(_: G) -> Entry
    where
        X: DeserializeOwned + 'static,
        G: Fn(&X, usize),
    {
        with_context::<X, G, usize, ()>
    }
    const { assert!(size_of::<G>() == 0, "a worker makes it from its type alone") };
    of::<Loan<L, C>, _>(|loan, index| zero_sized::<G>()(&loan.context, &loan.lent, index))
}

/// Returns the entry of a function of this crate's own that takes a context of type `C`.
pub(crate) fn of_context<C, A, R, G>(_run: G) -> Entry
where
    C: DeserializeOwned + 'static,
    A: DeserializeOwned + 'static,
    R: Serialize + 'static,
    G: Fn(&C, A) -> R + Copy,
{
    const { assert!(size_of::<G>() == 0, "a worker makes it from its type alone") };
    with_context::<C, G, A, R>
}

/// Returns a zero-sized reference to the function, which has nothing in it but its type.
#[allow(unsafe_code)]
pub(crate) fn zero_sized<'a, F: 'a>() -> &'a F {
    // SAFETY: entries are only made for functions that `Portable` lets through (zero-sized,
    // `Clone`, nothing to drop), or for closures of this crate around such a function and nothing
    // else. A worker enters one only because its parent, of the same build, had a value of the
    // function's type.
    unsafe { code::zero_sized() }
}

impl Chunk<'_> {
    /// Runs the items and writes a response for every item.
    fn run<A, R>(&mut self, f: impl Fn(A) -> R)
    where
        A: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        if let (Some(argument), Some(result)) = (codec::fixed_size::<A>(), codec::fixed_size::<R>())
            && !self.responses.has_limit()
        {
            return self.run_fixed(&f, argument, result);
        }
        // One `catch` serves many items: it is entered again only after an item that failed.
        while self.count > 0 && self.responses.goes_on() {
            match panic::catch(|| self.run_until_fault(&f)) {
                Ok(None) => {}
                Ok(Some(fault)) => self.responses.fault(&fault),
                Err(caught) => {
                    // The item panicked. If it was also late, the limit is its error.
                    let late = self.responses.exceeded().map(Fault::TimedOut);
                    self.responses
                        .fault(&late.unwrap_or(Fault::Panicked(caught)));
                }
            }
        }
        self.responses.end();
    }

    /// Runs the items when arguments and results have fixed sizes. The loop itself counts: items
    /// are read from the request and results written to the response, with nothing in between.
    fn run_fixed<A, R>(&mut self, f: &impl Fn(A) -> R, argument: usize, result: usize)
    where
        A: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        let mut items = self.items;
        let original = self.responses.original();
        while self.count > 0 && !self.responses.has_stopped() {
            let batch = self.responses.room_for(result).min(self.count);
            let mut left = &items[..batch as usize * argument];
            let outcome = panic::catch(|| {
                self.responses.results(batch, result, |_, slot| {
                    let (mut bytes, later) = left.split_at(argument);
                    left = later;
                    if let Ok(argument) = wire::take::<A>(&mut bytes) {
                        let result = f(argument);
                        original.end_copy(COPY_RETURNED);
                        codec::put_fixed(slot, &result);
                    }
                })
            });
            match outcome {
                Ok(ran) => {
                    // The rest is not needed any more.
                    if ran < batch {
                        break;
                    }
                    items = &items[ran as usize * argument..];
                    self.count -= ran;
                }
                Err(caught) => {
                    // The item after the last counted one has panicked.
                    let tried = self.responses.recount(result) + 1;
                    self.responses.fault(&Fault::Panicked(caught));
                    items = &items[tried as usize * argument..];
                    self.count -= tried;
                }
            }
        }
        self.responses.end();
    }

    fn run_until_fault<A, R>(&mut self, f: &impl Fn(A) -> R) -> Option<Fault>
    where
        A: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        while self.count > 0 && self.responses.goes_on() {
            self.responses.item_starts();
            self.count -= 1;
            let argument = match wire::take::<A>(&mut self.items) {
                Ok(argument) => argument,
                Err(reason) => return Some(Fault::ArgumentDecode(reason)),
            };
            let result = f(argument);
            // A copy of the worker that the item has forked ends here, before the handles in the
            // result are counted as in transit.
            self.responses.original().end_copy(COPY_RETURNED);
            if let Some(limit) = self.responses.exceeded() {
                // The parent has not stopped the item in time. Here it has ended by itself, as on
                // threads.
                return Some(Fault::TimedOut(limit));
            }
            self.scratch.clear();
            let sent = match wire::append_result(self.scratch, &result) {
                Ok(sent) => sent,
                Err(reason) => return Some(Fault::ResultEncode(reason)),
            };
            // Dropped before the response is written: a panic in `drop` still fails this item.
            drop(result);
            self.responses.result(self.scratch);
            sent.deliver();
        }
        None
    }
}
