//! What a process believes of a queue's header that another process may have written to.

use super::*;
use crate::{Queue, queue::PriorityQueue};

/// Says whether the header of `view` is believed with this value in one of its words.
macro_rules! is_believed {
    ($view:expr, $len:expr, $word:ident, $value:expr) => {{
        let word = &$view.head.$word;
        let before = word.swap($value, Ordering::Relaxed);
        let geometry = Geometry::of($view.head, $len);
        word.store(before, Ordering::Relaxed);
        geometry.is_some()
    }};
}

#[test]
fn a_head_is_believed_only_if_all_it_speaks_of_lies_in_the_block() {
    let queue = Queue::<u64>::bounded(5).unwrap();
    let view = queue.handle.view();
    let (stride, len) = (SLOT_HEAD + 8, 5 * (SLOT_HEAD + 8));
    let own = Geometry::of(view.head, len).unwrap();
    assert_eq!((own.order, own.capacity), (Order::Fifo, 5));
    assert_eq!((own.stride, own.len()), (stride, Some(len)));
    assert!(Geometry::of(view.head, len - 1).is_none());
    assert!(is_believed!(view, len, order, 1));
    assert!(!is_believed!(view, len, order, 3));
    assert!(is_believed!(view, len, capacity, 4));
    for wrong in [0, 6, u64::MAX, u64::MAX / 24] {
        assert!(!is_believed!(view, len, capacity, wrong), "{wrong}");
    }
    assert!(is_believed!(view, len, stride, SLOT_HEAD as u32));
    for wrong in [0, 8, stride as u32 - 4, stride as u32 + 8, u32::MAX] {
        assert!(!is_believed!(view, len, stride, wrong), "{wrong}");
    }
    // Keys and positions lie behind the slots.
    let queue = PriorityQueue::<u64>::bounded(5).unwrap();
    let view = queue.handle.view();
    let len = 5 * (stride + size_of::<Key>() + size_of::<AtomicU32>());
    assert_eq!(
        Geometry::of(view.head, len).map(|it| it.order),
        Some(Order::Priority)
    );
    assert!(Geometry::of(view.head, len - 1).is_none());
    assert!(is_believed!(view, len, order, 0));
}
