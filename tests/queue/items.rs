//! Items that are not let in, that cannot be read, and that go with their queue.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use manyhands::queue::{JoinError, PopError, PushError};
use manyhands::select::wait_ready;
use manyhands::{
    Queue, SharedValue,
    queue::{PriorityQueue, Receiver, Sender, Stack},
    shm,
    shm::ShareError,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Result;
use crate::common::{Leftovers, assert_matches};

const SHORT: Duration = Duration::from_millis(20);

#[test]
fn a_queue_that_cannot_be_made_says_why() {
    let _none = Leftovers::none();
    let said = |made: std::result::Result<Queue<u8>, ShareError>| match made {
        Err(ShareError::Invalid { what, value, .. }) => format!("{what}: {value}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(said(Queue::bounded(0)), "the capacity of a queue: 0");
    assert_eq!(
        said(Queue::with_limits(1, 0)),
        "the capacity of a queue: 0 bytes"
    );
    // One more than the numbers of the slots go.
    let too_many = 1_usize << 32;
    assert_eq!(
        said(Queue::bounded(too_many)),
        format!("the capacity of a queue: {too_many}")
    );
}

#[test]
fn an_item_of_as_many_bytes_as_the_queue_takes_goes_in_and_a_longer_one_does_not() -> Result {
    let _none = Leftovers::none();
    // As it is serialised: eight bytes for the length.
    let queue = Queue::<Vec<u8>>::with_limits(4, 108)?;
    queue.push_timeout(vec![1; 100], SHORT)?;
    assert_eq!(queue.pop()?.len(), 100);
    let refused = queue.push_timeout(vec![1; 101], SHORT);
    assert_matches!(
        refused,
        Err(PushError::TooLarge { item, bytes: 109, limit: 108, .. }) if item == [1; 101]
    );
    // Items of a fixed size take a way of their own.
    let numbers = Queue::<u64>::with_limits(4, 7)?;
    assert_matches!(
        numbers.push_timeout(5, SHORT),
        Err(PushError::TooLarge {
            item: 5,
            bytes: 8,
            limit: 7,
            ..
        })
    );
    let numbers = Queue::<u64>::with_limits(4, 8)?;
    numbers.push_timeout(5, SHORT)?;
    assert_eq!(numbers.try_push(6), Err(PushError::Full(6)));
    assert_eq!(numbers.pop(), Ok(5));
    Ok(())
}

/// Cannot be written once its handle has been.
#[derive(Debug, Deserialize)]
struct Secret(SharedValue<u64>);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let _ = self.0.serialize(serializer)?;
        Err(serde::ser::Error::custom("is not told"))
    }
}

/// The handles in an item that is refused count as before, so that their objects go with them.
#[test]
fn what_is_refused_comes_back_whole_and_keeps_nothing() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<Secret>::bounded(1)?;
    let before = shm::usage().objects;
    match queue.push(Secret(SharedValue::new(5)?)) {
        Err(PushError::Encode { item, reason, .. }) => {
            assert_eq!((item.0.get(), &*reason), (5, "is not told"));
        }
        other => panic!("{other:?}"),
    }
    assert!(queue.is_empty());
    assert_eq!(shm::usage().objects, before);

    let value = || (SharedValue::new(6_u64).unwrap(), [1_u8; 20]);
    let (sender, receiver) = Queue::with_limits(1, 1_000)?.split();
    sender.send(value())?;
    drop(receiver.recv()?);
    let empty = shm::usage().objects;
    sender.send(value())?;
    let full = shm::usage().objects;
    let refused = sender.try_send(value()).unwrap_err();
    assert!(matches!(refused, PushError::Full(_)), "{refused:?}");
    assert_eq!(refused.into_inner().0.get(), 6);
    let refused = sender.send_timeout(value(), SHORT).unwrap_err();
    assert!(matches!(refused, PushError::TimedOut(_)), "{refused:?}");
    drop(refused);
    assert_eq!(shm::usage().objects, full);
    drop(receiver.recv()?);
    drop(receiver);
    let refused = sender.send(value()).unwrap_err();
    assert!(matches!(refused, PushError::Disconnected(_)), "{refused:?}");
    drop(refused);
    assert_eq!(shm::usage().objects, empty);

    // Larger than the queue takes, and a handle in it.
    let queue = Queue::<(SharedValue<u64>, Vec<u8>)>::with_limits(1, 100)?;
    let before = shm::usage().objects;
    let refused = queue
        .push((SharedValue::new(7)?, vec![0; 200]))
        .unwrap_err();
    assert!(matches!(refused, PushError::TooLarge { limit: 100, .. }));
    assert_eq!(refused.into_inner().0.get(), 7);
    assert_eq!(shm::usage().objects, before);
    Ok(())
}

/// Cannot be read if it is 0 or 1, and panics if it is 1.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Picky(u8);

impl<'de> Deserialize<'de> for Picky {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        match u8::deserialize(input)? {
            0 => Err(serde::de::Error::custom("zero")),
            1 => panic!("one"),
            x => Ok(Self(x)),
        }
    }
}

#[test]
fn items_that_cannot_be_read_are_lost_and_not_in_hand() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::bounded(4)?;
    for x in [0, 1, 2] {
        queue.push(Picky(x))?;
    }
    assert_matches!(queue.try_pop(), Err(PopError::Decode { reason, .. }) if reason == "zero");
    assert!(queue.task_done().is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| queue.pop())).is_err());
    assert!(queue.task_done().is_err());
    assert_eq!(queue.pop(), Ok(Picky(2)));
    assert_matches!(
        queue.join_timeout(SHORT),
        Err(JoinError::TimedOut { unfinished: 1, .. })
    );
    queue.task_done()?;
    assert!(queue.task_done().is_err());
    let joined = queue.join_timeout(SHORT);
    assert_matches!(joined, Err(JoinError::Lost { items: 2, .. }));
    assert_eq!(queue.join(), Ok(()));
    Ok(())
}

/// Cannot be read, and is said to be done before that shows.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Hasty(u8);

thread_local! {
    static HASTY: RefCell<Option<Queue<Hasty>>> = const { RefCell::new(None) };
}

impl<'de> Deserialize<'de> for Hasty {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        let number = u8::deserialize(input)?;
        HASTY.with_borrow(|queue| queue.as_ref().unwrap().task_done().unwrap());
        Err(serde::de::Error::custom(format!("not {number}")))
    }
}

#[test]
fn an_item_that_is_done_is_not_lost_as_well() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::bounded(4)?;
    queue.push(Hasty(1))?;
    queue.push(Hasty(2))?;
    HASTY.set(Some(queue.clone()));
    assert!(matches!(queue.pop(), Err(PopError::Decode { .. })));
    assert_matches!(
        queue.join_timeout(SHORT),
        Err(JoinError::TimedOut { unfinished: 1, .. })
    );
    assert!(matches!(queue.pop(), Err(PopError::Decode { .. })));
    assert_eq!(queue.join_timeout(SHORT), Ok(()));
    drop(HASTY.take());
    Ok(())
}

/// Fills a queue with handles, takes two out in the order that is said, and drops the queue.
macro_rules! goes_with_its_queue {
    ($make:expr, $push:expr, $first:expr) => {{
        let before = shm::usage().objects;
        let (queue, push) = ($make, $push);
        for x in 0..5 {
            push(&queue, x, SharedValue::new(x)?)?;
        }
        assert!(shm::usage().objects > before + 5);
        for x in $first {
            assert_eq!(queue.pop()?.get(), x);
        }
        drop(queue);
        assert_eq!(shm::usage().objects, before);
    }};
}

/// The handles that are left do not lie where the first ones did.
#[test]
fn what_was_not_popped_goes_with_its_queue_whatever_the_order() -> Result {
    type Item = SharedValue<i64>;
    let _none = Leftovers::none();
    goes_with_its_queue!(
        Queue::bounded(8)?,
        |queue: &Queue<Item>, _, item| queue.push(item),
        [0, 1]
    );
    goes_with_its_queue!(
        Stack::bounded(8)?,
        |stack: &Stack<Item>, _, item| stack.push(item),
        [4, 3]
    );
    goes_with_its_queue!(
        PriorityQueue::bounded(8)?,
        |queue: &PriorityQueue<Item>, x: i64, item| queue.push(item, -x),
        [0, 1]
    );
    Ok(())
}

#[test]
fn every_way_to_push_keeps_the_priority_and_every_order_its_limits() -> Result {
    let _none = Leftovers::none();
    let queue = PriorityQueue::bounded(5)?;
    assert_eq!(wait_ready(&[&queue], Some(SHORT)), [0_usize; 0]);
    queue.push(2_u8, 1)?;
    assert_eq!(wait_ready(&[&queue], Some(SHORT)), [0]);
    queue.push_timeout(5, i64::MIN, SHORT)?;
    queue.try_push(1, i64::MAX)?;
    queue.push_timeout(3, 1, SHORT)?;
    queue.try_push(4, -1)?;
    let start = Instant::now();
    assert_eq!(queue.push_timeout(6, 9, SHORT), Err(PushError::TimedOut(6)));
    assert!(start.elapsed() >= SHORT);
    assert_eq!((queue.len(), queue.capacity()), (5, 5));
    let order: Vec<u8> = queue.clone().into_iter().take(2).collect();
    assert_eq!(order, [1, 2]);
    let order: Vec<u8> = queue.iter().take(2).collect();
    assert_eq!(order, [3, 4]);
    queue.close();
    assert!(queue.is_closed());
    assert_eq!(queue.try_push(7, 9), Err(PushError::Closed(7)));
    assert_eq!(queue.push_timeout(7, 9, SHORT), Err(PushError::Closed(7)));
    assert_eq!(queue.push(7, 9), Err(PushError::Closed(7)));
    drop(queue);

    let stack = Stack::with_limits(2, 16)?;
    stack.push_timeout(1_u64, SHORT)?;
    stack.try_push(2)?;
    let start = Instant::now();
    assert_eq!(stack.push_timeout(3, SHORT), Err(PushError::TimedOut(3)));
    assert_eq!(
        (stack.pop_timeout(SHORT), stack.pop_timeout(SHORT)),
        (Ok(2), Ok(1))
    );
    assert_eq!(stack.pop_timeout(SHORT), Err(PopError::TimedOut));
    assert!(start.elapsed() >= 2 * SHORT);
    stack.task_done()?;
    assert_matches!(
        stack.join_timeout(SHORT),
        Err(JoinError::TimedOut { unfinished: 1, .. })
    );
    stack.task_done()?;
    assert_eq!(stack.join(), Ok(()));
    Ok(())
}

/// A queue that is read as something else.
struct Mistaken<To>(Queue<u32>, PhantomData<To>);

impl<To> Serialize for Mistaken<To> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, To: Deserialize<'de>> Deserialize<'de> for Mistaken<To> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        To::deserialize(input)?;
        panic!("it was taken for another type");
    }
}

fn is_no<To: DeserializeOwned + 'static>() -> Result {
    let queue = Queue::bounded(2)?;
    let post = Queue::<Mistaken<To>>::bounded(1)?;
    let before = shm::usage().objects;
    post.push(Mistaken(queue.clone(), PhantomData))?;
    let popped = post.pop().map(drop);
    assert!(matches!(popped, Err(PopError::Decode { .. })));
    assert_eq!(shm::usage().objects, before);
    queue.push(1)?;
    assert_eq!(queue.pop(), Ok(1));
    Ok(())
}

#[test]
fn a_queue_is_not_taken_for_one_of_other_items_or_in_another_order() -> Result {
    let _none = Leftovers::none();
    is_no::<Queue<u64>>()?;
    is_no::<Sender<i32>>()?;
    is_no::<Receiver<u64>>()?;
    is_no::<Stack<u32>>()?;
    is_no::<PriorityQueue<u32>>()?;
    is_no::<SharedValue<u32>>()
}

/// Serialises the handle in it, and panics then.
#[derive(Deserialize)]
struct PanicsBehind(Sender<u32>);

impl Serialize for PanicsBehind {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.0.serialize(serializer)?;
        panic!("behind the handle");
    }
}

/// Handles that count as in transit are senders too.
#[test]
fn handles_in_an_item_whose_serialize_panics_are_not_in_transit() -> Result {
    let _none = Leftovers::none();
    let queue = Queue::<PanicsBehind>::bounded(2)?;
    let (sender, receiver) = Queue::<u32>::bounded(1)?.split();
    let push = AssertUnwindSafe(|| queue.push(PanicsBehind(sender)).is_ok());
    assert!(catch_unwind(push).is_err());
    assert_eq!(receiver.try_recv(), Err(PopError::Disconnected));
    assert_eq!(queue.len(), 0);
    Ok(())
}
