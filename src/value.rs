//! A plain value that processes share.

use std::fmt;
use std::marker::PhantomData;
use std::mem::{offset_of, size_of};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use bytemuck::Pod;

use crate::memory::ShareError;
use crate::memory::kind::{Head, Kind};
use crate::memory::object::{Object, handle, same_object, shape_of};
use crate::memory::shareable::Shareable;
use crate::os::fault;
use crate::os::robust::{Held, RobustMutex};

/// One plain value that several processes read and write.
///
/// Each access reads or writes the whole value at once, under a lock of its own. No process sees
/// half of a change, even if the process that makes the change is killed in the middle of it. For a
/// value that stays locked over several steps there is [`sync::Mutex`](crate::sync::Mutex).
///
/// `T` is any [`Pod`](bytemuck::Pod): numbers, arrays of them, and structs of them that derive it.
/// `bool` and `char` are not `Pod` (use a `u8` or `u32`), nor are `String` and `Vec` (use an array,
/// or a [queue](crate::queue)): see [`shm`](crate::shm#which-values-can-be-shared), which has an
/// example with a struct. Clones are handles of the same value.
///
/// # Examples
///
/// ```
/// use manyhands::SharedValue;
/// use manyhands::prelude::*;
///
/// let total = SharedValue::new(0u64)?;
/// let pool = Pool::processes(2)?;
/// pool.map_with(
///     &total,
///     |total, x: u64| {
///         total.update(|sum| sum + x);
///     },
///     0..100,
/// )?;
/// assert_eq!(total.get(), 4_950);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SharedValue<T> {
    object: Object<ValueHead>,
    value: PhantomData<fn(T) -> T>,
}

/// The head of a value. Behind the head there is room for two values, of which one is valid; a
/// change writes the other one first.
#[repr(C)]
struct ValueHead {
    lock: RobustMutex,
    /// Which of the two is valid, by its lowest bit. Changed as the last step of a change, so a
    /// process that is killed in the middle of a change has changed nothing.
    current: AtomicU32,
}

// SAFETY: the lock in `LOCKS`, and an atomic.
#[allow(unsafe_code)]
unsafe impl Head for ValueHead {
    const KIND: Kind = Kind::Value;
    const LOCKS: &'static [usize] = &[offset_of!(Self, lock)];
}

impl<T: Shareable> SharedValue<T> {
    /// Makes a value to share.
    ///
    /// # Errors
    ///
    /// [`ShareError::OutOfMemory`], and the other errors that can keep a process from sharing
    /// objects.
    ///
    /// # Examples
    ///
    /// ```
    /// use manyhands::SharedValue;
    ///
    /// let position = SharedValue::new([1.0_f64, 2.0])?;
    /// assert_eq!(position.get(), [1.0, 2.0]);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn new(value: T) -> Result<Self, ShareError> {
        let object = Object::new(2 * size_of::<T>(), shape_of::<T>(), |_, _| Ok(()))?;
        let this = Self {
            object,
            value: PhantomData,
        };
        this.set(value);
        Ok(this)
    }

    fn lock(&self) -> Held<'_> {
        // It does not matter whether the last owner died: the value is whole at every moment.
        let lock = &self.object.head().lock;
        lock.hold()
            .unwrap_or_else(|error| panic!("the lock of a shared value: {error}"))
    }

    /// Returns where the valid value is, or the other one.
    #[allow(unsafe_code)]
    fn place(&self, which: u32) -> NonNull<u8> {
        let (start, _) = self.object.tail();
        // SAFETY: there is room for two values, and the number is 0 or 1.
        unsafe { start.add((which & 1) as usize * size_of::<T>()) }
    }

    #[allow(unsafe_code)]
    fn read(&self) -> T {
        let place = self.place(self.object.head().current.load(Ordering::Relaxed));
        // SAFETY: room for a T, of which any bytes are a valid value; no thread writes while the
        // lock is held, and the caller holds it.
        unsafe { place.cast::<T>().read_unaligned() }
    }

    #[allow(unsafe_code)]
    fn write(&self, value: T) {
        let next = self.object.head().current.load(Ordering::Relaxed) ^ 1;
        // SAFETY: room for a T; the lock is held by the caller.
        unsafe { self.place(next).cast::<T>().write_unaligned(value) };
        fault::point();
        // Release: the value is in memory before it counts, also for processes that are told of
        // this process's death.
        self.object.head().current.store(next, Ordering::Release);
    }

    /// Returns the value.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::SharedValue;
    /// assert_eq!(SharedValue::new(7u8)?.get(), 7);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn get(&self) -> T {
        let _lock = self.lock();
        self.read()
    }

    /// Sets the value.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::SharedValue;
    /// let value = SharedValue::new(7u8)?;
    /// value.set(8);
    /// assert_eq!(value.get(), 8);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn set(&self, value: T) {
        let _lock = self.lock();
        self.write(value);
    }

    /// Changes the value to what `change` returns for it, and returns the old value. No other
    /// access comes between. If `change` panics, or its process is killed, the value is as it was.
    ///
    /// # Panics
    ///
    /// If `change` uses this same value.
    ///
    /// # Examples
    ///
    /// ```
    /// # use manyhands::SharedValue;
    /// let value = SharedValue::new(7u8)?;
    /// assert_eq!(value.update(|old| old * 2), 7);
    /// assert_eq!(value.get(), 14);
    /// # Ok::<(), manyhands::shm::ShareError>(())
    /// ```
    pub fn update(&self, change: impl FnOnce(T) -> T) -> T {
        let _lock = self.lock();
        let old = self.read();
        self.write(change(old));
        old
    }
}

same_object!([T] SharedValue<T>, "manyhands::SharedValue::new(0)?", object);

impl<T: Pod + fmt::Debug> fmt::Debug for SharedValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedValue").field(&self.get()).finish()
    }
}

handle!(SharedValue<T> { object, value }, shape_of::<T>());
