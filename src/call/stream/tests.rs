//! The sizes of a lazy call's chunks, and how much of the input is read for them.

use std::sync::Mutex;

use super::*;
use crate::call::Limits;
use crate::call::progress::Progress;

const WORKERS: usize = 2;

/// Counts as many chunks of this size as a decision needs; the first of them was given out this
/// long ago. Returns the size decided.
fn decide(size: usize, ago: Duration) -> usize {
    let mut pace = Pace::Adaptive {
        size,
        items: 0,
        chunks: 0,
        since: Instant::now().checked_sub(ago).unwrap(),
    };
    let is_still = |pace: &Pace| matches!(pace, Pace::Adaptive { size: now, .. } if *now == size);
    for _ in 1..4 * WORKERS {
        pace.note(size, WORKERS);
        assert!(is_still(&pace), "too early to decide");
    }
    pace.note(size, WORKERS);
    let Pace::Adaptive {
        size,
        items,
        chunks,
        since,
    } = pace
    else {
        unreachable!("it stays of its kind")
    };
    assert_eq!((items, chunks), (0, 0), "counted anew");
    assert!(since.elapsed() < ago, "from now on");
    size
}

#[test]
fn chunks_grow_while_items_are_short_and_shrink_while_they_are_long() {
    let long = Duration::from_secs(60);
    assert_eq!([decide(64, long), decide(2, long)], [32, 1]);
    assert_eq!(decide(1, long), 1, "a chunk has an item");
    let mut pace = Pace::Adaptive {
        size: 1,
        items: 0,
        chunks: 0,
        // The time of the start lies ahead, so no time has passed.
        since: Instant::now() + long,
    };
    let mut sizes = Vec::new();
    for _ in 0..10 {
        for _ in 0..4 * WORKERS {
            let Pace::Adaptive { size, since, .. } = &mut pace else {
                unreachable!("it stays of its kind")
            };
            *since = Instant::now() + long;
            let came = *size;
            pace.note(came, WORKERS);
        }
        let Pace::Adaptive { size, .. } = pace else {
            unreachable!("it stays of its kind")
        };
        sizes.push(size);
    }
    assert_eq!(sizes, [2, 4, 8, 16, 32, 64, 128, 256, 256, 256]);
    let mut fixed = Pace::Fixed(7);
    (0..100).for_each(|_| fixed.note(7, WORKERS));
    assert!(matches!(fixed, Pace::Fixed(7)));
}

/// Returns the lengths of the chunks that a call gives out before its first result is taken.
fn given(depth: usize, most: usize, plan: Plan<'_>, schedule: Option<Schedule>) -> Vec<usize> {
    let sizes = Mutex::new(Vec::new());
    let give = |_, items: &mut Vec<u32>| {
        sizes.lock().unwrap().push(items.len());
        TaskFuture::ready(Ok(items.drain(..).map(Ok).collect()))
    };
    let stream = Stream {
        give: Box::new(give),
        workers: WORKERS,
        depth,
        most,
    };
    let mut feeder = Feeder::new(stream, schedule, plan, Input::Lazy(0..1_000)).unwrap();
    while feeder.next().is_some() {}
    drop(feeder);
    sizes.into_inner().unwrap()
}

fn plan(schedule: Schedule, window: Option<usize>, total: Option<usize>) -> Plan<'static> {
    Plan {
        schedule,
        limits: Limits::none(),
        window,
        kills: false,
        total,
        tracker: Tracker::new(None, total),
    }
}

#[test]
fn as_much_is_given_out_as_keeps_the_workers_busy() {
    let any = usize::MAX;
    let of = |size| Some(Schedule::Dynamic(size));
    let dynamic = |size, window| plan(Schedule::Dynamic(size), window, Some(1_000));
    // As many chunks for each worker as `depth` says.
    assert_eq!(given(3, any, dynamic(5, None), of(5)), [5; 6]);
    // The engine takes no larger chunks.
    assert_eq!(given(3, 1, dynamic(5, None), of(5)), [1; 6]);
    // A window has room for a chunk that each worker runs and one that waits for it.
    assert_eq!(given(3, any, dynamic(5, Some(8)), of(5)), [2; 4]);
    assert_eq!(given(3, any, dynamic(100, Some(8)), of(100)), [2; 4]);
    assert_eq!(given(3, any, dynamic(1, Some(8)), of(1)), [1; 8]);
    assert_eq!(given(3, any, dynamic(3, Some(1)), of(3)), [1]);
    // Where a chunk runs as soon as it is given out, there are no more chunks than workers.
    assert_eq!(given(1, any, dynamic(1, Some(8)), of(1)), [1; WORKERS]);
    // If the length is known, there is an equal part for each worker.
    let equal = || plan(Schedule::Equal, None, Some(1_000));
    assert_eq!(given(1, any, equal(), Some(Schedule::Equal)), [500; 2]);
    // By default, chunks start with single items.
    let guided = || plan(Schedule::Guided, None, Some(1_000));
    assert_eq!(given(3, any, guided(), None), [1; 6]);
    assert_eq!(given(3, 1, guided(), None), [1; 6]);
}

#[test]
fn a_chunk_that_fails_as_a_whole_is_the_outcome_of_each_of_its_items() {
    let mut told = Vec::new();
    let note = |p: &Progress| told.push((p.done, p.failed));
    let mut plan = plan(Schedule::Dynamic(3), None, Some(7));
    plan.tracker = Tracker::new(Some(Box::new(note)), Some(7));
    let limit = Duration::from_secs(1);
    let give = move |base, items: &mut Vec<u32>| {
        let outcomes = items.drain(..).map(Ok).collect();
        TaskFuture::ready(if base == 3 {
            Err(TaskError::TimedOut {
                index: None.into(),
                limit,
                attempts: 1,
            })
        } else {
            Ok(outcomes)
        })
    };
    let stream = Stream {
        give: Box::new(give),
        workers: WORKERS,
        depth: 1,
        most: usize::MAX,
    };
    let outcomes: Vec<_> =
        Imap::new(stream, Some(Schedule::Dynamic(3)), plan, Input::Lazy(0..7)).collect();
    let failed = |at| {
        let index = Some(at);
        Err(TaskError::TimedOut {
            index: index.into(),
            limit,
            attempts: 1,
        })
    };
    let expected = [Ok(0), Ok(1), Ok(2), failed(3), failed(4), failed(5), Ok(6)];
    assert_eq!(outcomes, expected);
    assert_eq!(told, [(3, 0), (6, 3), (7, 3)]);
}

#[test]
fn what_the_engine_does_not_take_comes_first_in_the_next_chunk() {
    let give = |base, items: &mut Vec<u32>| {
        let taken = items.drain(..items.len().min(2)).map(Ok).collect();
        assert_eq!(base % 2, 0);
        TaskFuture::ready(Ok(taken))
    };
    let stream = Stream {
        give: Box::new(give),
        workers: WORKERS,
        depth: 1,
        most: usize::MAX,
    };
    let schedule = Schedule::Dynamic(5);
    let plan = plan(schedule, None, Some(9));
    let unordered: Vec<_> =
        ImapUnordered::new(stream, Some(schedule), plan, Input::Lazy(0..9)).collect();
    assert_eq!(
        unordered,
        (0..9).map(|n| (n as usize, Ok(n))).collect::<Vec<_>>()
    );
}
