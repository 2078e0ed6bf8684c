//! Which functions a pool of processes can run, and how each kind of call begins.

use std::mem::{needs_drop, size_of};

use super::chunk::{self, Given};
use super::task::{Function, SentContext};
use super::{Processes, map, submit};
use crate::call::closure::Carried;
use crate::call::portable::{Portable, PortableValue};
use crate::call::{AtErr, ChunkFuture, Limits, Never, Plan, Stop, Stream};
use crate::call::{closure, entry};
use crate::engine::reduce::{self, InLane};
use crate::engine::{Run, RunAgain, RunReduce, RunWith};
use crate::error::TaskError;
use crate::future::TaskFuture;
use crate::memory::transit;

impl<F, A, R> Run<F, A, R> for Processes
where
    F: Fn(A) -> R + Portable,
    A: PortableValue + 'static,
    R: PortableValue + 'static,
{
    fn map<S, I>(&self, plan: Plan<'_>, f: F, items: I, stop: S) -> Result<Vec<R>, TaskError>
    where
        S: Stop<R>,
        I: Iterator<Item = A>,
    {
        let function = self.function(&f)?;
        self.call(plan, function, items, stop)
    }

    fn map_outcomes<I>(&self, plan: Plan<'_>, f: F, items: I) -> Vec<Result<R, TaskError>>
    where
        I: Iterator<Item = A>,
    {
        let admission = self.shared.admit();
        match admission.and_then(|admission| Ok((admission, self.function(&f)?))) {
            Ok((_admission, function)) => map::map_outcomes(&self.shared, plan, &function, items),
            Err(error) => error.of_items(0, items),
        }
    }

    fn submit(&self, limits: Limits, f: F, argument: A) -> TaskFuture<R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        submit::submit(&self.shared, limits, self.function(&f), argument, None)
    }

    fn broadcast(&self, limits: Limits, f: F, arguments: Vec<A>) -> Vec<Result<R, TaskError>>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let function = self.function(&f);
        let give = |(worker, argument)| {
            let limits = limits.of_item(worker);
            submit::submit(
                &self.shared,
                limits,
                function.clone(),
                argument,
                Some(worker),
            )
        };
        let tasks: Vec<TaskFuture<R>> = arguments.into_iter().enumerate().map(give).collect();
        tasks.into_iter().map(TaskFuture::result).collect()
    }

    fn stream(&self, limits: Limits, f: F) -> Stream<'_, A, R>
    where
        F: Send + 'static,
        A: Send + 'static,
        R: Send + 'static,
    {
        let function = self.function(&f);
        let limits = self.shared.limits(limits);
        let give = move |base: usize, items: &mut Vec<A>| -> ChunkFuture<R> {
            let mut given = std::mem::take(items).into_iter();
            let function = match &function {
                Ok(function) => function,
                Err(error) => return TaskFuture::ready(Err(error.clone())),
            };
            let size = (given.len(), usize::MAX);
            let chunk = chunk::give(
                &self.shared,
                &limits,
                function,
                base,
                &mut given,
                size,
                None,
            )
            .0;
            // These items came after one that could not be sent: they go into another chunk.
            *items = given.collect();
            match chunk {
                Given::UnderWay(chunk) => chunk,
                Given::Outcomes(outcomes) => TaskFuture::ready(Ok(outcomes)),
            }
        };
        Stream {
            give: Box::new(give),
            workers: self.shared.workers(),
            depth: 8,
            most: usize::MAX,
        }
    }
}

impl<F, A, R> RunAgain<F, A, R> for Processes where Self: Run<F, A, R> {}

impl<F, G, A, R> RunReduce<F, G, A, R> for Processes
where
    F: Fn(A) -> R + Portable,
    G: Fn(R, R) -> R + Portable,
    A: PortableValue + 'static,
    R: PortableValue + 'static,
{
    fn map_reduce<I>(&self, plan: Plan<'_>, f: F, g: G, items: I) -> Result<Option<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        const {
            assert!(
                closure::is_portable::<F>() && size_of::<G>() == 0 && !needs_drop::<G>(),
                "the functions of map_reduce must not capture variables on a pool of processes, but for the first one by \
                 closure!([names] |item: Type| ...). Put what they need into that one or into the items"
            );
        }
        // This is one call from the first chunk to the last, though it takes several.
        let _admission = self.shared.admit()?;
        let combine = {
            let g = g.clone();
            move |partials| reduce::combine_in_worker(partials, &g)
        };
        if size_of::<F>() == 0 {
            let fold = move |chunk| reduce::fold_in_worker(chunk, &f, &g, &InLane::here());
            let fold = |plan: Plan<'_>, chunks: &mut dyn Iterator<Item = _>| {
                self.map(plan, fold, chunks, AtErr::PLAIN)
            };
            return reduce::map_reduce(self, plan, fold, combine, items, None);
        }
        // What `f` captures is sent once to each worker, as the context of the fold.
        let (bytes, handles) = transit::keep(|| closure::carry(&f));
        let context = SentContext::new(bytes?, handles, &self.shared.retired);
        let entry = entry::of_context(|f: &Carried<A, R>, chunk: reduce::Chunk<A>| {
            let g = entry::zero_sized::<G>();
            reduce::fold_in_worker(chunk, |item| f.call(item), g, &InLane::here())
        });
        let function = Function::new(entry, Some(context))?;
        let fold = |plan: Plan<'_>, chunks: &mut dyn Iterator<Item = _>| {
            self.call(plan, function, chunks, AtErr::PLAIN)
        };
        reduce::map_reduce(self, plan, fold, combine, items, None)
    }
}

impl<C, F, A, R> RunWith<C, F, A, R> for Processes
where
    F: Fn(&C, A) -> R + Portable,
    C: PortableValue + 'static,
    A: PortableValue + 'static,
    R: PortableValue + 'static,
{
    fn map_with<I>(&self, plan: Plan<'_>, context: &C, _: F, items: I) -> Result<Vec<R>, TaskError>
    where
        I: Iterator<Item = A>,
    {
        const {
            assert!(
                size_of::<F>() == 0 && !needs_drop::<F>(),
                "the function of map_with must not capture variables on a pool of processes: put them into the \
                 context, which may be a tuple"
            );
        }
        let (bytes, handles) = transit::keep(|| closure::encode_context(context));
        let context = SentContext::new(bytes?, handles, &self.shared.retired);
        let function = Function::new(entry::with_context::<C, F, A, R>, Some(context))?;
        self.call(plan, function, items, Never)
    }
}
