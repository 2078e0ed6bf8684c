//! AtomicsGuard of models whose sequentially consistent accesses are really so.
//!
//! loom takes `SeqCst` for `AcqRel` at an access, and knows `SeqCst` only of fences. So an access
//! that asks for it stands between two fences here.

use std::sync::OnceLock;

use loom::sync::atomic::{Ordering, fence};

/// Does `access` as strongly as `order` says.
fn ordered<R>(order: Ordering, access: impl FnOnce() -> R) -> R {
    if order != Ordering::SeqCst {
        return access();
    }
    fence(Ordering::SeqCst);
    let result = access();
    fence(Ordering::SeqCst);
    result
}

macro_rules! atomic {
    ($name:ident, $type:ty) => {
        #[derive(Debug, Default)]
        pub(crate) struct $name(loom::sync::atomic::$name);

        impl $name {
            pub(crate) fn new(value: $type) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $type {
                ordered(order, || self.0.load(order))
            }

            pub(crate) fn store(&self, value: $type, order: Ordering) {
                ordered(order, || self.0.store(value, order));
            }
        }
    };
}

atomic!(AtomicBool, bool);
atomic!(AtomicUsize, usize);

impl AtomicUsize {
    pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
        ordered(order, || self.0.fetch_add(value, order))
    }

    pub(crate) fn fetch_min(&self, value: usize, order: Ordering) -> usize {
        ordered(order, || self.0.fetch_min(value, order))
    }

    pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
        ordered(order, || self.0.fetch_sub(value, order))
    }
}

/// A flag that a `const fn` makes. It is made at its first use, which must be over before other
/// threads use it: a model begins with a look at it.
#[derive(Debug, Default)]
pub(crate) struct StaticBool {
    first: bool,
    inner: OnceLock<AtomicBool>,
}

impl StaticBool {
    pub(crate) const fn new(first: bool) -> Self {
        Self {
            first,
            inner: OnceLock::new(),
        }
    }

    fn inner(&self) -> &AtomicBool {
        self.inner.get_or_init(|| AtomicBool::new(self.first))
    }

    pub(crate) fn load(&self, order: Ordering) -> bool {
        self.inner().load(order)
    }

    pub(crate) fn store(&self, value: bool, order: Ordering) {
        self.inner().store(value, order);
    }
}
