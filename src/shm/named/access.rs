//! Copies out of and into memory that others change meanwhile.
//!
//! A slice would promise the compiler that the bytes stay as they are, which another process need not keep to. So each
//! byte is loaded or stored as an atomic, relaxed: the compiler assumes nothing of what it finds, and copies it once.
//! Where eight bytes lie in one aligned word they go as one `u64`, which is several times as fast.
//!
//! What remains outside Rust's memory model: accesses of different width to the same bytes at the same time, and what
//! other processes do that are not written in Rust. To the hardware and to LLVM both are plain: each byte is an old or
//! a new one. That, and no more, is what is promised.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const WORD: usize = size_of::<u64>();

/// The bytes, as words where they can be, and what lies before and after.
fn split(bytes: &[AtomicU8]) -> (&[AtomicU8], &[AtomicU64], &[AtomicU8]) {
    // SAFETY: eight atomic bytes are as good as one atomic word: all bytes are valid in both, and both may be changed
    // while they are borrowed.
    unsafe { bytes.align_to() }
}

/// Copies out. Both are of the same length.
pub(super) fn load(from: &[AtomicU8], to: &mut [u8]) {
    let (first, words, last) = split(from);
    let (to_first, to) = to.split_at_mut(first.len());
    let (to_words, to_last) = to.split_at_mut(words.len() * WORD);
    load_bytes(first, to_first);
    for (from, to) in words.iter().zip(to_words.as_chunks_mut().0) {
        *to = from.load(Ordering::Relaxed).to_ne_bytes();
    }
    load_bytes(last, to_last);
}

fn load_bytes(from: &[AtomicU8], to: &mut [u8]) {
    for (from, to) in from.iter().zip(to) {
        *to = from.load(Ordering::Relaxed);
    }
}

/// Copies in. Both are of the same length.
pub(super) fn store(to: &[AtomicU8], from: &[u8]) {
    let (first, words, last) = split(to);
    let (from_first, from) = from.split_at(first.len());
    let (from_words, from_last) = from.split_at(words.len() * WORD);
    store_bytes(first, from_first);
    for (to, from) in words.iter().zip(from_words.as_chunks().0) {
        to.store(u64::from_ne_bytes(*from), Ordering::Relaxed);
    }
    store_bytes(last, from_last);
}

fn store_bytes(to: &[AtomicU8], from: &[u8]) {
    for (to, from) in to.iter().zip(from) {
        to.store(*from, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every start and length around words, and nothing beside them is touched.
    #[test]
    fn every_byte_goes_where_it_belongs() {
        const SIZE: usize = 40;
        for start in 0..SIZE {
            for end in start..=SIZE {
                let memory: [AtomicU64; SIZE / WORD] =
                    std::array::from_fn(|_| AtomicU64::new(u64::MAX));
                // SAFETY: as in `split`, the other way round.
                let (_, bytes, _) = unsafe { memory.align_to::<AtomicU8>() };
                let written: Vec<u8> = (0..end - start).map(|i| i as u8).collect();
                store(&bytes[start..end], &written);
                let mut read = vec![0xee; end - start];
                load(&bytes[start..end], &mut read);
                assert_eq!(read, written);
                for (at, byte) in bytes.iter().enumerate() {
                    let expected = if (start..end).contains(&at) {
                        (at - start) as u8
                    } else {
                        u8::MAX
                    };
                    assert_eq!(byte.load(Ordering::Relaxed), expected);
                }
            }
        }
    }
}
