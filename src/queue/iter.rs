//! Iterators over the items of a queue.

use std::iter::FusedIterator;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use super::error::PopError;
use super::handle::Handle;
use super::item;
use crate::memory::wait_mode::WaitMode;

/// An iterator that takes items out of a queue until it ends; from
/// [`Queue::iter`](super::Queue::iter) and its like.
///
/// Items that cannot be read are logged and left out. They count as lost in
/// [`join`](super::Queue::join).
///
/// # Examples
///
/// ```
/// use manyhands::Queue;
///
/// let queue = Queue::bounded(8)?;
/// queue.push(1)?;
/// queue.push(2)?;
/// queue.close();
/// let mut items = queue.iter();
/// assert_eq!(
///     (items.next(), items.next(), items.next()),
///     (Some(1), Some(2), None)
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Iter<'a, T> {
    handle: &'a Handle,
    /// It has ended once, and stays so: a handle that may push could fill the queue again.
    is_over: bool,
    items: PhantomData<fn() -> T>,
}

impl<'a, T> Iter<'a, T> {
    /// Makes an iterator over the items that this handle pops.
    pub(super) fn of(handle: &'a Handle) -> Self {
        Self {
            handle,
            is_over: false,
            items: PhantomData,
        }
    }
}

impl<T: DeserializeOwned + 'static> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        next(self.handle, &mut self.is_over)
    }
}

impl<T: DeserializeOwned + 'static> FusedIterator for Iter<'_, T> {}

/// An iterator like [`Iter`] that has the handle itself; from `into_iter` of
/// [`Queue`](super::Queue) and its like.
///
/// # Examples
///
/// ```
/// use manyhands::Queue;
///
/// let (sender, receiver) = Queue::bounded(8)?.split();
/// std::thread::spawn(move || (1..=4).for_each(|x| sender.send(x).unwrap()));
/// let sums = receiver.into_iter().scan(0, |sum, x: i32| {
///     *sum += x;
///     Some(*sum)
/// });
/// assert_eq!(sums.collect::<Vec<_>>(), [1, 3, 6, 10]);
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
#[derive(Debug)]
pub struct IntoIter<T> {
    handle: Handle,
    /// As in [`Iter`].
    is_over: bool,
    items: PhantomData<fn() -> T>,
}

impl<T> IntoIter<T> {
    /// Makes an iterator over the items that this handle pops.
    pub(super) fn of(handle: Handle) -> Self {
        Self {
            handle,
            is_over: false,
            items: PhantomData,
        }
    }
}

impl<T: DeserializeOwned + 'static> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        next(&self.handle, &mut self.is_over)
    }
}

impl<T: DeserializeOwned + 'static> FusedIterator for IntoIter<T> {}

/// Returns the next item that can be read, unless the iterator is over.
fn next<T: DeserializeOwned + 'static>(handle: &Handle, is_over: &mut bool) -> Option<T> {
    while !*is_over {
        match item::pop(handle, WaitMode::Forever) {
            Ok(item) => return Some(item),
            Err(error @ PopError::Decode { .. }) => log::error!("{error}"),
            Err(ref error @ PopError::Share(ref source)) => log::error!("{error}: {source}"),
            Err(_) => *is_over = true,
        }
    }
    None
}
