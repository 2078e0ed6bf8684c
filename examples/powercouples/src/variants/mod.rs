//! The loop over all couples, in five variants of the same shape.
//!
//! Each has one function, `run`: it takes all couples, runs the loop, tells the bar how far it is,
//! and returns one power for each couple, in order. All but `pure` can fail, and say why.
//!
//! | variant | runs on | computes with |
//! |---|---|---|
//! | [`pure`] | the caller | Rust |
//! | [`c_function`] | the caller | C |
//! | [`threads`] | a pool of threads | Rust |
//! | [`processes`] | a pool of processes | Rust |
//! | [`forked`] | children forked for the loop | Rust |

mod c_function;
mod forked;
mod processes;
mod pure;
mod threads;

use std::fmt;

use clap::ValueEnum;
use manyhands::prelude::*;

use crate::couple::{Couple, Power};
use crate::kernel::KernelError;
use crate::progress::Bar;

/// One way to run the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Variant {
    /// One couple after the other, in Rust
    Pure,
    /// One couple after the other, in C
    CFunction,
    /// On threads of this process
    Threads,
    /// On worker processes
    Processes,
    /// On children forked for this one loop
    Forked,
}

impl Variant {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pure => "pure",
            Self::CFunction => "c-function",
            Self::Threads => "threads",
            Self::Processes => "processes",
            Self::Forked => "forked",
        }
    }

    /// How many of the workers it has use for.
    pub(crate) fn workers(self, workers: usize) -> usize {
        match self {
            Self::Pure | Self::CFunction => 1,
            Self::Threads | Self::Processes | Self::Forked => workers,
        }
    }

    /// Runs the loop.
    pub(crate) fn run(
        self,
        couples: &[Couple],
        options: Options,
        bar: &mut Bar,
    ) -> Result<Vec<Power>, Failure> {
        match self {
            Self::Pure => Ok(pure::run(couples, bar)),
            Self::CFunction => c_function::run(couples, bar),
            Self::Threads => threads::run(couples, options, bar),
            Self::Processes => processes::run(couples, options, bar),
            Self::Forked => forked::run(couples, options, bar),
        }
    }
}

/// What the variants with a pool need to know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// How many threads, processes or children.
    pub(crate) workers: usize,
    /// How the couples are shared out among them.
    pub(crate) schedule: Schedule,
}

/// Why a loop did not end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The pool could not be made or closed.
    Pool(PoolError),
    /// A task of the pool failed; the couple is that of its index, if it has one.
    Task(Option<Couple>, TaskError),
    /// The C function returned no result for this couple.
    Kernel(Couple, KernelError),
}

impl Failure {
    /// The failure of a `map` over all couples.
    fn of_task(error: TaskError, couples: &[Couple]) -> Self {
        let couple = error.index().and_then(|index| couples.get(index));
        Self::Task(couple.copied(), error)
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        Self::Pool(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(error) => write!(f, "{error}"),
            Self::Task(Some(couple), error) => write!(f, "couple {couple}: {error}"),
            Self::Task(None, error) => write!(f, "{error}"),
            Self::Kernel(couple, error) => write!(f, "couple {couple}: {error}"),
        }
    }
}
