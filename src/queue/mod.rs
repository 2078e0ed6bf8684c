//! Queues, stacks and pipes between threads and processes.
//!
//! | type | order | between |
//! |---|---|---|
//! | [`Queue`] | first in, first out | any number on either side |
//! | [`PriorityQueue`] | highest priority first, then first in, first out | any number |
//! | [`Stack`] | last in, first out | any number |
//! | [`Connection`], from [`Pipe`] | first in, first out, both ways | two ends |
//!
//! The halves of a queue are [`Sender`] and [`Receiver`]. Whole queues have `push` and `pop`.
//! Halves and connections have `send` and `recv`, which do the same. The errors are the same too:
//! [`SendError`] is another name of [`PushError`], and [`RecvError`] of [`PopError`].
//!
//! All are bounded, in items and in bytes. A program gives handles to other processes like any
//! [shared object](crate::shm): as arguments, in contexts, through other queues, as results.
//! Between threads of one process they work as well. As long as no thread has to wait, no call
//! enters the kernel. [`select`](crate::select) waits for any mix of them, and for processes.
//!
//! ```text
//!   push                        shared memory                        pop
//!
//!   item ──serde──▶ bytes ──▶ ┌────────────────────────────┐ ──▶ bytes ──serde──▶ item
//!                             │ slots, a ring:             │
//!                 small: into │ ▓▓▓▓▓▓▓▓░░░░░░░░░░░░░░░░░░ │ copied out of its slot
//!                 its slot    │ ▲ popped ▲ pushed          │
//!                             │ └ lock   └ lock, journals  │
//!                             │ counts, for each process   │
//!                             └─────┬──────────────────────┘
//!                 large: into a     └▶ payload: goes over to the queue, and then to the popper
//!                 block of its own
//! ```
//!
//! A process serialises an item outside of the locks. Under them a journal says what is about to
//! happen. One store of the number pushed or popped makes it happen. The process brings the rest in
//! order after that.
//!
//! # When a participant is killed
//!
//! | who is killed | when | what the others see |
//! |---|---|---|
//! | a producer | before its push has happened | nothing was pushed; its memory is given back |
//! | a producer | after that | the item, whole and once |
//! | a consumer | before its pop has happened | nothing: the next consumer gets the item |
//! | a consumer | after that | it is lost; `join` counts it, unless `task_done` was called for it |
//! | either | with a lock | the next owner of the lock does or undoes the rest, then all go on |
//! | either | while it waits | up to a tenth of a second, if it was woken in place of another |
//! | any | | waiting processes learn of it within a tenth of a second |
//! | the last producer | | consumers get the rest, then [`Disconnected`](PopError::Disconnected) |
//! | the last consumer | | pushes are [`Disconnected`](PushError::Disconnected) |
//! | all | | the memory is given back |
//!
//! So an item is never there twice, nor torn, and each death costs one item at most. No process
//! waits longer for a lock whose owner was killed than the repair takes. In a family of more than
//! some 64 processes it may take longer to learn of a death: a process that waits looks at 32
//! others every 50 ms.
//!
//! # Who is there
//!
//! A queue has counts of each process: how many of its handles may push, how many may pop, and how
//! many items it has not acknowledged yet. A handle counts where it was made, cloned or
//! deserialised, and in a forked child from its first use there. While a handle is in transit to a
//! process that is not known yet (in a queue, or in a result), neither side counts as gone.
//!
//! A [`Sender`] or [`Receiver`] is told that the other side is gone whenever it is. A [`Queue`],
//! [`Stack`] or [`PriorityQueue`] may do both, and another thread may have that very handle by
//! reference, which the queue cannot see. So a call by it is
//! [`Disconnected`](PopError::Disconnected) only
//!
//! - if there were others when it began, or while it waited, and they have all gone;
//! - or if one of the others was killed, or crashed, and this handle itself has not pushed since
//!   then (of a push: popped);
//! - or if it waits without a timeout in a process of one thread.
//!
//! If others have come and gone before the call, that says nothing: the call waits. A process that
//! has ended, and that its parent has waited for, has gone. So where the end of a queue matters,
//! split it, or close it. `try_push` and `try_pop` by a whole handle do not ask for others at all:
//! the handle can serve itself.
//!
//! A child that the program forks by itself, and that ends by `_exit`, counts as killed if it has
//! used a handle: it runs no code that could tell. So drop its handles before.
//!
//! # Timeouts
//!
//! A call with a timeout that is late fails with `TimedOut`, also if the timeout is zero. The
//! `try_` forms fail with [`Empty`](PopError::Empty) and [`Full`](PushError::Full). A timeout that
//! is beyond the reach of the clock (`Duration::MAX`) is none.
//!
//! # What is done
//!
//! `join` waits until each item that was pushed is done or lost. The process that popped an item
//! has to call `task_done` for it; until then the item is unacknowledged. It is lost if that
//! process dies, if it drops its last handle that may pop, or if the item cannot be read.
//!
//! # Limits
//!
//! A push of a large item waits until there is room for all its bytes at one time. While others
//! push small items, that may be never.
//!
//! Signal handlers must not use queues. If an item of a queue is a handle of that same queue, the
//! queue lives as long as the family of processes.
//!
//! A process that is stopped (`SIGSTOP`, a debugger) in the middle of a push or pop keeps others
//! from the same until it goes on or is killed. Then `try_` calls give up after 20 ms, and calls
//! with a timeout give up in time, whatever is in the queue. `close` waits. A `pop` whose item has
//! handles in it may take 2 seconds more to open them.

mod accounting;
mod error;
#[cfg(all(test, not(loom)))]
mod faults;
mod fifo;
mod handle;
mod head;
mod item;
mod iter;
mod macros;
mod order;
mod pipe;
mod priority;
mod stack;
mod transfer;

pub use error::{JoinError, PopError, PushError, RecvError, SendError, TaskDoneError};
pub use fifo::{Queue, Receiver, Sender};
pub(crate) use handle::Handle;
pub(crate) use head::{reclaim, take_apart};
pub use iter::{IntoIter, Iter};
pub use pipe::{Connection, Pipe};
pub use priority::PriorityQueue;
pub use stack::Stack;
