//! Arrays lent to workers: what crosses is the array's handle, and the function as with any other call.

use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};

use super::entry::{self, Entry, conjure};
use super::task::{Function, SentContext};
use super::{Portable, Processes};
use crate::closure::{self, is_portable};
use crate::codec;
use crate::engine::Lend;
use crate::error::TaskError;
use crate::pool::Plan;
use crate::shm::array::lend::Lent;
use crate::shm::cargo;

/// What is lent, and the context, as they are sent. The context is encoded by itself: of a `closure!` nothing else is known.
#[derive(Serialize, Deserialize)]
struct Sent<L> {
    lent: L,
    context: Vec<u8>,
}

/// The same in a worker.
struct Loan<L, C> {
    lent: L,
    context: C,
}

impl<'de, L: DeserializeOwned, C: DeserializeOwned + 'static> Deserialize<'de> for Loan<L, C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Sent { lent, context } = Sent::deserialize(deserializer)?;
        let context = codec::take(&mut context.as_slice()).map_err(D::Error::custom)?;
        Ok(Self { lent, context })
    }
}

/// Where a worker enters a function that captures nothing and is lent something.
pub(crate) fn entry<L, F, C>() -> Entry
where
    L: Lent<F, C>,
    C: DeserializeOwned + 'static,
{
    fn of<X, G>(_: G) -> Entry
    where
        X: DeserializeOwned + 'static,
        G: Fn(&X, usize),
    {
        entry::with_context::<X, G, usize, ()>
    }
    of::<Loan<L, C>, _>(|loan, index| loan.lent.run(conjure::<F>(), &loan.context, index))
}

impl<L, F, C> Lend<L, F, C> for Processes
where
    L: Lent<F, C>,
    F: Portable + Send,
    C: Serialize + DeserializeOwned + 'static,
{
    fn lend(&self, plan: Plan<'_>, f: F, context: &C, lent: L) -> Result<(), TaskError> {
        const {
            assert!(
                is_portable::<F>(),
                "a function for a pool of processes must not capture variables: nothing of this process is in a \
                 worker. Three ways out: (1) the form of the call that ends in _with sends a context once to each \
                 worker; (2) closure!([names] |index: usize, chunk: &mut [T]| ...) does the same, shorter; (3) \
                 Pool::forked(n) runs children that see all variables, copy-on-write. (A function pointer counts as \
                 a captured variable: pass the function by its name.)"
            );
        }
        let items = lent.items();
        let (encoded, cargo) = cargo::keep(|| {
            let (context, entry) = if size_of::<F>() == 0 {
                (closure::encode_context(context)?, entry::<L, F, C>())
            } else {
                let sendable = closure::sendable(&f).unwrap_or_else(|| {
                    Err(TaskError::InvalidCall {
                        reason:
                            "the function captures variables, in some other way than closure! does it"
                                .into(),
                    })
                })?;
                (sendable.context, sendable.entry)
            };
            let bytes = closure::encode_context(&Sent { lent, context })?;
            Ok::<_, TaskError>((bytes, entry))
        });
        let (bytes, entry) = encoded?;
        let context = SentContext::new(bytes, cargo, &self.shared.retired);
        let function = Function::new(entry, Some(context))?;
        self.call::<usize, ()>(plan, function, 0..items).map(drop)
    }
}
