//! Handles: what the types that users see are made of.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::deferred::{self, Limit};
use super::entry::BlockId;
use super::error::ShareError;
use super::family;
use super::kind::{self, Head};
use super::registry::{Attachment, Place};
use super::transit::{self, Kept, Transit};
use crate::os::robust::RobustMutex;

/// A handle of a shared object with a head of type `H`. Clones are handles of the same object.
pub(crate) struct Object<H> {
    attachment: Arc<Attachment>,
    head: PhantomData<fn() -> H>,
}

impl<H> Clone for Object<H> {
    fn clone(&self) -> Self {
        Self {
            attachment: self.attachment.clone(),
            head: PhantomData,
        }
    }
}

impl<H> std::fmt::Debug for Object<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.attachment.id())
    }
}

/// What a message contains in place of a handle.
#[derive(Serialize, Deserialize)]
struct SerializedHandle {
    family: u64,
    block: BlockId,
    transit: Transit,
}

/// Returns where the bytes behind the head begin: aligned for everything that can lie there.
const fn tail_offset<H>() -> usize {
    size_of::<H>().next_multiple_of(64)
}

impl<H> Object<H> {
    /// Returns whether both are handles of the same object.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.attachment.id() == other.attachment.id()
    }
}

/// The method of a public handle that compares it with another one. `$make` is an expression that
/// makes an object, for the example.
macro_rules! same_object {
    ([$($generics:tt)*] $name:ty, $make:literal, $($field:ident).+) => {
        impl<$($generics)*> $name {
            /// Returns whether both are handles of the same object. Objects with the same content
            /// are not the same.
            ///
            /// # Examples
            ///
            /// ```
            #[doc = concat!("let (one, other) = (", $make, ", ", $make, ");")]
            /// assert!(one.same_object(&one.clone()));
            /// assert!(!one.same_object(&other));
            /// # Ok::<(), Box<dyn std::error::Error>>(())
            /// ```
            pub fn same_object(&self, other: &Self) -> bool {
                self.$($field).+.is_same(&other.$($field).+)
            }
        }
    };
}
pub(crate) use same_object;

/// Makes the locks of a new object.
fn init_locks<H: Head>(head: NonNull<u8>) -> io::Result<()> {
    for &offset in H::LOCKS {
        // SAFETY: within the head, by the promise of `Head`, which is a mapped block of the right
        // size.
        #[allow(unsafe_code)]
        let lock = unsafe { head.add(offset) };
        // SAFETY: a lock lies there, which no other process or thread knows of yet. A block stays
        // mapped while there is a handle. A thread that locks has a handle, or has the block mapped
        // to reclaim what a member held; a handle of a mutex whose guard was forgotten keeps the
        // object.
        #[allow(unsafe_code)]
        unsafe { RobustMutex::init(lock.cast()) }?;
    }
    Ok(())
}

impl<H: Head> Object<H> {
    /// Makes a new object. It has a head and `tail` bytes behind it, all zeros, which `init` turns
    /// into the object's contents. `shape` tells types with the same head apart.
    pub(crate) fn new(
        tail: usize,
        shape: u64,
        init: impl FnOnce(NonNull<H>, NonNull<u8>) -> io::Result<()>,
    ) -> Result<Self, ShareError> {
        let len = tail_offset::<H>().checked_add(tail);
        let len = len.ok_or_else(|| ShareError::OutOfMemory {
            bytes: tail as u64,
            reason: "no machine has so much".to_owned(),
        })?;
        let attachment = Attachment::make(len, H::KIND, shape, |place| {
            init_locks::<H>(place.start())?;
            init(place.start().cast(), Self::behind(place))
        })?;
        Ok(Self {
            attachment,
            head: PhantomData,
        })
    }

    /// Makes an object with a value behind its head.
    pub(crate) fn of_value<T: bytemuck::Pod>(value: T) -> Result<Self, ShareError> {
        const { assert!(align_of::<T>() <= 64, "values are aligned to 64 at most") };
        Self::new(size_of::<T>(), shape_of::<T>(), |_, tail| {
            // SAFETY: the tail has room for a value and is aligned to 64 bytes. No other process
            // has the object yet.
            #[allow(unsafe_code)]
            unsafe {
                tail.cast::<T>().write(value);
            }
            Ok(())
        })
    }

    #[allow(unsafe_code)]
    fn behind(place: &Place) -> NonNull<u8> {
        // SAFETY: the block has this many bytes and more: `new` asks for as many, and `open`
        // checks.
        unsafe { place.start().add(tail_offset::<H>()) }
    }

    /// Returns the head.
    ///
    /// # Panics
    ///
    /// In a forked child, if the object was gone before its first use there. This goes for all
    /// methods that follow.
    #[allow(unsafe_code)]
    pub(crate) fn head(&self) -> &H {
        // SAFETY: the block was made with this head: `new` has made it so, or `open` has checked.
        unsafe { kind::head(self.attachment.place().start()) }
    }

    /// Makes sure that [`head`](Self::head) does not wait: the first use of an object in a forked
    /// child takes the ledger. Returns whether that was possible before the deadline. The deadline
    /// is asked for only then.
    pub(crate) fn reach(&self, deadline: impl FnOnce() -> Option<Instant>) -> bool {
        self.attachment.place_by(deadline).is_some()
    }

    /// Returns [`head`](Self::head), or `None` if it cannot be reached before the deadline: see
    /// [`reach`](Self::reach).
    #[allow(unsafe_code)]
    #[inline]
    pub(crate) fn head_by(&self, deadline: impl FnOnce() -> Option<Instant>) -> Option<&H> {
        let place = self.attachment.place_by(deadline)?;
        // SAFETY: as in `head`.
        Some(unsafe { kind::head(place.start()) })
    }

    /// Changes the object now, or as soon as its locks are free: for a change that must not wait,
    /// and must not be left undone. The object lives until the change is done.
    ///
    /// `change` tries once, waits for locks within the limit, and returns whether it is done.
    pub(crate) fn now_or_later(&self, mut change: impl FnMut(&H, Limit) -> bool + Send + 'static) {
        // Nearly always the locks are free, and no second handle is needed.
        if let Some(head) = self.head_by(|| Limit::Brief.at())
            && change(head, Limit::Brief)
        {
            return;
        }
        let this = self.clone();
        deferred::put_off(move |limit| {
            this.head_by(|| limit.at())
                .is_some_and(|head| change(head, limit))
        });
    }

    /// Returns the bytes behind the head, aligned to 64, and how many there are. They are valid as
    /// long as `self` lives.
    pub(crate) fn tail(&self) -> (NonNull<u8>, usize) {
        let place = self.attachment.place();
        (Self::behind(place), place.len() - tail_offset::<H>())
    }

    /// Returns how many bytes there are behind the head. Does not wait.
    pub(crate) fn tail_len(&self) -> usize {
        self.attachment.len() - tail_offset::<H>()
    }

    /// Returns the bytes behind the head of a block that was made as such an object; for
    /// [`Kind`](super::kind::Kind).
    pub(crate) fn tail_of(place: &Place) -> (NonNull<u8>, usize) {
        (
            Self::behind(place),
            place.len().saturating_sub(tail_offset::<H>()),
        )
    }

    /// Returns the object's number, which is the same in all processes as long as the object lives.
    pub(crate) fn id(&self) -> BlockId {
        self.attachment.id()
    }

    /// Returns the number of messages with a handle of this object that are under way and have no
    /// known receiver. They may be anywhere.
    pub(crate) fn in_flight(&self) -> u32 {
        self.attachment.in_flight()
    }

    /// Serialises a handle. `keep` makes what is kept as long as a process may still read the
    /// message. `granted` is called with the member that holds the handle already, if the message
    /// is for a known process.
    pub(crate) fn serialize_as<S: Serializer>(
        &self,
        serializer: S,
        keep: impl FnOnce() -> Kept,
        granted: impl FnOnce(u16),
    ) -> Result<S::Ok, S::Error> {
        // A forked child that passes on a handle from its parent must hold the object itself first.
        if !self.reach(transit::deadline) {
            transit::set_busy();
            return Err(serde::ser::Error::custom(ShareError::Busy { by: None }));
        }
        let id = self.id();
        let transit = transit::depart(id, keep, granted).map_err(serde::ser::Error::custom)?;
        let family = family::get().map_err(serde::ser::Error::custom)?;
        let sent = SerializedHandle {
            family: family.id(),
            block: id,
            transit,
        };
        sent.serialize(serializer)
    }

    pub(crate) fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize_as(serializer, || Box::new(self.clone()), |_| {})
    }

    /// Makes a handle from what [`serialize_as`](Self::serialize_as) wrote. Calls `arrived` before
    /// the message ceases to count as under way, with whether the handle was granted to this
    /// process.
    pub(crate) fn deserialize_as<'de, D: Deserializer<'de>, R>(
        deserializer: D,
        shape: u64,
        arrived: impl FnOnce(Self, bool) -> R,
    ) -> Result<R, D::Error> {
        let sent = SerializedHandle::deserialize(deserializer)?;
        Self::open(&sent, shape, arrived).map_err(serde::de::Error::custom)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
        shape: u64,
    ) -> Result<Self, D::Error> {
        Self::deserialize_as(deserializer, shape, |object, _| object)
    }

    fn open<R>(
        sent: &SerializedHandle,
        shape: u64,
        arrived: impl FnOnce(Self, bool) -> R,
    ) -> Result<R, ShareError> {
        let family = family::get()?;
        if family.id() != sent.family {
            return Err(ShareError::Foreign);
        }
        let attachment = Attachment::open(sent.block, H::KIND, shape, false);
        let is_whole =
            |attachment: &Arc<Attachment>| attachment.place().len() >= tail_offset::<H>();
        let mut kept: Option<Kept> = None;
        let opened = match attachment {
            Ok(attachment) if is_whole(&attachment) => {
                kept = Some(Box::new(attachment.clone()));
                let object = Self {
                    attachment,
                    head: PhantomData,
                };
                Ok(arrived(object, sent.transit == Transit::Granted))
            }
            Ok(_) => Err(ShareError::OtherType),
            Err(error) => Err(error),
        };
        // Only now: the message has kept the object alive until here, also if it is not of the
        // expected type.
        transit::arrive(sent.block, sent.transit, kept);
        opened
    }
}

/// Returns a number for a type, by which a handle of another type is recognised. It is the same in
/// all processes of a family, because they run the same executable.
pub(crate) fn shape_of<T>() -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    // `DefaultHasher::new` uses fixed keys.
    let mut hasher = DefaultHasher::new();
    std::any::type_name::<T>().hash(&mut hasher);
    size_of::<T>().hash(&mut hasher);
    align_of::<T>().hash(&mut hasher);
    hasher.finish()
}

/// Implements `Clone`, `Serialize` and `Deserialize` for a handle, whose field `object` is an
/// [`Object`] of this shape. A handle of `T`s has `PhantomData` too.
macro_rules! handle {
    ($name:ident $(<$of:ident>)? { object $(, $marker:ident)? }, $shape:expr) => {
        impl$(<$of>)? Clone for $name$(<$of>)? {
            fn clone(&self) -> Self {
                Self {
                    object: self.object.clone(),
                    $($marker: std::marker::PhantomData,)?
                }
            }
        }

        impl$(<$of>)? serde::Serialize for $name$(<$of>)? {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.object.serialize(serializer)
            }
        }

        impl<'de $(, $of: bytemuck::Pod)?> serde::Deserialize<'de> for $name$(<$of>)? {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Ok(Self {
                    object: crate::memory::object::Object::deserialize(deserializer, $shape)?,
                    $($marker: std::marker::PhantomData,)?
                })
            }
        }
    };
}
pub(crate) use handle;
