use std::ptr::NonNull;

use proptest::prelude::*;

use super::super::claim_mode::within;
use super::*;

/// Makes a head in this process's own memory.
fn head() -> Box<ArrayHead> {
    // SAFETY: all of it is valid when it is zeros, except the lock, which follows.
    #[allow(unsafe_code)]
    let mut head = unsafe { Box::<ArrayHead>::new_zeroed().assume_init() };
    let lock = NonNull::from(&mut head.top.lock);
    // SAFETY: no other thread has it, and it is not moved: it lies in a box.
    #[allow(unsafe_code)]
    unsafe { RobustMutex::init(lock) }.unwrap();
    head
}

/// The claims in their simplest form: a list, and the rule in words.
#[derive(Default)]
struct Model {
    claims: Vec<(Terms, bool)>,
    lends: u64,
    is_frozen: bool,
}

impl Model {
    fn may(&self, new: &Terms) -> bool {
        if self.is_frozen && matches!(new.mode, Mode::Write | Mode::Atomic | Mode::LendWrite) {
            return false;
        }
        if matches!(new.mode, Mode::SubRead | Mode::SubWrite) {
            let is_open = self.claims.iter().any(|(lend, is_closing)| {
                (lend.mode == Mode::LendWrite
                    || lend.mode == Mode::LendRead && new.mode == Mode::SubRead)
                    && lend.lend == new.lend
                    && !is_closing
            });
            if !is_open {
                return false;
            }
        }
        self.claims.iter().all(|(old, _)| compatible(new, old))
    }
}

/// Returns whether the two claims can exist side by side: they have no element in common, both only
/// read, both are atomic, or one is lent to the other.
fn compatible(a: &Terms, b: &Terms) -> bool {
    let reads = |mode| matches!(mode, Mode::Read | Mode::LendRead | Mode::SubRead);
    if reads(a.mode) && reads(b.mode) {
        return true;
    }
    let sub = |mode| matches!(mode, Mode::SubRead | Mode::SubWrite);
    let share_elements = || (a.start..a.end).any(|element| (b.start..b.end).contains(&element));
    match (sub(a.mode), sub(b.mode)) {
        (true, true) if a.lend == b.lend => !share_elements(),
        (true, false) | (false, true) if a.lend == b.lend => true,
        (true, true) => false,
        (true, false) => b.start >= b.end,
        (false, true) => a.start >= a.end,
        _ if a.mode == Mode::Atomic && b.mode == Mode::Atomic => true,
        _ => !share_elements(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Claim {
        member: u16,
        mode: u8,
        start: u64,
        len: u64,
        lend: usize,
    },
    Lend {
        member: u16,
        writes: bool,
    },
    /// Releases one of the existing claims, by its number.
    Release(usize),
    Close(usize),
    Bury(u16),
    Freeze,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4u16, 0..5u8, 0..10u64, 0..5u64, 0..4usize)
            .prop_map(|(member, mode, start, len, lend)| Step::Claim { member, mode, start, len, lend }),
        3 => (0..4u16, any::<bool>()).prop_map(|(member, writes)| Step::Lend { member, writes }),
        6 => (0..20usize).prop_map(Step::Release),
        1 => (0..20usize).prop_map(Step::Close),
        1 => (0..4u16).prop_map(Step::Bury),
        1 => Just(Step::Freeze),
    ]
}

const WHOLE: u64 = 16;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn b73_the_table_allows_what_the_rule_allows(steps in prop::collection::vec(step(), 1..80)) {
        let (head, mut model) = (head(), Model::default());
        let mut numbers: Vec<Number> = Vec::new();
        for step in steps {
            match step {
                Step::Claim { member, mode, start, len, lend } => {
                    let mode = [Mode::Read, Mode::Write, Mode::Atomic, Mode::SubRead, Mode::SubWrite][usize::from(mode)];
                    let lends: Vec<u64> = model.claims.iter()
                        .filter(|(terms, _)| terms.mode.is_lend()).map(|(terms, _)| terms.lend).collect();
                    let lend = if mode.is_sub() { lends.get(lend).copied().unwrap_or(99) } else { 0 };
                    let terms = Terms { member, mode, start, end: start + len, lend };
                    let made = head.claim(&terms);
                    prop_assert_eq!(made.is_ok(), model.may(&terms), "{:?}: {:?}", terms, made);
                    if let Ok(number) = made {
                        model.claims.push((terms, false));
                        numbers.push(number);
                    }
                }
                Step::Lend { member, writes } => {
                    let mode = if writes { Mode::LendWrite } else { Mode::LendRead };
                    let terms = Terms { member, mode, start: 0, end: WHOLE, lend: 0 };
                    model.lends += 1;
                    let made = head.lend(&terms);
                    let terms = Terms { lend: model.lends, ..terms };
                    prop_assert_eq!(made.is_ok(), model.may(&terms), "{:?}: {:?}", terms, made);
                    if let Ok((number, lend)) = made {
                        prop_assert_eq!(lend, model.lends);
                        model.claims.push((terms, false));
                        numbers.push(number);
                    }
                }
                Step::Release(which) if which < numbers.len() => {
                    let (terms, _) = model.claims[which];
                    if terms.mode.is_lend() {
                        if model.claims.iter().any(|(sub, _)| sub.mode.is_sub() && sub.lend == terms.lend) {
                            continue; // it would wait
                        }
                        head.end_lend(numbers[which], terms.lend);
                    } else {
                        assert!(head.release(numbers[which], &terms, Limit::Brief));
                    }
                    model.claims.remove(which);
                    numbers.remove(which);
                }
                Step::Close(which) if which < numbers.len() && model.claims[which].0.mode.is_lend() => {
                    let entry = &head.entries[numbers[which]];
                    entry.state.fetch_or(CLOSING, Ordering::Relaxed);
                    model.claims[which].1 = true;
                }
                Step::Bury(member) => {
                    let had = model.claims.iter()
                        .filter(|(terms, _)| terms.member == member && terms.mode == Mode::Write && terms.start < terms.end)
                        .count();
                    let before = head.poison();
                    assert!(head.reclaim(member, soon()));
                    assert!(head.reclaim(member, soon()));
                    prop_assert_eq!((head.poison() - before) as usize, had);
                    let mut keep = model.claims.iter().map(|(terms, _)| terms.member != member);
                    numbers.retain(|_| keep.next().unwrap());
                    model.claims.retain(|(terms, _)| terms.member != member);
                }
                Step::Freeze => {
                    let terms = Terms { member: 0, mode: Mode::Read, start: 0, end: WHOLE, lend: 0 };
                    let may = model.may(&terms);
                    prop_assert_eq!(head.freeze(&terms).is_ok(), may);
                    model.is_frozen |= may;
                }
                _ => {}
            }
            // Claims that are counted together share one entry; each of the others has its own.
            let mut counted: Vec<Terms> = model.claims.iter().map(|(terms, _)| *terms).collect();
            let all = counted.len() as u64;
            counted.sort_by_key(|terms| (terms.member, terms.mode as u8, terms.start, terms.end, terms.lend));
            counted.dedup_by(|a, b| a == b && a.mode.is_counted());
            prop_assert_eq!(head.live().count(), counted.len());
            prop_assert_eq!(head.live().map(|(_, _, state, _)| (state & COUNT) / ONE).sum::<u64>(), all);
        }
    }
}

fn terms(member: u16, mode: Mode, start: u64, end: u64) -> Terms {
    Terms {
        member,
        mode,
        start,
        end,
        lend: 0,
    }
}

fn full(is_of_siblings: bool) -> Refusal {
    Refusal::Full { is_of_siblings }
}

#[test]
fn a_table_full_of_siblings_is_told_from_one_that_others_fill() {
    let head = head();
    let (_, lend) = head.lend(&terms(1, Mode::LendWrite, 0, 1_000)).unwrap();
    let work = |start| Terms {
        lend,
        ..terms(1, Mode::SubWrite, start, start + 1)
    };
    // These claims have no elements, so they block no other claim.
    for at in 0..ENTRIES as u64 - 2 {
        head.claim(&terms(2, Mode::Read, at, at)).unwrap();
    }
    let first = head.claim(&work(0)).unwrap();
    // The reason is decided with the claim: by the time of a second look the sibling may have gone,
    // and its entry with it.
    assert_eq!(head.claim(&work(1)), Err(full(true)));
    assert_eq!(
        head.claim(&terms(2, Mode::Read, 999, 999)),
        Err(full(false))
    );
    assert!(head.release(first, &work(0), Limit::Brief));
    head.claim(&terms(2, Mode::Read, 999, 999)).unwrap();
    assert_eq!(head.claim(&work(1)), Err(full(false)));
}

#[test]
fn a_clash_with_a_worker_tells_the_elements_that_its_call_was_lent() {
    let head = head();
    head.top.len.store(8, Ordering::Relaxed);
    let (_, lend) = head.lend(&terms(1, Mode::LendWrite, 0, 8)).unwrap();
    // This is the third tile.
    let work = Terms {
        lend,
        ..terms(2, Mode::SubWrite, 2, 3)
    };
    head.claim(&work).unwrap();
    let reported = Err(Refusal::Clash(Terms {
        start: 0,
        end: 8,
        ..work
    }));
    assert_eq!(head.claim(&work), reported);
    assert!(head.reclaim(1, soon()));
    assert_eq!(head.claim(&terms(3, Mode::Read, 7, 8)), reported);
}

#[test]
fn who_waits_to_write_hears_that_the_array_is_frozen() {
    let head = head();
    let token = head.top.waiters.token();
    head.freeze(&terms(1, Mode::Read, 0, 8)).unwrap();
    let (word, seen) = token.word();
    assert_ne!(word.load(Ordering::Relaxed), seen, "it was not told");
}

#[test]
fn a_full_table_is_an_error_and_has_room_again() {
    let head = head();
    for at in 0..ENTRIES as u64 {
        head.claim(&terms(1, Mode::Read, at, at + 1)).unwrap();
    }
    let one_more = terms(1, Mode::Read, 1_000, 1_001);
    assert_eq!(head.claim(&one_more), Err(full(false)));
    // A claim that exists already is counted, and needs no new entry.
    head.claim(&terms(1, Mode::Read, 3, 4)).unwrap();
    assert!(head.release(7, &terms(1, Mode::Read, 7, 8), Limit::Brief));
    assert_eq!(head.claim(&one_more), Ok(7));
    let error = ClaimError::from(full(false));
    assert_eq!(error, ClaimError::TooManyClaims { limit: ENTRIES });
}

#[test]
fn a_lend_ends_when_the_last_of_its_workers_has_gone_and_takes_no_new_ones() {
    let head = head();
    let (number, lend) = head.lend(&terms(1, Mode::LendWrite, 0, 8)).unwrap();
    let work = |start| Terms {
        lend,
        ..terms(2, Mode::SubWrite, start, start + 1)
    };
    let first = head.claim(&work(0)).unwrap();
    std::thread::scope(|scope| {
        let ending = scope.spawn(|| head.end_lend(number, lend));
        // As soon as the lend is closing, no new claim is made.
        while let Ok(second) = head.claim(&work(1)) {
            assert!(head.release(second, &work(1), Limit::Brief));
        }
        assert_eq!(head.claim(&work(1)), Err(Refusal::Closed));
        assert!(!ending.is_finished());
        assert!(head.claim(&terms(3, Mode::Read, 7, 8)).is_err());
        assert!(head.release(first, &work(0), Limit::Brief));
        ending.join().unwrap();
    });
    assert_eq!(head.live().count(), 0);
    head.claim(&terms(3, Mode::Write, 0, 8)).unwrap();
}

#[test]
fn what_is_left_of_a_dead_lenders_workers_keeps_everybody_out() {
    let head = head();
    let (_, lend) = head.lend(&terms(1, Mode::LendWrite, 0, 8)).unwrap();
    let work = Terms {
        lend,
        ..terms(2, Mode::SubWrite, 0, 1)
    };
    let number = head.claim(&work).unwrap();
    assert!(head.reclaim(1, soon()));
    // The remaining claim is in units that only the lender knew.
    assert!(head.claim(&terms(3, Mode::Read, 7, 8)).is_err());
    assert_eq!(
        head.claim(&Terms {
            start: 2,
            end: 3,
            ..work
        }),
        Err(Refusal::Closed)
    );
    assert!(head.release(number, &work, Limit::Brief));
    head.claim(&terms(3, Mode::Read, 7, 8)).unwrap();
    assert_eq!(head.poison(), 0);
}

#[test]
fn noise_in_the_table_does_no_more_than_keep_others_out() {
    let head = head();
    let mut random = 1_u64;
    for entry in &head.entries {
        for word in [&entry.state, &entry.start, &entry.end, &entry.lend] {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            word.store(random, Ordering::Relaxed);
        }
    }
    head.top.used.store(u32::MAX, Ordering::Relaxed);
    let _ = head.claim(&terms(1, Mode::Read, 0, 8));
    let _ = head.lend(&terms(1, Mode::LendRead, 0, 8));
    assert!(head.release(usize::MAX, &terms(1, Mode::Read, 0, 8), Limit::Brief));
    for member in 0..u16::MAX {
        assert!(head.reclaim(member, soon()));
    }
}

#[test]
fn ranges_are_checked() {
    assert_eq!(within(.., 5), Ok(0..5));
    assert_eq!(within(1..=2, 5), Ok(1..3));
    assert_eq!(within(5.., 5), Ok(5..5));
    for (start, end) in [(0, 6), (4, 3), (6, 6), (usize::MAX, usize::MAX)] {
        assert!(within(start..end, 5).is_err());
    }
    assert!(within(..=usize::MAX, usize::MAX).is_err());
}

/// A waiter that has found the table locked looks again, also if other threads give back claims all
/// the time.
#[test]
fn notifications_do_not_keep_a_waiter_from_looking_again() {
    let head = head();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                head.top.waiters.notify_all();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let looks = Cell::new(0);
        let start = Instant::now();
        let looked = head.wait(
            Some(start + Duration::from_secs(20)),
            || {
                looks.set(looks.get() + 1);
                match looks.get() {
                    1 => Err(Refusal::Locked(None)),
                    _ => Ok(()),
                }
            },
            Refusal::is_locked,
        );
        stop.store(true, Ordering::Relaxed);
        assert_eq!(looked, Ok(()));
        assert!(start.elapsed() < Duration::from_secs(10), "{looked:?}");
    });
}

/// A claim is given back while a waiter looks and finds the table locked. The waiter is notified
/// once, and then its next look is put off.
#[test]
fn a_look_that_was_put_off_is_made_without_another_notification() {
    let head = head();
    let looks = Cell::new(0);
    let start = Instant::now();
    let looked = head.wait(
        Some(start + Duration::from_secs(20)),
        || {
            looks.set(looks.get() + 1);
            match looks.get() {
                1 => {
                    head.top.waiters.notify_all();
                    Err(Refusal::Locked(None))
                }
                _ => Ok(()),
            }
        },
        Refusal::is_locked,
    );
    assert_eq!(looked, Ok(()));
    assert!(start.elapsed() < Duration::from_secs(10), "{looked:?}");
}

/// Without these wake-ups a waiter looks by itself, some time later.
#[test]
fn what_makes_room_for_a_claim_wakes_who_waits() {
    type Change = fn(&ArrayHead, Number);
    let read = terms(1, Mode::Read, 0, 8);
    let changes: [(&str, Change); 3] = [
        ("a release", |head, number| {
            assert!(head.release(number, &terms(1, Mode::Read, 0, 8), Limit::Brief));
        }),
        ("a death", |head, _| assert!(head.reclaim(1, soon()))),
        ("the end of a lend", |head, _| {
            let (number, lend) = head.lend(&terms(2, Mode::LendRead, 0, 8)).unwrap();
            head.end_lend(number, lend);
        }),
    ];
    for (what, change) in changes {
        let head = head();
        let number = head.claim(&read).unwrap();
        let token = head.top.waiters.token();
        change(&head, number);
        let (word, seen) = token.word();
        assert_ne!(word.load(Ordering::Relaxed), seen, "{what}");
    }
}

/// Ends a thread while it holds the lock, as when a process is killed.
fn die_with_lock(head: &ArrayHead, is_writing: bool) {
    let dies = || {
        let lock = head.hold(|| None);
        if is_writing {
            head.top.writing.store(1, Ordering::Relaxed);
        }
        std::mem::forget(lock);
    };
    std::thread::scope(|scope| scope.spawn(dies).join().unwrap());
}

#[test]
fn an_element_that_was_half_set_is_counted_once() {
    let head = head();
    die_with_lock(&head, false);
    assert_eq!(head.poison(), 0, "nothing was being written");
    die_with_lock(&head, true);
    assert_eq!(head.poison(), 1);
    die_with_lock(&head, false);
    assert_eq!(head.poison(), 1, "it is counted already");
    // An element that is written whole does not count.
    let terms = terms(1, Mode::Write, 0, 1);
    head.write_in_place_of(&terms, || {}).unwrap();
    die_with_lock(&head, false);
    assert_eq!(head.poison(), 1);
}

#[test]
fn a_table_that_is_locked_is_refused_with_the_process_that_has_it() {
    let head = head();
    let (tell, is_locked) = std::sync::mpsc::channel();
    let (go, may_go) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let table = &head;
        scope.spawn(move || {
            let _lock = table.hold(|| None).unwrap();
            tell.send(()).unwrap();
            let _ = may_go.recv();
        });
        is_locked.recv().unwrap();
        let own = std::process::id();
        let refused = head.claim(&terms(1, Mode::Read, 0, 8)).unwrap_err();
        assert_eq!(refused, Refusal::Locked(Some(own)));
        assert_eq!(
            ClaimError::from(refused),
            ClaimError::Busy { by: Some(own) }
        );
        // A dead process is reclaimed later.
        assert!(!head.reclaim(1, Instant::now()));
        assert!(!head.release(0, &terms(1, Mode::Read, 0, 8), Limit::Until(Instant::now())));
        drop(go);
    });
    assert_eq!(
        Refusal::from(ShareError::Busy { by: Some(7) }),
        Refusal::Locked(Some(7))
    );
    head.claim(&terms(1, Mode::Read, 0, 8)).unwrap();
}

/// The table is locked for longer than a claim without a timeout waits.
#[test]
fn calls_with_a_time_wait_for_a_table_that_is_locked_and_others_say_who_has_it() {
    use crate::{Pool, SharedArray};
    const TIME: Duration = Duration::from_secs(30);
    type Call = fn(&SharedArray<u64>) -> bool;
    let calls: [Call; 3] = [
        |array| array.read_timeout(TIME).is_ok(),
        |array| array.write_range_timeout(1..3, TIME).is_ok(),
        // A call that lends the array has no timeout, and waits.
        |array| {
            let lent = Pool::serial().for_each_chunk(&mut array.clone(), 8, |_, _: &mut [u64]| {});
            lent.is_ok()
        },
    ];
    let array = SharedArray::<u64>::zeros(8).unwrap();
    let table = array.object.head();
    for (number, call) in calls.into_iter().enumerate() {
        std::thread::scope(|scope| {
            let held = table.hold(|| None).unwrap();
            let waiter = scope.spawn(|| call(&array));
            let refused = scope.spawn(|| array.try_read().map(drop)).join().unwrap();
            let by = Some(std::process::id());
            assert_eq!(refused, Err(ClaimError::Busy { by }));
            let refused = scope.spawn(|| array.get(0)).join().unwrap();
            assert_eq!(refused, Err(ClaimError::Busy { by }));
            assert!(!waiter.is_finished(), "call {number} has not waited");
            drop(held);
            assert!(waiter.join().unwrap(), "call {number}");
        });
    }
}
