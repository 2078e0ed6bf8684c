//! The same steps on a queue and on what std has: the same answers.

use std::collections::{BinaryHeap, VecDeque};

use manyhands::queue::{PopError, PushError};
use manyhands::{
    Queue,
    queue::{PriorityQueue, Stack},
};
use proptest::prelude::*;

use crate::common::Leftovers;

#[derive(Clone, Debug)]
enum Step {
    Push(i8, usize),
    Pop,
    Done,
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => (any::<i8>(), prop_oneof![0usize..40, 200usize..400]).prop_map(|(priority, len)| Step::Push(priority % 3, len)),
        9 => Just(Step::Pop),
        4 => Just(Step::Done),
        1 => prop::bool::weighted(0.1).prop_map(|closes| if closes { Step::Close } else { Step::Pop }),
    ];
    prop::collection::vec(step, 0..120)
}

/// What std has, in one of three orders.
enum Model {
    Fifo(VecDeque<Vec<u8>>),
    Lifo(Vec<Vec<u8>>),
    Priority(BinaryHeap<(i8, std::cmp::Reverse<usize>, Vec<u8>)>, usize),
}

impl Model {
    fn push(&mut self, priority: i8, item: Vec<u8>) {
        match self {
            Self::Fifo(items) => items.push_back(item),
            Self::Lifo(items) => items.push(item),
            Self::Priority(items, count) => {
                *count += 1;
                items.push((priority, std::cmp::Reverse(*count), item));
            }
        }
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Fifo(items) => items.pop_front(),
            Self::Lifo(items) => items.pop(),
            Self::Priority(items, _) => items.pop().map(|(_, _, item)| item),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Fifo(items) => items.len(),
            Self::Lifo(items) => items.len(),
            Self::Priority(items, _) => items.len(),
        }
    }
}

macro_rules! check {
    ($steps:expr, $queue:expr, $model:expr, $push:expr) => {{
        let (queue, mut model) = ($queue, $model);
        let (mut bytes, mut in_hand, mut is_closed, mut number) = (0, 0u64, false, 0u8);
        for step in $steps {
            match step {
                Step::Push(priority, len) => {
                    number = number.wrapping_add(1);
                    let item = vec![number; len];
                    // As it is serialised.
                    let takes = len as u64 + 8;
                    match $push(&queue, i64::from(priority), item.clone()) {
                        Ok(()) => {
                            prop_assert!(
                                !is_closed && model.len() < CAPACITY && bytes + takes <= BYTES
                            );
                            bytes += takes;
                            model.push(priority, item);
                        }
                        Err(PushError::Closed(same)) => {
                            prop_assert!(is_closed);
                            prop_assert_eq!(same, item);
                        }
                        Err(PushError::TooLarge { .. }) => prop_assert!(takes > BYTES),
                        Err(PushError::Full(_)) => {
                            prop_assert!(model.len() == CAPACITY || bytes + takes > BYTES)
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                Step::Pop => match queue.try_pop() {
                    Ok(item) => {
                        bytes -= item.len() as u64 + 8;
                        in_hand += 1;
                        prop_assert_eq!(Some(item), model.pop());
                    }
                    Err(error) => {
                        prop_assert_eq!(model.len(), 0);
                        prop_assert_eq!(
                            error,
                            if is_closed {
                                PopError::Closed
                            } else {
                                PopError::Empty
                            }
                        );
                    }
                },
                Step::Done => {
                    prop_assert_eq!(queue.task_done().is_ok(), in_hand > 0);
                    in_hand = in_hand.saturating_sub(1);
                }
                Step::Close => {
                    queue.close();
                    is_closed = true;
                }
            }
            prop_assert_eq!(queue.len(), model.len());
            let joined = queue.join_timeout(std::time::Duration::ZERO).is_ok();
            prop_assert_eq!(joined, model.len() == 0 && in_hand == 0);
        }
    }};
}

const CAPACITY: usize = 5;
const BYTES: u64 = 390;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_queue_is_a_deque(steps in steps()) {
        let _none = Leftovers::none();
        let queue = Queue::<Vec<u8>>::with_limits(CAPACITY, BYTES).unwrap();
        check!(steps, queue, Model::Fifo(VecDeque::new()), |queue: &Queue<_>, _, item| queue.try_push(item));
    }

    #[test]
    fn a_stack_is_a_vec(steps in steps()) {
        let _none = Leftovers::none();
        let stack = Stack::<Vec<u8>>::with_limits(CAPACITY, BYTES).unwrap();
        check!(steps, stack, Model::Lifo(Vec::new()), |stack: &Stack<_>, _, item| stack.try_push(item));
    }

    #[test]
    fn a_priority_queue_is_a_heap(steps in steps()) {
        let _none = Leftovers::none();
        let queue = PriorityQueue::<Vec<u8>>::with_limits(CAPACITY, BYTES).unwrap();
        check!(steps, queue, Model::Priority(BinaryHeap::new(), 0), |queue: &PriorityQueue<_>, priority, item| queue.try_push(item, priority));
    }
}
