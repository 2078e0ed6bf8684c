//! [`closure!`](crate::closure!): a function that takes values along into another process.
//!
//! A closure is opaque: no code can look into it, so its captures cannot be sent. Therefore the
//! macro makes a closure whose captures this module knows: a single [`Bound`] value. `Pool::map`
//! asks for a plain `Fn`, so that the compiler infers the argument's type. What it gets is an `F`
//! that it knows nothing about. Two things tell an engine that it is a closure of this macro:
//!
//! - at compile time, its alignment. A `Bound` is aligned to 512 bytes, which no closure that a
//!   program writes by hand is; the process engine refuses to compile any other closure that
//!   captures.
//! - at run time, its type id, which [`bind`] has put into a table together with the way to encode
//!   the context.
//!
//! What was tried: a type of this crate in place of a closure. It cannot implement `Fn` on stable
//! Rust, and a bound other than `Fn` costs the inference of argument types in every plain call
//! (`docs/design/0003-functions.md`).
//!
//! Unsafe code is allowed here, to find the `Bound` in the closure that is made of nothing else.
#![allow(unsafe_code)]

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::marker::PhantomData;
use std::mem::{MaybeUninit, align_of, needs_drop, size_of, transmute};
use std::sync::Arc;

use bytemuck::Pod;
use parking_lot::RwLock;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};

use super::code;
use super::entry;
use super::portable::{PortableArgument, PortableValue};
use crate::array::TileMut;
use crate::array::lend::{Lent, LentChunks, LentPairs, LentTiles};
use crate::error::{PoolError, TaskError, TaskValue};
use crate::memory::wire;

/// Makes a function that takes variables along into the worker processes.
///
/// Its form is `closure!([names] |argument: Type| body)`. The named variables are cloned,
/// serialised once for each call, and sent once to each worker. In the body each name is a
/// reference to its value. The body may use nothing else from around it. The result is a plain
/// `Fn`, so it runs on every engine. Argument, result and the variables implement serde's
/// `Serialize` and `DeserializeOwned`.
///
/// # Chunks and tiles
///
/// A function for [`Pool::for_each_chunk`](crate::Pool::for_each_chunk),
/// [`Pool::for_each_chunk_pair`](crate::Pool::for_each_chunk_pair) or
/// [`Pool::for_each_tile`](crate::Pool::for_each_tile) has borrowed arguments, whose types must be
/// written in exactly these forms:
///
/// - `closure!([names] |index: usize, chunk: &mut [T]| ..)`
/// - `closure!([names] |index: usize, out: &mut [T], input: &[U]| ..)`
/// - `closure!([names] |mut tile: TileMut<'_, T>| ..)`, also without the `mut`
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// let pool = Pool::processes(2)?;
/// let table = vec![1.0, 4.0, 9.0];
/// let scale = 2.0;
/// let scaled = pool.map(closure!([table, scale] |i: usize| table[i] * scale), 0..3usize)?;
/// assert_eq!(scaled, [2.0, 8.0, 18.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// With chunks and tiles. The name `TileMut` needs no import here.
///
/// ```
/// use manyhands::prelude::*;
/// use manyhands::SharedArray;
///
/// let pool = Pool::processes(2)?;
/// let (input, scale) = (SharedArray::from_slice(&[1.0, 4.0, 9.0])?, 2.0);
/// let mut out = SharedArray::<f64>::zeros(3)?;
/// let fill = closure!([scale] |_: usize, chunk: &mut [f64]| chunk.fill(*scale));
/// pool.for_each_chunk(&mut out, 2, fill)?;
/// let add = closure!([scale] |_: usize, out: &mut [f64], x: &[f64]| out[0] += scale * x[0]);
/// pool.for_each_chunk_pair(&mut out, 1, &input, 1, add)?;
/// assert_eq!(out.to_vec()?, [4.0, 10.0, 20.0]);
/// let clear = closure!([scale] |mut tile: TileMut<'_, f64>| tile[(0, 0)] = *scale);
/// pool.for_each_tile(&mut out, (1, 3), (1, 2), clear)?;
/// assert_eq!(out.to_vec()?, [2.0, 10.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[macro_export]
macro_rules! closure {
    // What a closure of the language may have and this one may not.
    (move $($rest:tt)*) => {
        $crate::closure!(@list)
    };
    (| $($rest:tt)*) => {
        $crate::closure!(@list)
    };
    (|| $($rest:tt)*) => {
        $crate::closure!(@list)
    };
    (@list) => {
        ::core::compile_error!(
            "closure! begins with the variables that it takes along, of which it clones the values: \
             closure!([names] |argument: Type| ..). A function that uses no variables from around it needs no closure!"
        )
    };
    ([self $($names:tt)*] $($rest:tt)*) => {
        $crate::closure!(@names)
    };
    ([$($names:tt)*] move $($rest:tt)*) => {
        ::core::compile_error!(
            "closure! clones the variables in its list, and moves none: leave out the `move`, as in closure!([names] |argument: Type| ..)"
        )
    };
    ([$($names:tt)*] || $($rest:tt)*) => {
        ::core::compile_error!(
            "the function of closure! has one argument, which may be of no size: closure!([names] |(): ()| ..)"
        )
    };
    (@names) => {
        ::core::compile_error!(
            "the list of closure! has names of variables, and nothing else: give the value a name first, as in \
             `let k = self.k.clone();` and then closure!([k] |argument: Type| ..)"
        )
    };
    // For calls that lend an array, whose arguments are borrowed: their types must be written out.
    (
        [$($name:ident),* $(,)?]
        | $index:tt : $number:ty , $chunk:tt : &mut [$of:ty] $(,)? | $body:expr
    ) => {
        $crate::__private::bind_chunks(
            ($(::core::clone::Clone::clone(&$name),)*),
            |($($name,)*), $index: $number, $chunk: &mut [$of]| $body,
        )
    };
    (
        [$($name:ident),* $(,)?]
        | $index:tt : $number:ty , $out:tt : &mut [$of:ty] , $input:tt : &[$from:ty] $(,)? | $body:expr
    ) => {
        $crate::__private::bind_pairs(
            ($(::core::clone::Clone::clone(&$name),)*),
            |($($name,)*), $index: $number, $out: &mut [$of], $input: &[$from]| $body,
        )
    };
    ([$($name:ident),* $(,)?] | mut $tile:ident : TileMut<'_, $of:ty> $(,)? | $body:expr) => {
        $crate::__private::bind_tiles(
            ($(::core::clone::Clone::clone(&$name),)*),
            |($($name,)*), mut $tile: $crate::shm::TileMut<'_, $of>| $body,
        )
    };
    ([$($name:ident),* $(,)?] | $tile:tt : TileMut<'_, $of:ty> $(,)? | $body:expr) => {
        $crate::__private::bind_tiles(
            ($(::core::clone::Clone::clone(&$name),)*),
            |($($name,)*), $tile: $crate::shm::TileMut<'_, $of>| $body,
        )
    };
    // One argument, with a comma after it.
    ([$($name:ident),* $(,)?] | $argument:tt , | $($body:tt)*) => {
        $crate::closure!([$($name),*] | $argument | $($body)*)
    };
    ([$($name:ident),* $(,)?] | $argument:tt : $type:ty , | $($body:tt)*) => {
        $crate::closure!([$($name),*] | $argument : $type | $($body)*)
    };
    // Several arguments that have none of the forms above.
    ([$($name:ident),* $(,)?] | $first:tt , $($rest:tt)*) => {
        $crate::closure!(@types)
    };
    ([$($name:ident),* $(,)?] | $first:tt : $type:ty , $($rest:tt)*) => {
        $crate::closure!(@types)
    };
    (@types) => {
        ::core::compile_error!(
            "the function of closure! has one argument; several values are a tuple: closure!([names] |(a, b): (A, B)| ..). \
             Only a function for parts of an array has more, and their types must be written out: \
             for for_each_chunk, closure!([names] |index: usize, chunk: &mut [T]| ..), or, for for_each_chunk_pair, closure!([names] |index: usize, out: &mut [T], input: &[U]| ..), \
             or, for for_each_tile, closure!([names] |mut tile: TileMut<'_, T>| ..)"
        )
    };
    // The tokens after the first bar, argument and body, become the rest of a closure of two
    // arguments.
    ([$($name:ident),* $(,)?] | $($argument_and_body:tt)*) => {
        $crate::__private::bind(
            ($(::core::clone::Clone::clone(&$name),)*),
            |($($name,)*), $($argument_and_body)*,
        )
    };
    // A list with more than names in it.
    ([$($names:tt)*] | $($rest:tt)*) => {
        $crate::closure!(@names)
    };
    ($($rest:tt)*) => {
        $crate::closure!(@list)
    };
}

/// Alignment of a [`Bound`], by which it is recognised at compile time.
pub(crate) const BOUND_ALIGN: usize = 512;

/// The only value that a closure made by [`bind`] holds.
#[repr(align(512))]
struct Bound<C> {
    context: Arc<C>,
}

impl<C> Bound<C> {
    fn new(context: C) -> Self {
        let context = Arc::new(context);
        Self { context }
    }
}

impl<C> Clone for Bound<C> {
    fn clone(&self) -> Self {
        Self {
            context: self.context.clone(),
        }
    }
}

/// How a closure made by [`bind`] is sent: the encoding of its context, and the function that runs
/// it in the worker.
pub(crate) struct Sendable {
    pub(crate) context: Vec<u8>,
    pub(crate) entry: entry::Entry,
    pub(crate) reconstruct: Reconstruct,
}

/// Reconstructs a closure, at the address given, from the encoding of its context: see
/// [`reconstruct`].
pub(crate) type Reconstruct = unsafe fn(*mut (), &[u8]) -> Result<(), String>;

/// The table's entry for a closure type. `encode` takes the address of such a closure.
#[derive(Clone, Copy)]
struct Known {
    encode: unsafe fn(*const ()) -> Result<Vec<u8>, TaskError>,
    entry: entry::Entry,
    reconstruct: Reconstruct,
    carry: Option<Carry>,
}

/// How a [`Carried`] is made of such a closure in another process.
#[derive(Clone, Copy)]
struct Carry {
    decode: Decode,
    /// The address of a function that takes the context and an argument of the closure:
    /// `fn(&dyn Any, A) -> R`.
    call: usize,
}

/// Decodes a context.
type Decode = fn(&[u8]) -> Result<Box<dyn Any>, String>;

/// Fails to compile if the body of a `closure!` captures.
const fn assert_names_all<G>() {
    assert!(
        size_of::<G>() == 0,
        "the body of closure! uses a variable that is not in its list: name it there, \
         as in closure!([table, scale] |i: usize| table[i] * scale)"
    );
}

static TABLE: RwLock<Option<HashMap<TypeId, Known>>> = RwLock::new(None);

/// Makes the closure that [`closure!`](crate::closure!) expands to.
#[doc(hidden)]
pub fn bind<C, A, R, G>(context: C, code: G) -> impl Fn(A) -> R + Clone + Send + Sync
where
    C: PortableValue + Send + Sync + 'static,
    A: PortableArgument + 'static,
    R: Serialize + 'static,
    G: Fn(&C, A) -> R + Copy + Send + Sync,
{
    const { assert_names_all::<G>() };
    let bound = Bound::new(context);
    let closure = move |argument: A| {
        // Names the whole of `bound`, so that the closure holds it and not just the Arc in it.
        let bound: &Bound<C> = &bound;
        code(&bound.context, argument)
    };
    let call = call_bound::<C, A, R, G> as fn(&dyn Any, A) -> R;
    let carry = Carry {
        decode: decode_bound::<C>,
        call: call as usize,
    };
    remember::<_, C>(&closure, entry::with_context::<C, G, A, R>, Some(carry));
    closure
}

/// Defines a function that binds the context to code for one kind of what an array lends.
macro_rules! bind_lent {
    (
        $(#[$doc:meta])*
        $name:ident, $lent:ident<$($of:ident),+>, |$($argument:ident: $type:ty),+|
    ) => {
        $(#[$doc])*
        #[doc(hidden)]
        pub fn $name<C, $($of,)+ G>(
            context: C,
            code: G,
        ) -> impl Fn($($type),+) + Clone + Send + Sync
        where
            C: PortableValue + Send + Sync + 'static,
            $($of: Pod,)+
            G: Fn(&C, $($type),+) + Copy + Send + Sync,
        {
            const { assert_names_all::<G>() };
            let bound = Bound::new(context);
            let closure = move |$($argument: $type),+| {
                let bound: &Bound<C> = &bound;
                code(&bound.context, $($argument),+);
            };
            let entry = entry::lent(move |context: &C, lent: &_, index| {
                let f = |$($argument: $type),+| code(context, $($argument),+);
                <$lent<$($of),+> as Lent<_>>::run(lent, &f, index);
            });
            remember::<_, C>(&closure, entry, None);
            closure
        }
    };
}

bind_lent! {
    /// Makes the closure that [`closure!`](crate::closure!) expands to for
    /// [`Pool::for_each_chunk`](crate::Pool::for_each_chunk).
    bind_chunks, LentChunks<T>, |index: usize, chunk: &mut [T]|
}

bind_lent! {
    /// Makes the closure that [`closure!`](crate::closure!) expands to for
    /// [`Pool::for_each_chunk_pair`](crate::Pool::for_each_chunk_pair).
    bind_pairs, LentPairs<T, U>, |index: usize, out: &mut [T], input: &[U]|
}

bind_lent! {
    /// Makes the closure that [`closure!`](crate::closure!) expands to for
    /// [`Pool::for_each_tile`](crate::Pool::for_each_tile).
    bind_tiles, LentTiles<T>, |tile: TileMut<'_, T>|
}

fn remember<K, C>(_: &K, entry: entry::Entry, carry: Option<Carry>)
where
    C: Serialize + DeserializeOwned + 'static,
{
    const {
        assert!(
            size_of::<K>() == size_of::<Bound<C>>(),
            "the closure holds a Bound and nothing else"
        );
    }
    let id = type_id::<K>();
    if TABLE
        .read()
        .as_ref()
        .is_some_and(|table| table.contains_key(&id))
    {
        return;
    }
    let known = Known {
        encode: encode::<C>,
        entry,
        reconstruct: reconstruct_bound::<C>,
        carry,
    };
    TABLE.write().get_or_insert_default().insert(id, known);
}

/// # Safety
///
/// `closure` is the address of a closure that [`bind`] made with a context of type `C`.
unsafe fn encode<C: Serialize + 'static>(closure: *const ()) -> Result<Vec<u8>, TaskError> {
    // SAFETY: such a closure has the size of the Bound<C> that it holds (asserted in `remember`),
    // so that lies at its start; it is live by the caller's promise.
    let bound = unsafe { &*closure.cast::<Bound<C>>() };
    encode_context(&*bound.context)
}

/// Encodes a context. If its `Serialize` panics, the panic is the caller's error, like any other
/// failure of it.
pub(crate) fn encode_context<C: Serialize + 'static>(context: &C) -> Result<Vec<u8>, TaskError> {
    let mut bytes = Vec::new();
    wire::encode(&mut bytes, context, TaskValue::Context)?;
    Ok(bytes)
}

/// Looks up the type of `f`, and encodes the context.
fn known<F>(f: &F) -> Result<(Known, Vec<u8>), TaskError> {
    let known = TABLE
        .read()
        .as_ref()
        .and_then(|table| table.get(&type_id::<F>()).copied());
    let known = known.ok_or_else(|| TaskError::InvalidCall {
        reason: "the function captures variables, in some other way than closure! does it".into(),
    })?;
    // SAFETY: the type of `f` is one that `bind` put into the table together with this function.
    let context = unsafe { (known.encode)(std::ptr::from_ref(f).cast()) }?;
    Ok((known, context))
}

/// Returns how to send `f`.
///
/// # Errors
///
/// If `closure!` did not make it, or what the context's `Serialize` said.
pub(crate) fn sendable<F>(f: &F) -> Result<Sendable, TaskError> {
    let (known, context) = known(f)?;
    Ok(Sendable {
        context,
        entry: known.entry,
        reconstruct: known.reconstruct,
    })
}

/// A function made by [`closure!`](crate::closure!), in a process to which it was sent as a part of
/// another function's context: see [`carry`].
pub(crate) struct Carried<A, R> {
    context: Box<dyn Any>,
    call: fn(&dyn Any, A) -> R,
}

impl<A, R> Carried<A, R> {
    pub(crate) fn call(&self, argument: A) -> R {
        (self.call)(&*self.context, argument)
    }
}

/// A [`Carried`] as it is sent: the numbers of the functions that make and call it, and the context
/// that those know the type of.
#[derive(Serialize, Deserialize)]
struct SentCarried {
    decode: u64,
    call: u64,
    context: Vec<u8>,
}

/// Encodes `f` as a [`Carried`] of the same argument and result.
///
/// # Errors
///
/// If `closure!` did not make it, or what the context's `Serialize` said.
pub(crate) fn carry<F, A, R>(f: &F) -> Result<Vec<u8>, TaskError>
where
    F: Fn(A) -> R,
{
    let (known, context) = known(f)?;
    let carry = known.carry.ok_or_else(|| TaskError::InvalidCall {
        reason: "the function is one for parts of an array".into(),
    })?;
    encode_context(&SentCarried {
        decode: code::number(carry.decode as usize).map_err(PoolError::from)?,
        call: code::number(carry.call).map_err(PoolError::from)?,
        context,
    })
}

impl<'de, A: 'static, R: 'static> Deserialize<'de> for Carried<A, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let sent = SentCarried::deserialize(deserializer)?;
        let missing = || D::Error::custom("the executable does not have its function");
        // SAFETY: the number comes from the parent, which runs the same build by the fingerprint in
        // its greeting, and which makes it of a `Decode`.
        let decode = unsafe { code::function::<Decode>(sent.decode) }.ok_or_else(missing)?;
        // SAFETY: likewise. It is the number of a function of this type: the parent has it from the
        // table, for a closure that takes an A and returns an R, and `bind` has put it there for
        // the argument and the result of that closure.
        let call = unsafe { code::function::<fn(&dyn Any, A) -> R>(sent.call) };
        let call = call.ok_or_else(missing)?;
        let context = decode(&sent.context).map_err(D::Error::custom)?;
        Ok(Self { context, call })
    }
}

fn decode_bound<C: DeserializeOwned + 'static>(mut bytes: &[u8]) -> Result<Box<dyn Any>, String> {
    Ok(Box::new(wire::take::<C>(&mut bytes)?))
}

/// Calls the code of a closure with its context, which [`decode_bound`] has made.
fn call_bound<C: 'static, A, R, G: Fn(&C, A) -> R>(context: &dyn Any, argument: A) -> R {
    let context = context.downcast_ref::<C>();
    let context = context.expect("the functions that decode and call go together");
    entry::zero_sized::<G>()(context, argument)
}

/// Reconstructs the closure of type `F` in another process, from what [`sendable`] returned for it.
///
/// # Safety
///
/// `reconstruct` and `context` must come from [`sendable`] for a closure of type `F`, in a process
/// of this build.
pub(crate) unsafe fn reconstruct<F>(reconstruct: Reconstruct, context: &[u8]) -> Result<F, String> {
    let mut place = MaybeUninit::<F>::uninit();
    // SAFETY: by the caller's promise, `F` is made of a `Bound<C>` alone, for the `C` of this
    // `reconstruct`: it has its size (asserted in `remember`) and alignment.
    unsafe { reconstruct(place.as_mut_ptr().cast(), context) }?;
    // SAFETY: the line above has written the value.
    Ok(unsafe { place.assume_init() })
}

/// # Safety
///
/// `place` has room for a `Bound<C>`, and is aligned for it.
unsafe fn reconstruct_bound<C: DeserializeOwned + 'static>(
    place: *mut (),
    mut context: &[u8],
) -> Result<(), String> {
    let context = Arc::new(wire::take::<C>(&mut context)?);
    // SAFETY: the caller's promise.
    unsafe { place.cast::<Bound<C>>().write(Bound { context }) };
    Ok(())
}

/// Returns whether an engine of processes can send functions of this type: they capture nothing, or
/// `closure!` made them. A few closures that are aligned like those of `closure!` may turn out to
/// be others.
pub(crate) const fn is_portable<F>() -> bool {
    (size_of::<F>() == 0 && !needs_drop::<F>()) || align_of::<F>() == BOUND_ALIGN
}

/// Returns the type id of `T`, with all its lifetimes replaced by `'static`.
///
/// Types that differ in lifetimes alone have one id. That is enough here: the table's entry for a
/// closure type depends on the type of its context alone, which is `'static`.
fn type_id<T>() -> TypeId {
    trait Named {
        fn id(&self) -> TypeId
        where
            Self: 'static;
    }
    impl<T: ?Sized> Named for PhantomData<T> {
        fn id(&self) -> TypeId
        where
            Self: 'static,
        {
            TypeId::of::<T>()
        }
    }
    let marker = PhantomData::<T>;
    let named: &dyn Named = &marker;
    // SAFETY: only the lifetime bound of the trait object changes; `id` reads nothing through it,
    // so nothing borrowed is used after its time.
    let named = unsafe { transmute::<&dyn Named, &(dyn Named + 'static)>(named) };
    named.id()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closure_that_binds_is_a_plain_function_too() {
        let (table, scale) = (vec![1.0, 4.0], 2.0_f64);
        let f = closure!([table, scale] |i: usize| table[i] * scale);
        assert!((f(1) - 8.0).abs() < f64::EPSILON);
        assert!((f.clone()(0) - 2.0).abs() < f64::EPSILON);
        assert_eq!(align_of_val(&f), BOUND_ALIGN);
    }

    #[test]
    fn one_argument_may_have_a_comma_behind_it_and_a_chunk_need_not_be_named() {
        let scale = 2;
        let typed = closure!([scale] |x: i32,| x * scale);
        let plain = closure!([scale] |x,| -> i32 { let x: i32 = x; x * scale });
        assert_eq!((typed(2), plain(3)), (4, 6));
        let pair = closure!([scale] |(x, y): (i32, i32)| (x + y) * scale);
        assert_eq!(pair((1, 2)), 6);
        let chunk = closure!([scale] |_: usize, chunk: &mut [i32]| chunk.fill(*scale));
        let mut array = [0; 2];
        chunk(0, &mut array);
        assert_eq!(array, [2, 2]);
    }

    #[test]
    fn each_closure_keeps_its_own_context() {
        let adders: Vec<_> = (0..3u64).map(|k| closure!([k] |x: u64| x + k)).collect();
        let contexts: Vec<_> = adders
            .iter()
            .map(|f| sendable(f).unwrap().context)
            .collect();
        assert_eq!(
            adders.iter().map(|f| f(10)).collect::<Vec<_>>(),
            [10, 11, 12]
        );
        assert_ne!(contexts[0], contexts[1]);
    }

    #[test]
    fn a_closure_is_revived_from_what_was_sent() {
        fn like<F: Fn(usize) -> String>(f: &F, revived: Reconstruct, context: &[u8]) -> F {
            let _ = f;
            // SAFETY: number and context come from `sendable(f)`, below.
            unsafe { reconstruct(revived, context) }.unwrap()
        }
        let words = vec!["one".to_owned(), "two".to_owned()];
        let f = closure!([words] |i: usize| words[i].clone());
        let sent = sendable(&f).unwrap();
        let again = like(&f, sent.reconstruct, &sent.context);
        drop(f);
        assert_eq!(again(1), "two");
        // SAFETY: as above; a context that does not decode makes no closure.
        assert!(unsafe { reconstruct::<Bound<Vec<String>>>(sent.reconstruct, &[1]) }.is_err());
    }

    #[test]
    fn other_closures_are_not_sendable() {
        let text = String::from("borrowed");
        assert!(sendable(&|x: u8| x).is_err());
        assert!(sendable(&|x: usize| text.len() + x).is_err());
    }
}
