//! Arrays lent to workers: the array's handle crosses to the worker, and the function as with any
//! other call.

use super::Processes;
use super::task::{Function, SentContext};
use crate::array::lend::Lent;
use crate::call::closure::{self, is_portable};
use crate::call::entry::{self, SentLoan};
use crate::call::portable::Portable;
use crate::call::{Never, Plan};
use crate::engine::RunLent;
use crate::error::TaskError;
use crate::memory::transit;

impl<L: Lent<F>, F: Portable> RunLent<L, F> for Processes {
    fn lend(&self, plan: Plan<'_>, f: F, lent: L) -> Result<(), TaskError> {
        const {
            assert!(
                is_portable::<F>(),
                "a function for a pool of processes must not capture variables: nothing of this process is in a \
                 worker. Two ways out: (1) closure!([names] |index: usize, chunk: &mut [T]| ...) sends what it \
                 names once to each worker; (2) Pool::forked(n) runs children that see all variables, \
                 copy-on-write. (A function pointer counts as a captured variable: pass the function by its name.)"
            );
        }
        let (items, lent) = (lent.items(), lent.into_wire());
        let (encoded, handles) = transit::keep(|| {
            let (context, entry) = if size_of::<F>() == 0 {
                let run =
                    |(): &(), lent: &L::Wire, index| L::run(lent, entry::zero_sized::<F>(), index);
                (closure::encode_context(&())?, entry::lent(run))
            } else {
                let sendable = closure::sendable(&f)?;
                (sendable.context, sendable.entry)
            };
            let bytes = closure::encode_context(&SentLoan { lent, context })?;
            Ok::<_, TaskError>((bytes, entry))
        });
        let (bytes, entry) = encoded?;
        let context = SentContext::new(bytes, handles, &self.shared.retired);
        let function = Function::new(entry, Some(context))?;
        self.call::<usize, (), _>(plan, function, 0..items, Never)
            .map(drop)
    }
}
