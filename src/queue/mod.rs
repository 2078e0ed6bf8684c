//! queues
mod error;
mod face;
mod fifo;
mod head;
mod item;
mod iter;
mod order;
mod pipe;
mod port;
mod priority;
mod ready;
mod stack;
mod transfer;

pub use error::{JoinError, PopError, PushError, TooMany};
pub use fifo::{Queue, Receiver, Sender};
pub(crate) use head::{bury, take_apart};
pub use iter::Iter;
pub use pipe::{Connection, Pipe};
pub use priority::PriorityQueue;
pub use ready::{Waitable, wait_ready};
pub use stack::Stack;
