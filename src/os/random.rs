//! Random numbers from the kernel, which no fork duplicates.

use std::hash::{BuildHasher, RandomState};

/// Returns a number that the caller cannot predict, and that no copy of this process gets too.
pub(crate) fn word() -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the kernel writes at most as many bytes as the array has.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len().cast_signed() {
        return u64::from_ne_bytes(bytes);
    }
    // A sandbox forbids the call. The keys of std's hash maps come from elsewhere then; a forked
    // child has copies of them.
    RandomState::new().hash_one((std::process::id(), super::clock::now()))
}

#[cfg(test)]
mod tests {
    use super::word;

    #[test]
    fn words_differ() {
        assert_ne!(word(), word());
    }
}
