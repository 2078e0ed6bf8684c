//! A value of any type with serde's derives → bytes, and back to an equal value.
//!
//! The bytes are CBOR (RFC 8949): a head of three bits of kind and a number, then what the number
//! announces. In other formats some kinds of serde's data model look alike. In JSON, in
//! `MessagePack` and in the CBOR of other crates, `Some(x)` is written as `x`, `None` and `()` as
//! null. There, `Some(())` and `Some(None)` come back as `None`, without an error. Here no two
//! kinds look alike:
//!
//! | serde | bytes |
//! |---|---|
//! | `false`, `true` | `f4`, `f5` |
//! | `None` | `f6` (null) |
//! | `Some(x)` | `c6` (a tag), then `x` |
//! | `()`, unit struct | `f7` (undefined) |
//! | integer | unsigned, or negative: -1 - n |
//! | `u128`, `i128` | `c2` or `c3` (a big number, a negative one), then 16 bytes, whatever it is |
//! | `f32`, `f64` | `fa`, `fb`, then its bits |
//! | `char` | `c7` (a tag), then text |
//! | string, bytes | text, bytes |
//! | seq, tuple | array; one of unknown length ends with `ff` |
//! | map, struct | map; one of unknown length ends with `ff`; fields by name |
//! | newtype struct | what is in it |
//! | unit variant | its name, as text |
//! | other variants | a map of one: its name to what is in it |
//!
//! So an `Option` cannot be mistaken for another value. `f6` is `None` and nothing else, and `c6`
//! opens a `Some` and nothing else. What follows `c6` is whole in itself: `Some(None)` is `c6 f6`.
//! This holds also within a value that serde first buffers (`flatten`, `untagged`, `tag`), because
//! the first byte alone says what kind follows.
//!
//! Variants go by name because serde's buffer takes nothing else for an enum.
//!
//! The reader takes any bytes. It answers bytes that it cannot read with an error, at bounded depth
//! ([`MAX_DEPTH`]), and does not rely on a length before as many bytes are there.

mod de;
mod ser;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// How deep containers, options and newtypes may lie in each other, for the writer as for the
/// reader: what can be written can be read. A deeper value is an error, so that neither a chain of
/// boxes nor garbage overflows the stack. In a build without optimization, the reader took up to 3
/// KiB of stack per level (in the tests' types; 0.5 KiB in an optimized one), and threads have 2
/// MiB.
const MAX_DEPTH: u16 = 512;

/// How the bytes of an `Err` begin, and those of no other value: a map of one, from the text `Err`.
/// (Of a map that a program made itself the same may be said. Only results of which the type is
/// known to be a `Result` are looked at.)
const ERR: [u8; 5] = [kind::MAP << 5 | 1, kind::TEXT << 5 | 3, b'E', b'r', b'r'];

/// Returns whether these are the bytes of an `Err`. They must be those of a `Result`.
pub(crate) fn is_err(bytes: &[u8]) -> bool {
    bytes.starts_with(&ERR)
}

/// The kinds of CBOR, the upper three bits of a head.
mod kind {
    pub(super) const UNSIGNED: u8 = 0;
    pub(super) const NEGATIVE: u8 = 1;
    pub(super) const BYTES: u8 = 2;
    pub(super) const TEXT: u8 = 3;
    pub(super) const ARRAY: u8 = 4;
    pub(super) const MAP: u8 = 5;
    pub(super) const TAG: u8 = 6;
    pub(super) const SIMPLE: u8 = 7;
}

/// The heads that are the same for each value of their sort. Tags up to 5 and above 15 belong to
/// the standard.
mod head {
    pub(super) const BIG: u8 = 0xc2;
    pub(super) const BIG_NEGATIVE: u8 = 0xc3;
    pub(super) const SOME: u8 = 0xc6;
    pub(super) const CHAR: u8 = 0xc7;
    pub(super) const FALSE: u8 = 0xf4;
    pub(super) const TRUE: u8 = 0xf5;
    pub(super) const NONE: u8 = 0xf6;
    pub(super) const UNIT: u8 = 0xf7;
    pub(super) const F32: u8 = 0xfa;
    pub(super) const F64: u8 = 0xfb;
    /// Ends an array or map of unknown length.
    pub(super) const BREAK: u8 = 0xff;
}

/// The lower five bits of a head whose array or map ends with a break.
const UNKNOWN_LENGTH: u8 = 0x1f;

/// Appends a value.
///
/// # Errors
///
/// What the value's `Serialize` said, or that it lies too deep; then `out` may have got a part of
/// it.
pub(crate) fn to_vec_append<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    value: &T,
) -> Result<(), String> {
    value
        .serialize(&mut ser::Writer::new(out))
        .map_err(|error| error.0)
}

/// Reads the value that all of the bytes are.
///
/// # Errors
///
/// What the type's `Deserialize` said, or what is wrong with the bytes.
pub(crate) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut reader = de::Reader::new(bytes);
    T::deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|error| error.0)
}

/// Why a value could not be written or read. The caller adds which item it is.
#[derive(Debug)]
struct Error(String);

impl Error {
    fn too_deep() -> Self {
        Self(format!(
            "the value has more than {MAX_DEPTH} levels of values in values"
        ))
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl serde::ser::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl serde::de::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}
