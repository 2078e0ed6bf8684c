//! [`at_fork_child`]: registers what runs in each child that this crate forks, before any code of a
//! task.

use std::mem::{needs_drop, size_of};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::code;
use crate::os::fork::Original;
use crate::panic::{self, Caught};

struct Node {
    hook: Box<dyn Fn() + Send + Sync>,
    /// The number of a hook that captures nothing, by which a fork server reconstructs it.
    code: Option<u64>,
    /// The hook registered before this one.
    before: Option<&'static Node>,
}

/// The hook registered last. No lock guards the list: at the moment of a fork another thread may be
/// registering a hook, and the child would find that lock held for ever.
static LAST: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

/// Registers a function that runs in each child that this crate forks from now on, before any code
/// of a task.
///
/// A forked child starts as a copy of its parent: what the parent has read ahead, counted or
/// remembered, all of its children have too. Random number generators are the worst case, because
/// nothing fails: each child draws the same numbers. The page of
/// [`Forked`](crate::Forked#what-a-child-has-twice) lists what else is duplicated. A hook brings
/// such state in order.
///
/// Hooks run in the order of their registration:
///
/// - in the children of [`Forked`](crate::Forked), before their first item;
/// - in the workers of [`StartMethod::Fork`](crate::engine::StartMethod::Fork) and
///   [`ForkServer`](crate::engine::StartMethod::ForkServer), also in those that replace dead ones,
///   before the initialiser. They do not run in the process that forks the workers.
///
/// They do not run in workers of [`StartMethod::Spawn`](crate::engine::StartMethod::Spawn) or in a
/// [`Process`](crate::Process), which begin anew and duplicate nothing. They also do not run in
/// children that the program or a library forks by itself: such a child may only call what a signal
/// handler may, until it calls `exec`.
///
/// # Which hooks a child has
///
/// A child has the hooks that were registered in the process it was forked from, by the time of the
/// fork. The process that forks workers is made when the pool is. With
/// [`StartMethod::Fork`](crate::engine::StartMethod::Fork) it has all hooks registered by then.
/// With [`StartMethod::ForkServer`](crate::engine::StartMethod::ForkServer) it is the executable,
/// started again: it has those hooks that capture nothing, and those that
/// [`preload`](crate::engine::ProcessesBuilder::preload) registers. A hook that captures nothing
/// and is registered by both the program and `preload` runs twice in the workers. A hook that a
/// hook registers runs in the children of that child.
///
/// # Panics
///
/// Never. A hook that panics ends its child's work before it has begun: in a
/// [`Forked`](crate::Forked) pool, the panic is the error of the items that the child was to run; a
/// worker fails to start with it.
///
/// # Examples
///
/// Children that each draw numbers of their own from the crate [rand](https://docs.rs/rand):
///
/// ```
/// use manyhands::prelude::*;
///
/// let _: u64 = rand::random(); // seeds the generator of this thread, which the children copy
/// manyhands::at_fork_child(|| rand::rng().reseed().expect("the system has random numbers"));
///
/// let pool = Forked::builder().workers(2).allow_threads(true).build()?; // a test has threads
/// let drawn = pool.imap(|_: u32| rand::random(), 0..8);
/// let mut drawn: Vec<u64> = drawn.collect::<Result<_, _>>()?;
/// drawn.sort();
/// drawn.dedup();
/// assert_eq!(drawn.len(), 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn at_fork_child<F>(hook: F)
where
    F: Fn() + Clone + Send + Sync + 'static,
{
    let code = if size_of::<F>() == 0 && !needs_drop::<F>() {
        // A hook in a shared library has no number: a fork server would not have the library.
        code::number(enter::<F> as fn() as usize).ok()
    } else {
        None
    };
    add(Box::new(hook), code);
}

/// Runs a hook that captures nothing, by its type alone.
#[allow(unsafe_code)]
fn enter<F: Fn() + Clone + 'static>() {
    // SAFETY: `at_fork_child` names this function only when it has a value of `F`, which is
    // `Clone`, has no size, and runs nothing when it is dropped. A fork server is of the same
    // build.
    let hook = unsafe { code::zero_sized::<F>() };
    hook();
}

fn add(hook: Box<dyn Fn() + Send + Sync>, code: Option<u64>) {
    // Never freed: a child may be forked while its parent reads the list, and hooks are few.
    let node = Box::leak(Box::new(Node {
        hook,
        code,
        before: last(),
    }));
    loop {
        let before = node
            .before
            .map_or(ptr::null_mut(), |before| ptr::from_ref(before).cast_mut());
        // Release: pairs with the load in `last`.
        let added = LAST.compare_exchange(before, node, Ordering::Release, Ordering::Relaxed);
        if added.is_ok() {
            return;
        }
        node.before = last();
    }
}

#[allow(unsafe_code)]
fn last() -> Option<&'static Node> {
    // SAFETY: `LAST` is null or points to a node that `add` has leaked, and that does not change
    // once it is there.
    unsafe { LAST.load(Ordering::Acquire).as_ref() }
}

/// Returns all hooks, in the order of their registration.
fn all() -> Vec<&'static Node> {
    let mut nodes: Vec<_> = std::iter::successors(last(), |node| node.before).collect();
    nodes.reverse();
    nodes
}

/// Runs the hooks, in a child that this crate has forked.
///
/// # Errors
///
/// The panic of the first hook that panics; those after it do not run.
pub(crate) fn run() -> Result<(), Box<Caught>> {
    let original = Original::here();
    for node in all() {
        let outcome = panic::catch(&node.hook);
        // A copy that the hook has forked ends here: it would do this child's work a second time,
        // on its lane.
        original.end_copy_after(&outcome);
        outcome.map_err(|mut caught| {
            caught
                .message
                .insert_str(0, "an after-fork hook panicked: ");
            caught
        })?;
    }
    Ok(())
}

/// Returns the numbers of the hooks that capture nothing, for a fork server of this build.
pub(crate) fn codes() -> Vec<u64> {
    all().into_iter().filter_map(|node| node.code).collect()
}

/// Registers the hooks with these numbers, in a fork server.
#[allow(unsafe_code)]
pub(crate) fn adopt(codes: &[u64]) {
    for &code in codes {
        // SAFETY: the number comes from `codes` in the parent, which runs the same build, and is
        // that of an `enter`.
        if let Some(hook) = unsafe { code::function::<fn()>(code) } {
            add(Box::new(hook), Some(code));
        }
    }
}
