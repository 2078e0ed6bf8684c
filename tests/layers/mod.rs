//! The judge of layers, in parts: [`tree`] reads files as modules, [`paths`] and [`tokens`] find
//! what they mention, [`names`] finds where that is defined, [`graph`] makes arrows of it, and
//! [`verdict`] holds them against the [`floors`] and the [`list`] of exceptions.

mod cfg;
mod circles;
mod floors;
mod graph;
mod imports;
mod list;
mod made_up;
mod names;
mod paths;
mod tokens;
mod tree;
mod verdict;

pub(crate) use floors::FLOORS;
pub(crate) use graph::graph;
pub(crate) use list::{List, shrunk};
pub(crate) use verdict::{Verdict, judge};
