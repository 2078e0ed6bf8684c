//! [`Mark`]: what a child and its descendants are known by.

use std::fmt;

/// The variable that has the marks of a process: its own, and before it those of the processes that
/// it descends from.
pub(crate) const VARIABLE: &str = "MANYHANDS_TREE";

/// How the name of the mapping of a forked child begins.
pub(super) const MAPPING: &str = "tree-of-manyhands:";

/// What a child and its descendants are known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// A random number of the process that started the child.
    pub(super) program: u64,
    /// The child's number. It is odd if the child was forked.
    pub(super) number: u64,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.program, self.number)
    }
}

impl Mark {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (program, number) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self {
            program: u64::from_str_radix(program, 16).ok()?,
            number: number.parse().ok()?,
        })
    }

    /// Returns the last mark of the value of a variable.
    pub(super) fn last(chain: &[u8]) -> Option<Self> {
        Self::parse(chain.rsplit(|&byte| byte == b',').next()?)
    }
}

/// A child whose descendants are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The child's number, as its mark has it.
    pub(crate) number: u64,
    /// When the child's mark was made, in the clock ticks in which `/proc` says when a process was
    /// started. A process that was started before has the mark from elsewhere.
    pub(crate) since: u64,
}
