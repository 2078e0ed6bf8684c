//! Tests of lines in memory of their own, and of the steps that change them.

use std::mem;
use std::thread;
use std::time::Duration;

use super::super::semaphore::SemaphoreHead;
use super::*;
use crate::memory::wait::Ticket;
use crate::memory::wait_mode::soon;

/// Makes a line with three permits, at a place that it never leaves.
fn line() -> &'static Line {
    let line = Box::leak(Box::new(mem::MaybeUninit::<Line>::zeroed()));
    // SAFETY: zeros are a valid line but for its lock, which is made before it is used.
    #[allow(unsafe_code)]
    let line: &Line = unsafe { line.assume_init_mut() };
    // SAFETY: room for a lock, which no other thread knows of yet.
    #[allow(unsafe_code)]
    unsafe { RobustMutex::init((&line.lock).into()) }.unwrap();
    line.fill(3);
    line
}

fn acquires(line: &Line, count: u32) -> bool {
    matches!(
        line.attempt(count, member::own_number(), WaitMode::Try),
        Attempt::Got
    )
}

/// Runs a thread that dies with the lock, at this point of a change.
fn die_at(line: &'static Line, point: impl FnOnce() + Send + 'static) {
    let dies = move || {
        let held = line.hold(|| None);
        point();
        mem::forget(held);
    };
    thread::spawn(dies).join().unwrap();
}

#[test]
fn sums_are_made_anew_when_a_process_died_with_the_lock() {
    let line = line();
    // Between the sum and `books`, and the other way round.
    die_at(line, || line.available.store(1, Ordering::Relaxed));
    assert!(acquires(line, 3));
    die_at(line, || {
        line.book(member::own_number()).store(1, Ordering::Relaxed);
    });
    assert!(!acquires(line, 3));
    assert!(acquires(line, 2));
    assert!(line.give_back(3, Limit::Brief));
    // With a place that is taken and not counted.
    die_at(line, || {
        line.line_up(3, MEMBERS as u16 - 1);
        line.waiting.store(0, Ordering::Relaxed);
    });
    assert!(!acquires(line, 1), "not before its turn");
    line.reclaim(MEMBERS as u16 - 1, soon(), |_| {});
    assert!(acquires(line, 3));
    assert!(line.give_back(3, Limit::Brief));
}

/// Returns whether the thread with this place has been called, and takes the call off it.
fn is_called(line: &Line, index: usize) -> bool {
    line.places[index].called.swap(0, Ordering::Relaxed) == 1
}

fn is_told(ticket: &Ticket<'_>) -> bool {
    let (word, seen) = ticket.word();
    word.load(Ordering::Relaxed) != seen
}

/// Without these wake-ups the threads look by themselves, some time later.
#[test]
fn permits_and_threads_that_leave_wake_those_whose_turn_it_is() {
    let changes: [fn(&Line); 4] = [
        |line| assert!(line.give_back(3, Limit::Brief)),
        |line| assert_eq!(line.add(3, Limit::Brief), Some(Ok(()))),
        // The first one leaves, and there are enough permits for the others.
        |line| assert!(line.leave(0, 1, Limit::Brief)),
        |line| assert!(line.reclaim(MEMBERS as u16 - 1, soon(), |_| {})),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let line = line();
        let (own, other) = (member::own_number(), MEMBERS as u16 - 1);
        // The first thread is of the process that dies, and wants more than there are.
        let held = if number < 2 { 3 } else { 0 };
        assert!(line.take(held, u64::MAX, own));
        let first = if number < 2 { 1 } else { 4 };
        assert_eq!(line.line_up(first, other), Some((0, 1)));
        assert_eq!(line.line_up(2, own), Some((1, 2)));
        assert_eq!(line.line_up(1, own), Some((2, 3)));
        let tickets = [0, 1, 2].map(|index| line.places[index].waiters.ticket());
        let without_place = line.without_place.ticket();
        change(line);
        // Threads that have left are not counted any more.
        let waiting = if number < 2 { 3 } else { 2 };
        assert_eq!(line.waiting.load(Ordering::Relaxed), waiting);
        let told = [0, 1, 2].map(|index| is_called(line, index) && is_told(&tickets[index]));
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
fn burying_twice_is_burying_once() {
    let line = line();
    let other = MEMBERS as u16 - 1;
    assert!(line.take(2, u64::MAX, other));
    for had in [2, 0] {
        assert!(line.reclaim(other, soon(), |permits| assert_eq!(permits, had)));
        assert_eq!(line.available(), 3);
    }
}

/// The sum that is made anew then counts what each process has and what there is in all.
#[test]
fn forgotten_permits_take_no_free_ones_along_when_a_process_has_ended() {
    let line = line();
    assert!(acquires(line, 2));
    assert!(line.forget(2, Limit::Brief));
    assert_eq!(line.available(), 1);
    assert!(line.reclaim(MEMBERS as u16 - 1, soon(), |_| {}));
    assert_eq!(line.available(), 1);
    assert!(acquires(line, 1));
}

/// The place of one that has left is taken by a thread that came later than its neighbour.
#[test]
fn permits_are_for_the_thread_that_came_first_and_not_for_the_first_place() {
    let line = line();
    let own = member::own_number();
    assert!(line.take(3, u64::MAX, own));
    assert_eq!(line.line_up(1, own), Some((0, 1)));
    assert_eq!(line.line_up(2, own), Some((1, 2)));
    assert!(line.leave(0, 1, Limit::Brief));
    assert_eq!(line.line_up(1, own), Some((0, 3)));
    assert!(line.give_back(2, Limit::Brief));
    assert_eq!([0, 1].map(|index| is_called(line, index)), [false, true]);
    assert!(!line.take(1, 3, own), "before its turn");
    assert!(line.take(2, 2, own));
    line.step_out(1);
    assert!(line.give_back(1, Limit::Brief));
    assert!(is_called(line, 0) && line.take(1, 3, own));
}

#[test]
fn a_thread_that_gets_its_permits_makes_room_for_one_without_a_place() {
    let object: Result<Object<SemaphoreHead>, _> = Object::new(0, 0, |_, _| Ok(()));
    let object = object.unwrap();
    let line = object.head().line();
    line.fill(0);
    thread::scope(|scope| {
        let wait = || acquire(&object, 1, WaitMode::within(Duration::from_secs(30)));
        let waiter = scope.spawn(wait);
        while line.waiting.load(Ordering::Relaxed) == 0 && !waiter.is_finished() {
            thread::yield_now();
        }
        let ticket = line.without_place.ticket();
        add(&object, 1).unwrap();
        assert!(waiter.join().unwrap());
        assert!(is_told(&ticket), "its place is free");
    });
}
