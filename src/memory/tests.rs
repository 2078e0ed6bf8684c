//! Blocks against a simple model, and what a process leaves that dies with the ledger locked.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::entry::BlockId;
use super::error::ShareError;
use super::family::Family;
use super::kind::Kind;
use crate::os::fork::Victim;

#[derive(Clone, Debug)]
enum Step {
    Make {
        len: u64,
        member: u16,
    },
    /// Makes a member hold a block too. `which` wraps around at the number of blocks.
    Join {
        which: usize,
        member: u16,
    },
    Release {
        which: usize,
        member: u16,
    },
    Launch {
        which: usize,
    },
    Land {
        which: usize,
        member: u16,
    },
    Repair,
}

/// Some members share a word of the block's holders, and some have the same bit in another word.
const MEMBERS: [u16; 5] = [0, 31, 63, 64, 1_023];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![0..300_u64, 1_000..100_000_u64, Just(3 << 20)];
    let member = proptest::sample::select(&MEMBERS[..]);
    let which = 0..64_usize;
    let step = prop_oneof![
        4 => (len, member.clone()).prop_map(|(len, member)| Step::Make { len, member }),
        2 => (which.clone(), member.clone()).prop_map(|(which, member)| Step::Join { which, member }),
        6 => (which.clone(), member.clone()).prop_map(|(which, member)| Step::Release { which, member }),
        1 => which.clone().prop_map(|which| Step::Launch { which }),
        1 => (which, member).prop_map(|(which, member)| Step::Land { which, member }),
        1 => Just(Step::Repair),
    ];
    proptest::collection::vec(step, 1..200)
}

/// What the model knows of a block.
#[derive(Debug, Default)]
struct Known {
    len: u64,
    holders: Vec<u16>,
    in_flight: u32,
}

impl Known {
    fn is_over(&self) -> bool {
        self.holders.is_empty() && self.in_flight == 0
    }
}

fn join(family: &Family, id: BlockId, member: u16, was_in_flight: bool) -> Result<(), ShareError> {
    let lock = family.lock(|| None)?;
    family.join(&lock, id, member, was_in_flight).map(|_| ())
}

fn release(
    family: &Family,
    id: BlockId,
    member: u16,
    take_apart: impl FnOnce(&super::entry::Block),
) {
    let mut reached = super::entry::Stage::First;
    assert!(family.release(
        id,
        member,
        &mut reached,
        super::deferred::Limit::Brief,
        Some(take_apart)
    ));
}

fn made(family: &Family, len: u64, member: u16) -> BlockId {
    let (id, _) = family.allocate(len, Kind::Value, 0, member, None).unwrap();
    family.publish(id);
    id
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn b79_blocks_are_apart_and_come_back_as_the_model_says(steps in steps()) {
        let family = Family::new().unwrap();
        let mut known: BTreeMap<(u32, u32), Known> = BTreeMap::new();
        let mut gone: Vec<BlockId> = Vec::new();
        let nth = |known: &BTreeMap<(u32, u32), Known>, which: usize| {
            let (&(index, generation), _) = known.iter().nth(which % known.len().max(1))?;
            Some(BlockId { index, generation })
        };
        for step in steps {
            match step {
                Step::Make { len, member } => {
                    let id = made(&family, len, member);
                    let block = Known { len, holders: vec![member], in_flight: 0 };
                    prop_assert!(known.insert((id.index, id.generation), block).is_none());
                }
                Step::Join { which, member } => {
                    let Some(id) = nth(&known, which) else { continue };
                    prop_assert!(join(&family, id, member, false).is_ok());
                    let holders = &mut known.get_mut(&(id.index, id.generation)).unwrap().holders;
                    if !holders.contains(&member) {
                        holders.push(member);
                    }
                }
                Step::Release { which, member } => {
                    let Some(id) = nth(&known, which) else { continue };
                    release(&family, id, member, |_| {});
                    let block = known.get_mut(&(id.index, id.generation)).unwrap();
                    block.holders.retain(|&holder| holder != member);
                    // The block can only end when one of its holders lets go.
                    if block.is_over() {
                        known.remove(&(id.index, id.generation));
                        gone.push(id);
                    }
                }
                Step::Launch { which } => {
                    let Some(id) = nth(&known, which) else { continue };
                    family.launch(id);
                    known.get_mut(&(id.index, id.generation)).unwrap().in_flight += 1;
                }
                Step::Land { which, member } => {
                    let Some(id) = nth(&known, which) else { continue };
                    let block = known.get_mut(&(id.index, id.generation)).unwrap();
                    if block.in_flight > 0 {
                        prop_assert!(join(&family, id, member, true).is_ok());
                        block.in_flight -= 1;
                        if !block.holders.contains(&member) {
                            block.holders.push(member);
                        }
                    }
                }
                Step::Repair => {
                    let _lock = family.lock(|| None).unwrap();
                    family.repair();
                }
            }
            let bytes = known.values().map(|block| block.len).sum::<u64>();
            prop_assert_eq!(family.in_use(), (known.len(), bytes));
            for id in &gone {
                prop_assert!(join(&family, *id, 0, false).is_err());
            }
            let mut places: Vec<(u64, u64)> = Vec::new();
            for (&(index, _), block) in &known {
                let entry = family.block(index).unwrap();
                prop_assert!(block.len <= 1 << entry.order());
                prop_assert_eq!(entry.offset() % (1 << entry.order()), 0);
                places.push((entry.offset(), entry.offset() + (1 << entry.order())));
            }
            places.sort_unstable();
            prop_assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        }
        // All that hold anything let go.
        for (&(index, generation), block) in &known {
            let id = BlockId { index, generation };
            for _ in 0..block.in_flight {
                join(&family, id, 0, true).unwrap();
            }
            for member in MEMBERS {
                release(&family, id, member, |_| {});
            }
        }
        prop_assert_eq!(family.in_use(), (0, 0));
        // At most the memory that is kept, and what small blocks and the ledger take up.
        prop_assert!(family.memory.reserved().unwrap() < (64 + 16) << 20);
    }
}

#[test]
fn large_blocks_are_given_back_and_the_last_are_kept() {
    let family = Family::new().unwrap();
    let start = family.memory.reserved().unwrap();
    let blocks: Vec<BlockId> = (0..5).map(|_| made(&family, 30 << 20, 0)).collect();
    let full = family.memory.reserved().unwrap();
    assert!(full >= start + (150 << 20));
    for id in &blocks {
        release(&family, *id, 0, |_| {});
    }
    let kept = family.memory.reserved().unwrap();
    assert!((30 << 20..=65 << 20).contains(&(kept - start)), "{kept}");
    // The count of kept bytes is right, however often the block is used and released.
    for _ in 0..5 {
        release(&family, made(&family, 30 << 20, 0), 0, |_| {});
        assert_eq!(family.memory.reserved().unwrap(), kept);
        let booked = family
            .header()
            .kept
            .load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(booked, 60 << 20);
    }
    // The block is used again.
    let (id, is_zero) = family.allocate(30 << 20, Kind::Array, 0, 0, None).unwrap();
    assert!(!is_zero);
    assert!(blocks.iter().any(|old| old.index == id.index));
    assert_eq!(family.memory.reserved().unwrap(), kept);
    // A block whose memory was given back comes as zeros.
    let (_, is_zero) = family.allocate(30 << 20, Kind::Array, 0, 0, None).unwrap();
    let (_, is_new_zero) = family.allocate(30 << 20, Kind::Array, 0, 0, None).unwrap();
    assert!(is_zero || is_new_zero);
}

#[test]
fn whoever_dies_with_the_ledger_locked_costs_nothing() {
    let family = Family::new().unwrap();
    let (held, free) = (made(&family, 100, 0), made(&family, 100, 0));
    release(&family, free, 0, |_| {});
    // The victim dies when it has taken the block off the list, and no process has the block.
    let victim = Victim::fork(|| {
        let lock = family.lock(|| None).unwrap();
        family.header().free[7].store(0, std::sync::atomic::Ordering::SeqCst);
        family.block(free.index).unwrap().holders.insert(3);
        std::mem::forget(lock);
    });
    victim.kill();
    assert_eq!(family.in_use(), (1, 100));
    let again = made(&family, 100, 1);
    assert_eq!(again.index, free.index);
    assert!(!family.block(again.index).unwrap().is_held_by(3));
    assert!(join(&family, held, 1, false).is_ok());
}

#[test]
fn an_index_that_cannot_be_is_no_block() {
    let family = Family::new().unwrap();
    made(&family, 1, 0);
    for index in [1, 1 << 20, u32::MAX] {
        let id = BlockId {
            index,
            generation: 0,
        };
        assert!(join(&family, id, 0, false).is_err());
        release(&family, id, 0, |_| {});
    }
    // Also if a process has written nonsense into the ledger.
    family
        .header()
        .blocks
        .store(u32::MAX, std::sync::atomic::Ordering::SeqCst);
    assert!(family.block(1 << 20).is_none());
}

#[test]
fn a_block_that_was_not_finished_gives_all_its_memory_back() {
    let family = Family::new().unwrap();
    let start = family.memory.reserved().unwrap();
    let (id, _) = family.allocate(30 << 20, Kind::Array, 0, 3, None).unwrap();
    // As after a death: how much of the block was reserved is not known for certain.
    release(&family, id, 3, |_| unreachable!("nothing was put together"));
    assert!(family.memory.reserved().unwrap() < start + (1 << 20));
    assert_eq!(family.in_use(), (0, 0));
}

#[test]
fn small_objects_leave_room_for_large_ones_and_say_when_there_are_too_many() {
    let family = Family::new().unwrap();
    let small = || family.allocate(1, Kind::Value, 0, 0, None);
    let blocks: Vec<BlockId> = std::iter::from_fn(|| Some(small().ok()?.0)).collect();
    assert!(blocks.len() > 900_000);
    let error = small().unwrap_err();
    assert!(
        matches!(error, ShareError::TooManyObjects { limit } if limit == blocks.len()),
        "{error}"
    );
    let large = made(&family, 1 << 20, 0);
    release(&family, large, 0, |_| {});
    for id in &blocks {
        release(&family, *id, 0, |_| {});
    }
    assert_eq!(family.in_use(), (0, 0));
    assert!(small().is_ok());
}

/// Two threads of a process let go of a block at the same time: the second one finds it ending, and
/// leaves it alone.
#[test]
fn a_block_is_given_back_once() {
    let family = Family::new().unwrap();
    let made = || {
        let (id, _) = family.allocate(1_000, Kind::Queue, 0, 0, None).unwrap();
        family.publish(id);
        id
    };
    let id = made();
    let mut takes = 0;
    release(&family, id, 0, |_| {
        takes += 1;
        release(&family, id, 0, |_| {
            unreachable!("it is taken apart already")
        });
    });
    assert_eq!(takes, 1);
    // If the block were on the list twice, it would be given out twice.
    let (one, other) = (made(), made());
    assert_eq!(one.index, id.index);
    assert_ne!(one.index, other.index);
    // A handle from before means nothing to the block that lies there now.
    release(&family, id, 0, |_| unreachable!("it is another block"));
    assert_eq!(family.in_use().0, 2);
}
