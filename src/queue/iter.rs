//! Item after item.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use super::error::PopError;
use super::item;
use super::port::{Patience, Port};

/// Takes items out of a queue until it ends; from [`Queue::iter`](super::Queue::iter) and its like.
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
/// assert_eq!((items.next(), items.next(), items.next()), (Some(1), Some(2), None));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Iter<'a, T> {
    port: &'a Port,
    items: PhantomData<fn() -> T>,
}

impl<'a, T> Iter<'a, T> {
    pub(super) fn of(port: &'a Port) -> Self {
        Self {
            port,
            items: PhantomData,
        }
    }
}

impl<T: DeserializeOwned + 'static> Iterator for Iter<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        loop {
            match item::pop(self.port, Patience::FOREVER) {
                Ok(item) => return Some(item),
                Err(error @ (PopError::Undecodable { .. } | PopError::Unreachable(_))) => {
                    log::error!("{error}");
                }
                Err(_) => return None,
            }
        }
    }
}
