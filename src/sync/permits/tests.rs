//! Tests of permits in memory of their own, and of the steps that change them.

use std::mem;
use std::thread;
use std::time::Duration;

use super::super::semaphore::SemaphoreHead;
use super::*;
use crate::memory::wait::WaitToken;
use crate::memory::wait_mode::soon;

/// Makes a permits with three permits, at a place that it never leaves.
fn permits() -> &'static Permits {
    let permits = Box::leak(Box::new(mem::MaybeUninit::<Permits>::zeroed()));
    // SAFETY: zeros are a valid permits but for its lock, which is made before it is used.
    #[allow(unsafe_code)]
    let permits: &Permits = unsafe { permits.assume_init_mut() };
    // SAFETY: room for a lock, which no other thread knows of yet.
    #[allow(unsafe_code)]
    unsafe { RobustMutex::init((&permits.lock).into()) }.unwrap();
    permits.fill(3);
    permits
}

fn acquires(permits: &Permits, count: u32) -> bool {
    matches!(
        permits.attempt(count, member::own_number(), WaitMode::Try),
        Attempt::Got
    )
}

/// Runs a thread that dies with the lock, at this point of a change.
fn die_at(permits: &'static Permits, point: impl FnOnce() + Send + 'static) {
    let dies = move || {
        let held = permits.hold(|| None);
        point();
        mem::forget(held);
    };
    thread::spawn(dies).join().unwrap();
}

#[test]
fn sums_are_made_anew_when_a_process_died_with_the_lock() {
    let permits = permits();
    // Between the sum and `counts`, and the other way round.
    die_at(permits, || permits.available.store(1, Ordering::Relaxed));
    assert!(acquires(permits, 3));
    die_at(permits, || {
        permits
            .count_of(member::own_number())
            .store(1, Ordering::Relaxed);
    });
    assert!(!acquires(permits, 3));
    assert!(acquires(permits, 2));
    assert!(permits.give_back(3, Limit::Brief));
    // With a place that is taken and not counted.
    die_at(permits, || {
        permits.enqueue(3, MEMBERS as u16 - 1);
        permits.waiting.store(0, Ordering::Relaxed);
    });
    assert!(!acquires(permits, 1), "not before its turn");
    permits.reclaim(MEMBERS as u16 - 1, soon(), |_| {});
    assert!(acquires(permits, 3));
    assert!(permits.give_back(3, Limit::Brief));
}

/// Returns whether the thread with this place has been called, and takes the call off it.
fn is_called(permits: &Permits, index: usize) -> bool {
    permits.places[index].called.swap(0, Ordering::Relaxed) == 1
}

fn is_told(token: &WaitToken<'_>) -> bool {
    let (word, seen) = token.word();
    word.load(Ordering::Relaxed) != seen
}

/// Without these wake-ups the threads look by themselves, some time later.
#[test]
fn permits_and_threads_that_leave_wake_those_whose_turn_it_is() {
    let changes: [fn(&Permits); 4] = [
        |permits| assert!(permits.give_back(3, Limit::Brief)),
        |permits| assert_eq!(permits.add(3, Limit::Brief), Some(Ok(()))),
        // The first one leaves, and there are enough permits for the others.
        |permits| assert!(permits.leave(0, 1, Limit::Brief)),
        |permits| assert!(permits.reclaim(MEMBERS as u16 - 1, soon(), |_| {})),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let permits = permits();
        let (own, other) = (member::own_number(), MEMBERS as u16 - 1);
        // The first thread is of the process that dies, and wants more than there are.
        let held = if number < 2 { 3 } else { 0 };
        assert!(permits.take(held, u64::MAX, own));
        let first = if number < 2 { 1 } else { 4 };
        assert_eq!(permits.enqueue(first, other), Some((0, 1)));
        assert_eq!(permits.enqueue(2, own), Some((1, 2)));
        assert_eq!(permits.enqueue(1, own), Some((2, 3)));
        let tokens = [0, 1, 2].map(|index| permits.places[index].waiters.token());
        let without_place = permits.without_place.token();
        change(permits);
        // Threads that have left are not counted any more.
        let waiting = if number < 2 { 3 } else { 2 };
        assert_eq!(permits.waiting.load(Ordering::Relaxed), waiting);
        let told = [0, 1, 2].map(|index| is_called(permits, index) && is_told(&tokens[index]));
        match number {
            // Three permits are enough for the first two.
            0 | 1 => assert_eq!(told, [true, true, false], "change {number}"),
            _ => {
                assert_eq!(told[1..], [true, true], "change {number}");
                assert!(is_told(&without_place), "change {number}: a place is free");
            }
        }
    }
}

#[test]
fn reclaiming_twice_is_reclaiming_once() {
    let permits = permits();
    let other = MEMBERS as u16 - 1;
    assert!(permits.take(2, u64::MAX, other));
    for had in [2, 0] {
        assert!(permits.reclaim(other, soon(), |permits| assert_eq!(permits, had)));
        assert_eq!(permits.available(), 3);
    }
}

/// The sum that is made anew then counts what each process has and what there is in all.
#[test]
fn forgotten_permits_take_no_free_ones_along_when_a_process_has_ended() {
    let permits = permits();
    assert!(acquires(permits, 2));
    assert!(permits.forget(2, Limit::Brief));
    assert_eq!(permits.available(), 1);
    assert!(permits.reclaim(MEMBERS as u16 - 1, soon(), |_| {}));
    assert_eq!(permits.available(), 1);
    assert!(acquires(permits, 1));
}

/// The place of one that has left is taken by a thread that came later than its neighbour.
#[test]
fn permits_are_for_the_thread_that_came_first_and_not_for_the_first_place() {
    let permits = permits();
    let own = member::own_number();
    assert!(permits.take(3, u64::MAX, own));
    assert_eq!(permits.enqueue(1, own), Some((0, 1)));
    assert_eq!(permits.enqueue(2, own), Some((1, 2)));
    assert!(permits.leave(0, 1, Limit::Brief));
    assert_eq!(permits.enqueue(1, own), Some((0, 3)));
    assert!(permits.give_back(2, Limit::Brief));
    assert_eq!([0, 1].map(|index| is_called(permits, index)), [false, true]);
    assert!(!permits.take(1, 3, own), "before its turn");
    assert!(permits.take(2, 2, own));
    permits.dequeue(1);
    assert!(permits.give_back(1, Limit::Brief));
    assert!(is_called(permits, 0) && permits.take(1, 3, own));
}

#[test]
fn a_thread_that_gets_its_permits_makes_room_for_one_without_a_place() {
    let object: Result<Object<SemaphoreHead>, _> = Object::new(0, 0, |_, _| Ok(()));
    let object = object.unwrap();
    let permits = object.head().permits();
    permits.fill(0);
    thread::scope(|scope| {
        let wait = || acquire(&object, 1, WaitMode::within(Duration::from_secs(30)));
        let waiter = scope.spawn(wait);
        while permits.waiting.load(Ordering::Relaxed) == 0 && !waiter.is_finished() {
            thread::yield_now();
        }
        let token = permits.without_place.token();
        add(&object, 1).unwrap();
        assert!(waiter.join().unwrap());
        assert!(is_told(&token), "its place is free");
    });
}

/// Callers that wait, and those that try, poll for the members that have permits.
#[test]
fn b142_callers_look_at_the_members_that_have_permits() {
    let object: Result<Object<SemaphoreHead>, _> = Object::new(0, 0, |_, _| Ok(()));
    let object = object.unwrap();
    let permits = object.head().permits();
    permits.fill(2);
    assert_eq!(permits.holders().count(), 0);
    assert!(acquires(permits, 2));
    let own = member::own_number();
    assert_eq!(permits.holders().collect::<Vec<_>>(), [own]);
    assert!(!permits.poll.is_begun());
    for mode in [WaitMode::Try, WaitMode::within(Duration::from_millis(1))] {
        permits.poll.start_anew();
        assert!(!acquire(&object, 1, mode));
        assert!(permits.poll.is_begun(), "{mode:?}");
    }
    // Without a place in the list.
    permits.poll.start_anew();
    while permits.enqueue(1, own).is_some() {}
    permits.waiting.store(PLACES as u32, Ordering::Relaxed);
    assert!(!acquire(
        &object,
        1,
        WaitMode::within(Duration::from_millis(1))
    ));
    assert!(permits.poll.is_begun());
}
