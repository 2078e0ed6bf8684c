//! The start request: what a child is told at its start, as both sides see it.
//!
//! The greeting ([`launch`](super::launch)) says how long the start request is. With it come the
//! start request, a sealed memfd ([`sealed_bytes`]), and the child's real standard input. The start
//! request names the function, and holds what that captures and its argument, of whatever size:
//!
//! ```text
//! length of the head │ head │ captures │ argument         the first 8 bytes
//! ```

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::identity::Origin;
use crate::codec;
use crate::memory::member;
use crate::os::sealed_bytes::{self, SealedBytes};

/// Bytes of a length.
const LENGTH: usize = size_of::<u64>();

/// The part before the captures and the argument.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) origin: Origin,
    /// [`code::number`](crate::call::code::number) of the [`Entry`](super::entry::Entry).
    pub(super) entry: u64,
    /// The same of the [`Reconstruct`](crate::call::closure::Reconstruct) of a function that
    /// captures.
    pub(super) reconstruct: Option<u64>,
    /// The child's place in its family, if it is given handles of shared objects.
    pub(super) member: Option<member::Place>,
    /// Bytes of the captures. The rest is the argument.
    pub(super) captures: u64,
}

/// Packs a start request. Returns it with its length.
pub(super) fn pack(head: &Head, captures: &[u8], argument: &[u8]) -> io::Result<(OwnedFd, u64)> {
    let mut start = Vec::new();
    codec::exact::to_vec_append(&mut start, head).map_err(io::Error::other)?;
    let length = (start.len() as u64).to_ne_bytes();
    let request = sealed_bytes::pack(&[&length, &start, captures, argument])?;
    let whole = LENGTH + start.len() + captures.len() + argument.len();
    Ok((request, whole as u64))
}

/// A start request that has been received.
pub(super) struct StartRequest {
    pub(super) head: Head,
    sealed: SealedBytes,
    /// The places where the captures and the argument start.
    parts: [usize; 2],
}

impl StartRequest {
    /// Opens a start request of this length.
    pub(super) fn open(request: &OwnedFd, length: u64) -> io::Result<Self> {
        Self::read(SealedBytes::open(request, length)?)
            .ok_or_else(|| io::Error::other("the request is cut short"))
    }

    fn read(sealed: SealedBytes) -> Option<Self> {
        let (length, rest) = sealed.bytes().split_first_chunk::<LENGTH>()?;
        let length = usize::try_from(u64::from_ne_bytes(*length)).ok()?;
        let head: Head = codec::exact::from_slice(rest.get(..length)?).ok()?;
        let captures = LENGTH + length;
        let argument = captures.checked_add(usize::try_from(head.captures).ok()?)?;
        if argument > sealed.bytes().len() {
            return None;
        }
        Some(Self {
            head,
            sealed,
            parts: [captures, argument],
        })
    }

    pub(super) fn captures(&self) -> &[u8] {
        &self.sealed.bytes()[self.parts[0]..self.parts[1]]
    }

    pub(super) fn argument(&self) -> &[u8] {
        &self.sealed.bytes()[self.parts[1]..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_request_that_lies_about_its_lengths_is_refused() {
        let head = |captures| {
            let mut bytes = Vec::new();
            let head = Head {
                origin: Origin::of_worker("pool", 0),
                entry: 0,
                reconstruct: None,
                member: None,
                captures,
            };
            codec::exact::to_vec_append(&mut bytes, &head).unwrap();
            bytes
        };
        let read = |length: u64, head: &[u8], rest: &[u8]| {
            let fd = sealed_bytes::pack(&[&length.to_ne_bytes(), head, rest]).unwrap();
            let whole = (LENGTH + head.len() + rest.len()) as u64;
            StartRequest::read(SealedBytes::open(&fd, whole).unwrap())
        };
        let three = head(3);
        let len = three.len() as u64;
        let request = read(len, &three, b"abcde").unwrap();
        assert_eq!(
            (request.captures(), request.argument()),
            (&b"abc"[..], &b"de"[..])
        );
        assert!(read(len, &three, b"ab").is_none());
        assert!(read(len + 1, &three, b"").is_none());
        assert!(read(u64::MAX, &three, b"abc").is_none());
        assert!(read(len, &head(u64::MAX), b"abc").is_none());
    }
}
