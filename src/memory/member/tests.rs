//! Processes that reclaim what a dead member has left, and are killed or stopped themselves between
//! any two steps. Another process finishes the work. Then all counts are right, and nothing has
//! been given back twice.

use std::collections::BTreeSet;

use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;

use super::*;
use crate::memory::entry::{BlockId, Phase};
use crate::memory::kind::Kind;
use crate::os::fault::{self, Child, Fate};
use crate::sync::{RwLock, Semaphore};
use crate::{Queue, SharedArray};

/// The most time that a call may take that waits a millisecond at most, on a busy machine.
const IN_TIME: Duration = Duration::from_secs(10);

const SMALL: u64 = 100;
const LARGE: u64 = 1 << 20;

/// A family of this test's own, in which member 0 has died and member 1 lives.
struct Estate {
    family: Family,
    /// Blocks that the dead member alone holds; the last of them is not finished.
    sole: [BlockId; 4],
    /// Blocks that the other member holds too, or that are under way in a message.
    needed: [BlockId; 2],
}

/// A pid that no process has: the kernel's are below 2^22.
const GONE: u32 = 1 << 30;

impl Estate {
    fn new(is_full: bool) -> Self {
        let family = Family::new().unwrap();
        {
            let _lock = family.lock(|| None).unwrap();
            let own = std::process::id();
            let started = start_of(own).unwrap();
            for (pid, started) in [(GONE, 1), (own, started)] {
                let (_, slot) = family.free_slot().unwrap();
                slot.begin(pid, started, Life::Alive);
            }
        }
        let made = |len, is_finished| {
            let allocated = family.allocate(len, Kind::Value, 0, 0, None);
            let (id, _) = allocated.unwrap();
            if is_finished {
                family.publish(id);
            }
            id
        };
        let sole = [
            made(SMALL, true),
            made(LARGE, true),
            made(LARGE, true),
            made(SMALL, false),
        ];
        let needed = [made(SMALL, true), made(SMALL, true)];
        {
            let lock = family.lock(|| None).unwrap();
            family.join(&lock, needed[0], 1, false).unwrap();
        }
        family.launch(needed[1]);
        if is_full {
            // As if so many bytes were kept that the memory of more blocks has to be given back.
            family.header().kept.store(64 << 20, Ordering::Relaxed);
        }
        Self {
            family,
            sole,
            needed,
        }
    }

    fn reclaim(&self, limit: Duration) {
        self.family
            .reclaim_if(Some(Instant::now() + limit), |_| true);
    }

    fn check(&self, is_full: bool, what: &str) {
        let family = &self.family;
        assert!(
            family.slots()[0].is(Life::Free),
            "the place is free: {what}"
        );
        assert!(family.slots()[1].is(Life::Alive), "{what}");
        let block = |id: BlockId| family.block(id.index).unwrap();
        for id in self.sole {
            let state = block(id).state();
            assert!(state.is(Phase::Free), "{id:?} is free: {what}");
            assert_eq!(state.generation, id.generation + 1, "{what}");
        }
        let holders = self.needed.map(|id| {
            let block = block(id);
            assert!(block.state().is(Phase::Live), "{id:?} is needed: {what}");
            let held = [0, 1].map(|member| block.is_held_by(member));
            (held, block.holders.in_flight())
        });
        assert_eq!(holders, [([false, true], 0), ([false, false], 1)], "{what}");
        assert_eq!(family.in_use(), (2, 2 * SMALL), "{what}");
        if !is_full {
            let kept = family.header().kept.load(Ordering::Relaxed);
            assert_eq!(kept, 2 * LARGE, "bytes that are kept: {what}");
        }
        // A block that is on a list twice would be given out twice; one that is on no list, never.
        let mut given = BTreeSet::from(self.needed.map(|id| id.index));
        let mut come_back = 0;
        for len in [SMALL, SMALL, SMALL, LARGE, LARGE, LARGE] {
            let (id, _) = family.allocate(len, Kind::Value, 0, 1, None).unwrap();
            assert!(given.insert(id.index), "{id:?} is given out twice: {what}");
            come_back += usize::from(self.sole.iter().any(|old| old.index == id.index));
        }
        assert_eq!(come_back, 4, "blocks that have come back: {what}");
    }
}

const FATES: [Fate; 3] = [Fate::Killed, Fate::Paused, Fate::KilledLater];

#[test]
fn a_reclaim_that_is_cut_short_at_any_step_is_finished_by_another_process() {
    for is_full in [false, true] {
        for fate in FATES {
            for number in 0.. {
                let what = format!("{fate:?} at fault point {number}");
                let estate = Estate::new(is_full);
                let child = Child::run(fate, number, || estate.reclaim(IN_TIME));
                if child.is_stopped() {
                    let start = Instant::now();
                    estate.reclaim(Duration::from_millis(1));
                    let soon = || Some(Instant::now() + Duration::from_millis(1));
                    drop(estate.family.lock(soon));
                    assert!(start.elapsed() < IN_TIME, "{what}");
                }
                let is_through = child.end();
                estate.reclaim(IN_TIME);
                estate.check(is_full, &what);
                if is_through {
                    assert!(number > 20, "there are only {number} fault points");
                    break;
                }
            }
        }
    }
}

/// Two processes that reclaim are killed one after the other, at any two steps.
#[test]
fn a_reclaim_is_finished_after_two_that_were_cut_short() {
    for first in (0..).step_by(2) {
        let mut is_first_through = false;
        for second in (0..).step_by(3) {
            let what = format!("killed at fault points {first} and {second}");
            let estate = Estate::new(second % 2 == 0);
            let reclaim = || estate.reclaim(IN_TIME);
            is_first_through = Child::run(Fate::Killed, first, reclaim).end();
            let is_through = Child::run(Fate::Killed, second, reclaim).end();
            estate.reclaim(IN_TIME);
            estate.check(second % 2 == 0, &what);
            if is_through {
                break;
            }
        }
        if is_first_through {
            break;
        }
    }
}

/// A process that becomes a member is killed between any two steps: its slot is free again.
#[test]
fn a_place_that_was_half_taken_is_free_again() {
    for fate in FATES {
        for number in 0.. {
            let estate = Estate::new(false);
            let family = &estate.family;
            let child = Child::run(fate, number, || {
                let _lock = family.lock(|| None).unwrap();
                let own = std::process::id();
                let started = start_of(own).unwrap();
                let (_, slot) = family.free_slot().unwrap();
                slot.begin(own, started, Life::Alive);
            });
            if child.is_stopped() {
                // The stopped process has the lock: the dead member is left for later.
                estate.reclaim(Duration::from_millis(1));
            }
            let is_through = child.end();
            estate.reclaim(IN_TIME);
            estate.check(false, &format!("{fate:?} at fault point {number}"));
            let is_free = |slot: &Slot| slot.is(Life::Free);
            assert!(family.slots().iter().skip(2).all(is_free));
            if is_through {
                assert!(number > 2);
                break;
            }
        }
    }
}

/// Checks what the objects themselves have to do for a member that has died.
#[test]
fn what_a_dead_process_held_comes_back_once_though_its_reclaimer_dies_too() {
    /// Other tests of this process may reclaim the dead before the child does.
    const MOST_TRIES: usize = 50;
    let _alone = fault::alone();
    for fate in FATES {
        let mut number = 0;
        let mut tries = 0;
        loop {
            let what = format!("{fate:?} at fault point {number}");
            let semaphore = Semaphore::new(5).unwrap();
            let lock = RwLock::new(1_u64).unwrap();
            let array = SharedArray::<u64>::zeros(8).unwrap();
            let queue = Queue::<u64>::bounded(4).unwrap();
            queue.push(1).unwrap();
            let holder = Child::run(Fate::KilledLater, i64::MAX - 1, || {
                std::mem::forget(semaphore.acquire_many(2));
                std::mem::forget(semaphore.acquire());
                std::mem::forget(lock.write());
                std::mem::forget(array.try_write_range(1..3));
                queue.pop().unwrap();
                raise(Signal::SIGSTOP).unwrap();
            });
            assert!(holder.is_stopped());
            assert_eq!(semaphore.available(), 2);
            let pid = holder.pid();
            let started = start_of(pid).unwrap();
            let child = Child::run(fate, number, || {
                kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
                while life::is_running(pid, started) {
                    std::thread::yield_now();
                }
                reclaim_dead_by(Instant::now() + IN_TIME);
            });
            if child.is_stopped() {
                let start = Instant::now();
                let moment = Duration::from_millis(1);
                drop(semaphore.acquire_timeout(moment));
                drop(lock.read_timeout(moment));
                drop(array.read_timeout(moment));
                let _ = queue.try_push(2);
                assert!(start.elapsed() < IN_TIME, "{what}");
            }
            let is_through = child.end();
            assert!(!holder.end());
            let end = Instant::now() + IN_TIME;
            let is_there = || {
                reclaim_dead();
                lock.clear_poison();
                semaphore.available() >= 5 && lock.try_write().is_ok() && array.try_write().is_ok()
            };
            while !is_there() {
                assert!(Instant::now() < end, "not all has come back: {what}");
            }
            assert_eq!(semaphore.available(), 5, "given back twice: {what}");
            let numbers = family::if_any().unwrap().slots();
            let is_left = |slot: &Slot| slot.pid() == pid && !slot.is(Life::Free);
            while numbers.iter().any(is_left) {
                assert!(Instant::now() < end, "the place is not free: {what}");
                reclaim_dead();
            }
            if !is_through {
                number += 1;
                tries = 0;
            } else if number < 10 && tries < MOST_TRIES {
                tries += 1;
            } else {
                assert!(number >= 10, "there are only {number} fault points");
                break;
            }
        }
    }
}

/// Makes a family of so many members, of which the one with number `dead` has ended.
fn family_of(members: u16, dead: u16) -> Family {
    let family = Family::new().unwrap();
    let own = std::process::id();
    let started = start_of(own).unwrap();
    for number in 0..members {
        let (at, slot) = family.free_slot().unwrap();
        assert_eq!(at, number);
        let (pid, started) = if number == dead {
            (GONE, 1)
        } else {
            (own, started)
        };
        slot.begin(pid, started, Life::Alive);
    }
    family
}

#[test]
fn a_few_beats_find_the_dead_member_whatever_its_number() {
    for (members, dead) in [
        (1, 0),
        (33, 32),
        (100, 0),
        (100, 50),
        (100, 99),
        (MEMBERS as u16, 1_023),
    ] {
        let family = family_of(members, dead);
        let beats = usize::from(members).div_ceil(BEAT).min(MOST_BEATS);
        let found = (0..beats).any(|_| family.has_dead_on_this_beat());
        assert!(found, "number {dead} of {members}");
        family.reclaim_if(Some(Instant::now() + IN_TIME), |_| true);
        let found = (0..beats).any(|_| family.has_dead_on_this_beat());
        assert!(!found, "number {dead} of {members} is found again");
    }
}

/// Members that are not in the way are not looked at, however many there are.
#[test]
fn b142_a_dead_member_that_is_in_the_way_is_met_at_the_first_poll_in_a_full_family() {
    let is_free = |family: &Family, number: u16| family.slots()[usize::from(number)].is(Life::Free);
    for dead in [0, 500, MEMBERS as u16 - 1] {
        let family = family_of(MEMBERS as u16, dead);
        let poll = PollOfHolders::default();
        let others = (0..3).map(|other| (dead + 100 + other) % MEMBERS as u16);
        poll.look(&family, others.clone());
        assert!(!is_free(&family, dead), "number {dead} is not in the way");
        poll.look(&family, others.chain([dead]));
        assert!(is_free(&family, dead), "number {dead}");
    }
    // Many are in the way: they are looked at in turn.
    let family = family_of(200, 150);
    let poll = PollOfHolders::default();
    let polls = 200_usize.div_ceil(BEAT);
    for _ in 0..polls {
        poll.look(&family, 0..200);
    }
    assert!(is_free(&family, 150));
    // None is in the way.
    poll.look(&family, 0..0);
}

#[test]
fn a_full_family_has_a_place_again_when_a_member_has_gone() {
    let family = family_of(MEMBERS as u16, 700);
    assert!(family.free_slot().is_none());
    family.reclaim_if(Some(Instant::now() + IN_TIME), |_| true);
    assert_eq!(family.free_slot().unwrap().0, 700);
}

#[test]
fn a_process_in_another_namespace_is_refused() {
    let family = Family::new().unwrap();
    let header = family.header();
    family.check_namespaces().unwrap();
    for word in [&header.pids, &header.times] {
        let own = word.load(Ordering::Relaxed);
        word.store(own + 1, Ordering::Relaxed);
        // A kernel without such namespaces says 0.
        assert_eq!(family.check_namespaces().is_err(), own != 0);
        word.store(0, Ordering::Relaxed);
        family.check_namespaces().unwrap();
        word.store(own, Ordering::Relaxed);
    }
}

#[test]
fn a_place_that_was_given_up_is_not_taken_by_the_process_that_was_expected() {
    let family = family_of(1, 0);
    let (_, slot) = family.free_slot().unwrap();
    let own = std::process::id();
    let uses = slot.begin(own, start_of(own).unwrap(), Life::Expected);
    assert!(slot.is_expected(uses));
    slot.set(Life::Free);
    assert!(!slot.is_expected(uses));
    let later = slot.begin(own, start_of(own).unwrap(), Life::Expected);
    assert!(slot.is_expected(later) && !slot.is_expected(uses));
    // The process of the slot has arrived.
    slot.set(Life::Alive);
    assert!(!slot.is_expected(later));
}
