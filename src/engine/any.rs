//! [`AnyEngine`]: the engine that is chosen when the program runs.

use std::fmt;
use std::time::Instant;

use super::sealed::{Internal, Sealed};
use super::{
    Executor, Forked, PoolStats, Processes, Run, RunAgain, RunLent, RunReduce, RunWith, Serial,
    Shutdown, Threads, Timeline,
};
use crate::array::lend::Lent;
use crate::call::portable::{Portable, PortableValue};
use crate::call::{Limits, Plan, Stop, Stream};
use crate::error::{PoolError, TaskError};
use crate::future::{PoolId, TaskFuture};

/// Any of the engines. Which one is chosen at run time, most often by a text such as `processes:4`.
///
/// It can run what all engines can run: functions that capture nothing or are made by
/// [`closure!`](crate::closure!), on values that are `Send` and implement serde's traits. The
/// function of [`map_with`](crate::Pool::map_with) and the one by which
/// [`map_reduce`](crate::Pool::map_reduce) reduces must capture nothing, not even by `closure!`.
///
/// # Examples
///
/// ```
/// use manyhands::prelude::*;
///
/// for text in ["serial", "threads:2", "processes:2"] {
///     let pool: Pool<AnyEngine> = text.parse()?;
///     assert_eq!(pool.map(|x: u64| x * x, 0..4)?, [0, 1, 4, 9]);
/// }
/// let unknown = "fibers:3".parse::<Pool<AnyEngine>>();
/// assert!(matches!(unknown, Err(PoolError::UnknownEngine { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct AnyEngine(pub(crate) Which);

/// The engine that was chosen.
pub(crate) enum Which {
    Serial(Serial),
    Threads(Threads),
    Processes(Processes),
    Forked(Forked),
}

/// Calls the same method of the engine that this is.
macro_rules! each {
    ($any:expr, $engine:ident => $call:expr) => {
        match &$any.0 {
            $crate::engine::any::Which::Serial($engine) => $call,
            $crate::engine::any::Which::Threads($engine) => $call,
            $crate::engine::any::Which::Processes($engine) => $call,
            $crate::engine::any::Which::Forked($engine) => $call,
        }
    };
}

impl fmt::Debug for AnyEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        each!(self, engine => engine.fmt(f))
    }
}

impl Sealed for AnyEngine {}

impl Executor for AnyEngine {
    fn workers(&self) -> usize {
        each!(self, engine => engine.workers())
    }

    fn kind(&self) -> &'static str {
        each!(self, engine => engine.kind())
    }

    fn name(&self, internal: Internal) -> &str {
        each!(self, engine => engine.name(internal))
    }

    fn id(&self, internal: Internal) -> PoolId {
        each!(self, engine => engine.id(internal))
    }

    fn is_open(&self, internal: Internal) -> bool {
        each!(self, engine => engine.is_open(internal))
    }

    fn close(&self, internal: Internal) -> Result<(), PoolError> {
        each!(self, engine => engine.close(internal))
    }

    fn close_by(
        &self,
        deadline: Option<Instant>,
        internal: Internal,
    ) -> Result<Option<usize>, PoolError> {
        each!(self, engine => engine.close_by(deadline, internal))
    }

    fn shutdown(&self, how: Shutdown, internal: Internal) -> Result<(), PoolError> {
        each!(self, engine => engine.shutdown(how, internal))
    }

    fn stats(&self, internal: Internal) -> PoolStats {
        each!(self, engine => Executor::stats(engine, internal))
    }

    fn timeline(&self, internal: Internal) -> Timeline {
        each!(self, engine => Executor::timeline(engine, internal))
    }
}

impl<F, A, R> Run<F, A, R> for AnyEngine
where
    F: Fn(A) -> R + Portable + Sync,
    A: PortableValue + Send + 'static,
    R: PortableValue + Send + 'static,
{
    fn map<S, I>(&self, plan: Plan<'_>, f: F, items: I, stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>,
    {
        each!(self, engine => engine.map(plan, f, items, stop))
    }

    fn map_outcomes<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>,
    {
        each!(self, engine => engine.map_outcomes(plan, f, items))
    }

    fn submit(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        each!(self, engine => engine.submit(limits, f, argument))
    }

    fn broadcast(&self, limits: Limits, f: F, arguments: Vec<A>) -> Vec<Result<R, TaskError>>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        each!(self, engine => engine.broadcast(limits, f, arguments))
    }

    fn stream(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        each!(self, engine => engine.stream(limits, f))
    }
}

impl<F, A, R> RunAgain<F, A, R> for AnyEngine
where
    F: Fn(A) -> R + Portable + Sync,
    A: PortableValue + Clone + Send + 'static,
    R: PortableValue + Send + 'static,
{
    fn map_again<S, I>(&self, plan: Plan<'_>, f: F, items: I, stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>,
    {
        each!(self, engine => engine.map_again(plan, f, items, stop))
    }

    fn map_outcomes_again<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>,
    {
        each!(self, engine => engine.map_outcomes_again(plan, f, items))
    }

    fn submit_again(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        each!(self, engine => engine.submit_again(limits, f, argument))
    }

    fn stream_again(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Fn(A) -> R + Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        each!(self, engine => engine.stream_again(limits, f))
    }
}

impl<F, G, A, R> RunReduce<F, G, A, R> for AnyEngine
where
    F: Fn(A) -> R + Portable + Sync,
    G: Fn(R, R) -> R + Portable + Sync,
    A: PortableValue + Send + 'static,
    R: PortableValue + Send + 'static,
{
    fn map_reduce<I>(&self, plan: Plan<'_>, f: F, g: G, items: I) -> Result<Option<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        each!(self, engine => engine.map_reduce(plan, f, g, items))
    }
}

impl<C, F, A, R> RunWith<C, F, A, R> for AnyEngine
where
    F: Fn(&C, A) -> R + Portable + Sync,
    C: PortableValue + Sync + 'static,
    A: PortableValue + Send + 'static,
    R: PortableValue + Send + 'static,
{
    fn map_with<I>(&self, plan: Plan<'_>, context: &C, f: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        each!(self, engine => engine.map_with(plan, context, f, items))
    }
}

impl<L: Lent<F>, F: Portable + Sync> RunLent<L, F> for AnyEngine {
    fn lend(&self, plan: Plan<'_>, f: F, lent: L) -> Result<(), TaskError> {
        each!(self, engine => engine.lend(plan, f, lent))
    }
}
