//! The parts that the public types have in common, written once.

/// `Clone`, serde's traits and `Debug` of a handle that is made of a
/// [`Handle`](super::handle::Handle).
macro_rules! handle {
    ($name:ident, $role:ident, $shape:ident) => {
        impl<T> $name<T> {
            fn of(handle: Handle) -> Self {
                Self {
                    handle,
                    items: PhantomData,
                }
            }
        }

        /// Makes another handle of the same queue.
        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                Self::of(self.handle.another(Role::$role))
            }
        }

        impl<T> std::fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("len", &self.handle.len())
                    .field("capacity", &self.handle.capacity())
                    .field("is_closed", &self.handle.is_closed())
                    .finish()
            }
        }

        impl<T> serde::Serialize for $name<T> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.handle.serialize(serializer)
            }
        }

        impl<'de, T> serde::Deserialize<'de> for $name<T> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let handle =
                    Handle::deserialize(deserializer, shape_of::<$shape<T>>(), Role::$role)?;
                Ok(Self::of(handle))
            }
        }
    };
}

/// The functions of every handle.
macro_rules! state {
    ($name:ident, $make:literal) => {
        impl<T> $name<T> {
            /// Returns how many items are in the queue now.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// assert_eq!(it.len(), 0);
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn len(&self) -> usize {
                self.handle.len()
            }

            /// Returns whether no item lies in it at this moment.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// assert!(it.is_empty());
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Returns how many items can lie in it.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// assert_eq!(it.capacity(), 8);
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn capacity(&self) -> usize {
                self.handle.capacity()
            }

            /// Returns whether both are handles of the same queue.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// assert!(it.same_object(&it.clone()));
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn same_object(&self, other: &Self) -> bool {
                self.handle.is_same(&other.handle)
            }

            /// Closes it for all handles: from now on pushes fail, and pops fail once they have
            /// drained what is left. Closing twice does nothing.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// it.close();
            /// assert!(it.is_closed());
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn close(&self) {
                self.handle.close();
            }

            /// Returns whether a process has closed it.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// assert!(!it.is_closed());
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn is_closed(&self) -> bool {
                self.handle.is_closed()
            }

            /// Waits until everything that was pushed has been taken and acknowledged as done
            /// ([`task_done`](super::Queue::task_done)), or is lost.
            ///
            /// It also waits for items that any process pushes meanwhile. A worker that pushes more
            /// work while it works on an item calls `task_done` after that.
            ///
            /// # Errors
            ///
            /// - [`JoinError::Lost`](super::JoinError::Lost) when nothing is left to wait for, but
            ///   some items were lost: a process had taken them and died, or dropped its last
            ///   handle that may pop, without `task_done`, or it could not read them. Each handle
            ///   reports each lost item once.
            /// - [`JoinError::Disconnected`](super::JoinError::Disconnected) if items are left and
            ///   no other handle that could take them. A handle that may pop itself returns this by
            ///   the rule of `pop`.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// it.join()?;
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            pub fn join(&self) -> Result<(), super::JoinError> {
                self.handle.join(WaitMode::Forever)
            }

            /// Waits like [`join`](Self::join), but gives up after `timeout`.
            ///
            /// # Errors
            ///
            /// As for `join`, and [`JoinError::TimedOut`](super::JoinError::TimedOut).
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// it.join_timeout(std::time::Duration::ZERO)?;
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            pub fn join_timeout(&self, timeout: Duration) -> Result<(), super::JoinError> {
                self.handle.join(WaitMode::within(timeout))
            }
        }
    };
}

/// The functions that push items without a priority into a whole queue.
macro_rules! pushing {
    ($name:ident, $make:literal) => {
        impl<T: serde::Serialize + 'static> $name<T> {
            /// Pushes an item, and waits for room if there is none.
            ///
            /// # Errors
            ///
            /// [`PushError`] with the item: the queue is closed, no handle is left that could take
            /// the item, it is larger than the bytes that may lie in the queue, it cannot be
            /// serialised, or there is no memory for it. Never `Full` or `TimedOut`.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// it.push(7)?;
            /// assert_eq!(it.len(), 1);
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            pub fn push(&self, item: T) -> Result<(), PushError<T>> {
                item::push(&self.handle, item, 0, WaitMode::Forever)
            }

            /// Pushes an item if there is room now.
            ///
            /// # Errors
            ///
            /// As for [`push`](Self::push), and [`PushError::Full`].
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// while it.try_push(7).is_ok() {}
            /// assert_eq!(it.len(), it.capacity());
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            pub fn try_push(&self, item: T) -> Result<(), PushError<T>> {
                item::push(&self.handle, item, 0, WaitMode::Try)
            }

            /// Pushes an item, and waits for room for at most `timeout`.
            ///
            /// # Errors
            ///
            /// As for [`push`](Self::push), and [`PushError::TimedOut`] when the time is over.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// it.push_timeout(7, std::time::Duration::from_secs(1))?;
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            pub fn push_timeout(&self, item: T, timeout: Duration) -> Result<(), PushError<T>> {
                item::push(&self.handle, item, 0, WaitMode::within(timeout))
            }
        }
    };
}

/// The functions that pop items from a whole queue.
macro_rules! popping {
    ($name:ident, $make:literal) => {
        impl<T: serde::de::DeserializeOwned + 'static> $name<T> {
            /// Takes the next item, and waits for one if there is none.
            ///
            /// A handle that may also push is told that no other one is left to do so if others
            /// were there when this call began, and have gone; or if one was killed since this
            /// handle last pushed itself. It is not told so if others have come and gone before:
            /// another thread may push by this same handle.
            ///
            /// # Errors
            ///
            /// [`PopError`](super::PopError): the queue is closed and drained, no handle is left
            /// that could push, or an item could not be read. Never `Empty` or `TimedOut`.
            ///
            /// # Panics
            ///
            /// If the item's `Deserialize` panics. The item is lost then.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// it.close();
            /// assert_eq!(it.pop(), Err(manyhands::queue::PopError::Closed));
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn pop(&self) -> Result<T, super::PopError> {
                item::pop(&self.handle, WaitMode::Forever)
            }

            /// Takes the next item if there is one now.
            ///
            /// # Errors
            ///
            /// As for [`pop`](Self::pop), and [`PopError::Empty`](super::PopError::Empty).
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// assert!(it.try_pop().is_err());
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn try_pop(&self) -> Result<T, super::PopError> {
                item::pop(&self.handle, WaitMode::Try)
            }

            /// Takes the next item, and waits for one for at most `timeout`.
            ///
            /// # Errors
            ///
            /// As for [`pop`](Self::pop), and [`PopError::TimedOut`](super::PopError::TimedOut)
            /// when the time is over.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// assert!(it.pop_timeout(std::time::Duration::from_millis(1)).is_err());
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn pop_timeout(&self, timeout: Duration) -> Result<T, super::PopError> {
                item::pop(&self.handle, WaitMode::within(timeout))
            }
        }
    };
}

/// The functions of a handle that takes items, besides those that take one.
macro_rules! taking {
    ($name:ident, $make:literal) => {
        impl<T: serde::de::DeserializeOwned + 'static> $name<T> {
            /// Returns an iterator that takes item after item, and waits for each. It ends when the
            /// queue is closed and drained, or no handle is left that could push. Items that cannot
            /// be read are logged and left out; they count as lost in [`join`](Self::join).
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// it.close();
            /// assert_eq!(it.iter().count(), 0);
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn iter(&self) -> super::iter::Iter<'_, T> {
                super::iter::Iter::of(&self.handle)
            }

            /// Acknowledges an item that this process has taken as done; [`join`](Self::join) waits
            /// for that. Any handle and any thread of the process may do so.
            ///
            /// An item is lost, and `join` reports it, if its process dies before it calls this, or
            /// drops its last handle that may pop.
            ///
            /// # Errors
            ///
            /// [`TaskDoneError`](super::TaskDoneError) if this process has no unacknowledged item.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = $make]
            /// assert!(it.task_done().is_err());
            /// # Ok::<(), manyhands::shm::ShareError>(())
            /// ```
            pub fn task_done(&self) -> Result<(), super::TaskDoneError> {
                self.handle.task_done()
            }
        }

        impl<T: serde::de::DeserializeOwned + 'static> IntoIterator for $name<T> {
            type Item = T;
            type IntoIter = super::iter::IntoIter<T>;

            fn into_iter(self) -> super::iter::IntoIter<T> {
                super::iter::IntoIter::of(self.handle)
            }
        }

        impl<'a, T: serde::de::DeserializeOwned + 'static> IntoIterator for &'a $name<T> {
            type Item = T;
            type IntoIter = super::iter::Iter<'a, T>;

            fn into_iter(self) -> super::iter::Iter<'a, T> {
                self.iter()
            }
        }
    };
}

pub(super) use {handle, popping, pushing, state, taking};
