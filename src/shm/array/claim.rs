//! A claim as the process has it that made it, and what forks make of it.
//!
//! A forked child gets copies of everything, also of claims, which are not its own: what it drops stays claimed. What it
//! may do with such a copy:
//!
//! - of a claim to read: read, after it has claimed the same elements itself, at the first look. That is refused only if
//!   the parent has given its own claim back since, and somebody writes.
//! - of a claim to write: nothing. Parent and child would write to one memory at once.
//!
//! That is checked at each access through a guard. A slice that was taken from a guard *before* the fork is out of reach
//! of any check. One to read is fine: its lifetime keeps the guard in the parent, for as long as the parent waits for the
//! child. One to write is not, because the copies of a `Mutex<&mut [T]>` lock each for itself. So this crate forks no
//! process while there is a claim to write in it ([`writers`]).

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use super::claims::{ArrayHead, Mode, Refusal, Terms};
use crate::os::fork;
use crate::shm::member;
use crate::shm::object::Object;

/// Claims to write whose elements this process can reach.
pub(crate) mod writers {
    use parking_lot::{Mutex, MutexGuard};

    use crate::os::fork;

    /// How many there are, in the process of this [`fork::generation`].
    static COUNT: Mutex<(u32, usize)> = Mutex::new((0, 0));

    /// One of them.
    #[derive(Debug)]
    pub(in crate::shm::array) struct Writer {
        generation: u32,
    }

    impl Writer {
        pub(in crate::shm::array) fn new() -> Self {
            let generation = fork::generation();
            let mut count = COUNT.lock();
            if count.0 != generation {
                // Those of the parent are not reached by guards here.
                *count = (generation, 0);
            }
            count.1 += 1;
            Self { generation }
        }
    }

    impl Drop for Writer {
        fn drop(&mut self) {
            if self.generation == fork::generation() {
                COUNT.lock().1 -= 1;
            }
        }
    }

    /// Keeps others from coming to one, for the time of a fork.
    ///
    /// # Errors
    ///
    /// That there are some.
    pub(crate) fn none() -> std::io::Result<impl Sized> {
        let count: MutexGuard<'static, (u32, usize)> = COUNT.lock();
        if count.1 > 0 && count.0 == fork::generation() {
            return Err(std::io::Error::other(
                "this process has elements of a shared array to write to, which a forked child would write to at the \
                 same time; drop the guard first",
            ));
        }
        Ok(count)
    }
}

/// A claim, given back when this is dropped.
pub(super) struct Claim<'a> {
    /// A handle of its own: whoever leaks a guard and drops the array still holds the block, and so is heard of at its
    /// burial.
    object: Object<ArrayHead>,
    terms: Terms,
    /// What belongs to one process: the fork generation in the upper 32 bits, then the member, then the entry.
    own: AtomicU64,
    /// Of a claim to write.
    _writer: Option<writers::Writer>,
    array: PhantomData<&'a Object<ArrayHead>>,
}

fn packed(generation: u32, member: u16, number: usize) -> u64 {
    u64::from(generation) << 32 | u64::from(member) << 16 | number as u64
}

impl<'a> Claim<'a> {
    /// Makes a claim. If others are in the way, members that are dead are buried, and it is tried again.
    pub(super) fn new(
        object: &'a Object<ArrayHead>,
        mode: Mode,
        (start, end): (u64, u64),
        lend: u64,
    ) -> Result<Self, Refusal> {
        let terms = Terms {
            member: own_number()?,
            mode,
            start,
            end,
            lend,
        };
        // Before the claim: a fork in between finds the one or the other.
        let writer = matches!(mode, Mode::Write | Mode::SubWrite).then(writers::Writer::new);
        let number = despite_the_dead(|| object.head().claim(&terms))?;
        Ok(Self {
            object: object.clone(),
            terms,
            own: AtomicU64::new(packed(fork::generation(), terms.member, number)),
            _writer: writer,
            array: PhantomData,
        })
    }

    /// Sees to it that this process has the claim.
    ///
    /// # Panics
    ///
    /// In a forked child: if it is a claim to write, or if the elements cannot be claimed to read.
    #[inline]
    pub(super) fn check(&self) {
        let own = self.own.load(Ordering::Acquire);
        if (own >> 32) as u32 != fork::generation() {
            self.claim_after_fork(own);
        }
    }

    #[cold]
    fn claim_after_fork(&self, before: u64) {
        assert!(
            !matches!(self.terms.mode, Mode::Write | Mode::SubWrite),
            "this guard is a copy of that of the process that this one was forked from, which has claimed the elements to \
             write to; claim them here"
        );
        let claimed = own_number().and_then(|member| {
            let terms = Terms {
                member,
                ..self.terms
            };
            let number = despite_the_dead(|| self.object.head().claim(&terms))?;
            Ok((terms, number))
        });
        match claimed {
            Ok((terms, number)) => {
                let own = packed(fork::generation(), terms.member, number);
                let exchanged =
                    self.own
                        .compare_exchange(before, own, Ordering::AcqRel, Ordering::Acquire);
                if exchanged.is_err() {
                    // Another thread was faster.
                    self.object.head().release(number, &terms);
                }
            }
            Err(refusal) => panic!(
                "a guard that this process has from the one it was forked from: {}",
                super::ClaimError::from(refusal)
            ),
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let own = *self.own.get_mut();
        if (own >> 32) as u32 != fork::generation() {
            // A copy of another process's.
            return;
        }
        let terms = Terms {
            member: (own >> 16) as u16,
            ..self.terms
        };
        let number = usize::from(own as u16);
        self.object.head().release(number, &terms);
    }
}

/// A whole array lent to the workers of a call.
pub(super) struct Lend<'a> {
    object: &'a Object<ArrayHead>,
    number: usize,
    id: u64,
    generation: u32,
}

impl<'a> Lend<'a> {
    pub(super) fn new(
        object: &'a Object<ArrayHead>,
        mode: Mode,
        len: u64,
    ) -> Result<Self, Refusal> {
        let terms = Terms {
            member: own_number()?,
            mode,
            start: 0,
            end: len,
            lend: 0,
        };
        let (number, id) = despite_the_dead(|| object.head().lend(&terms))?;
        Ok(Self {
            object,
            number,
            id,
            generation: fork::generation(),
        })
    }

    /// Its number, under which workers make their claims.
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

impl Drop for Lend<'_> {
    /// Waits until no worker has anything of it any more.
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            self.object.head().end_lend(self.number, self.id);
        }
    }
}

pub(super) fn own_number() -> Result<u16, Refusal> {
    member::own().map_err(|error| Refusal::Unusable(error.to_string()))
}

/// Tries again after those who are in the way have been buried, if they are dead.
pub(super) fn despite_the_dead<T>(
    mut attempt: impl FnMut() -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    match attempt() {
        Err(Refusal::Clash(_) | Refusal::Full) => {
            member::bury_dead();
            attempt()
        }
        outcome => outcome,
    }
}
