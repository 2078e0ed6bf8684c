//! [`Shareable`]: what a value has to be so that processes can share it in place.

use bytemuck::Pod;

/// A value that processes can share in place, in a [`SharedValue`](crate::SharedValue), a
/// [`SharedArray`](crate::SharedArray) or a [`sync::Mutex`](crate::sync::Mutex).
///
/// All types that are [`Pod`] have the trait: [`shm`](crate::shm#which-values-can-be-shared) says
/// which those are. Generic code may ask for either trait.
///
/// # Examples
///
/// ```
/// use manyhands::shm::Shareable;
/// use manyhands::sync::Mutex;
///
/// fn replace<T: Shareable>(slot: &Mutex<T>, value: T) -> T {
///     std::mem::replace(&mut *slot.lock().unwrap(), value)
/// }
///
/// let slot = Mutex::new(7)?;
/// assert_eq!((replace(&slot, 8), *slot.lock().unwrap()), (7, 8));
/// # Ok::<(), manyhands::shm::ShareError>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "a value of type `{Self}` cannot lie in memory that processes share",
    label = "`{Self}` is not `Pod`: it may hold pointers, or not all bytes are a value of it",
    note = "`Vec`, `String`, `HashMap`, `Box` and references point to memory of one process: use a `SharedArray`, send such values through a `Queue`, or let one process keep them and answer the others",
    note = "all integers, `f32` and `f64` can be shared, arrays of them, and structs of them that derive `bytemuck::Pod` and `Zeroable`; in place of a `bool` use a `u8`, in place of a `char` a `u32`",
    note = "a generic function asks for it: `T: manyhands::shm::Shareable`"
)]
pub trait Shareable: Pod {}

#[diagnostic::do_not_recommend]
impl<T: Pod> Shareable for T {}
