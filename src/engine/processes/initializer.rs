//! The initialiser of workers.

use std::any::{Any, type_name};
use std::fmt::Display;
use std::os::fd::OwnedFd;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::code;
use crate::engine::worker_state;
use crate::error::{PoolError, TaskError, TaskValue};
use crate::memory::transit::{self, KeptHandles};
use crate::memory::wire;
use crate::os::fork::Original;
use crate::os::sealed_bytes::{self, SealedBytes};
use crate::panic;

/// A function that runs an initialiser in a worker, on the bytes of the value that it gets. The
/// error says why the initialiser failed.
type Entry = fn(&[u8]) -> Result<Box<dyn Any>, String>;

/// Returns the number of an initialiser, as it is sent to the workers.
pub(super) fn number<F, S, E>() -> Result<u64, PoolError>
where
    F: Fn() -> Result<S, E>,
    S: 'static,
    E: Display,
{
    let entry: Entry = enter::<F, S, E>;
    Ok(code::number(entry as usize)?)
}

/// Returns the number of an initialiser that gets a value.
pub(super) fn number_with<M, F, S, E>() -> Result<u64, PoolError>
where
    M: DeserializeOwned + 'static,
    F: Fn(M) -> Result<S, E>,
    S: 'static,
    E: Display,
{
    let entry: Entry = enter_with::<M, F, S, E>;
    Ok(code::number(entry as usize)?)
}

/// The value that an initialiser gets, encoded once for all workers.
pub(super) struct Model {
    pub(super) fd: OwnedFd,
    pub(super) len: u64,
    /// The handles of shared objects that are in it.
    _handles: KeptHandles,
}

impl Model {
    /// Encodes the value.
    ///
    /// # Errors
    ///
    /// [`PoolError::InvalidOption`] if that cannot be; [`PoolError::System`] if there is no memory
    /// for the bytes.
    pub(super) fn encode<M: Serialize + 'static>(value: &M) -> Result<Self, PoolError> {
        let mut bytes = Vec::new();
        let encode = || wire::encode(&mut bytes, value, TaskValue::Context);
        let (encoded, handles) = transit::keep(encode);
        encoded.map_err(|error| PoolError::InvalidOption {
            option: "initializer_with".into(),
            value: format!("a value of {}", type_name::<M>()),
            reason: match error {
                TaskError::Encode { reason, .. } => format!("it cannot be serialised: {reason}"),
                other => format!("it cannot be serialised: {other}"),
            }
            .into(),
        })?;
        let packed = sealed_bytes::pack(&[&bytes]);
        Ok(Self {
            fd: packed
                .map_err(|error| PoolError::system("shared memory could not be had", error))?,
            len: bytes.len() as u64,
            _handles: handles,
        })
    }
}

fn enter<F, S, E>(_: &[u8]) -> Result<Box<dyn Any>, String>
where
    F: Fn() -> Result<S, E>,
    S: 'static,
    E: Display,
{
    let f = crate::call::entry::zero_sized::<F>();
    run_caught(|| f().map_err(|error| error.to_string()))
}

fn enter_with<M, F, S, E>(mut bytes: &[u8]) -> Result<Box<dyn Any>, String>
where
    M: DeserializeOwned + 'static,
    F: Fn(M) -> Result<S, E>,
    S: 'static,
    E: Display,
{
    let f = crate::call::entry::zero_sized::<F>();
    run_caught(|| {
        let value = wire::take::<M>(&mut bytes);
        let value = value.map_err(|reason| format!("its value cannot be deserialised: {reason}"));
        f(value?).map_err(|error| error.to_string())
    })
}

fn run_caught<S: 'static>(f: impl FnOnce() -> Result<S, String>) -> Result<Box<dyn Any>, String> {
    let original = Original::here();
    let ran = panic::catch(f);
    original.end_copy_after(&ran);
    match ran {
        Ok(state) => Ok(Box::new(state?)),
        Err(caught) => Err(format!("it panicked: {caught}")),
    }
}

/// Runs, in a worker, the initialiser with this number, and keeps what it returns. `model` is the
/// value that it gets: the descriptor, and how many bytes it has.
pub(super) fn initialize(number: u64, model: Option<(OwnedFd, u64)>) -> Result<(), String> {
    let model = model.filter(|&(_, len)| len > 0);
    let model = model
        .map(|(fd, len)| SealedBytes::open(&fd, len))
        .transpose();
    let model = model.map_err(|error| format!("its value cannot be read: {error}"))?;
    let bytes = model.as_ref().map_or(&[][..], SealedBytes::bytes);
    let state = enter_entry(number, bytes)?;
    worker_state::keep(state);
    Ok(())
}

/// Runs the function with this number, which gets no value, and returns what it has made.
pub(super) fn run(number: u64) -> Result<Box<dyn Any>, String> {
    enter_entry(number, &[])
}

#[allow(unsafe_code)]
fn enter_entry(number: u64, bytes: &[u8]) -> Result<Box<dyn Any>, String> {
    // SAFETY: the number comes from the parent, which runs the same build, and which made it of an
    // `Entry`.
    let entry = unsafe { code::function::<Entry>(number) };
    entry.ok_or("the executable does not have it")?(bytes)
}
