//! Ledgers that are full, used up, or corrupted.

use super::super::registry;
use super::*;

fn made(family: &Family, len: u64) -> BlockId {
    let (id, _) = family.allocate(len, Kind::Value, 0, 0, None).unwrap();
    family.publish(id);
    id
}

fn release(family: &Family, id: BlockId) {
    let mut reached = Stage::First;
    assert!(family.release_empty(id, 0, &mut reached, Limit::Brief));
}

#[test]
fn a_larger_free_block_is_given_when_the_addresses_are_used_up() {
    let family = Family::new().unwrap();
    let larger = made(&family, 1_000);
    release(&family, larger);
    family
        .header()
        .small_top
        .store(SMALL_END, Ordering::Relaxed);
    let given = made(&family, 1);
    assert_eq!(given.index, larger.index);
    assert_eq!(family.in_use(), (1, 1));
    let refused = family.allocate(1, Kind::Value, 0, 0, None).unwrap_err();
    match refused {
        ShareError::OutOfMemory { bytes, reason } => {
            assert_eq!(bytes, 64);
            assert!(reason.contains("used up"), "{reason}");
        }
        other => panic!("{other}"),
    }
    // Large blocks have addresses of their own.
    made(&family, 1 << 20);
    release(&family, given);
    assert_eq!(made(&family, 500).index, larger.index);
}

/// The block's generation would begin anew, and an old handle be taken for one of the new object.
#[test]
fn a_block_whose_generations_are_used_up_is_never_given_out_again() {
    let family = Family::new().unwrap();
    let old = made(&family, 1);
    let block = family.block(old.index).unwrap();
    block.set(State {
        generation: u32::MAX - 1,
        ..block.state()
    });
    let last = BlockId {
        generation: u32::MAX - 1,
        ..old
    };
    release(&family, last);
    assert!(block.state().is(Phase::Free));
    assert_ne!(made(&family, 1).index, old.index);
    let lock = family.lock(|| None).unwrap();
    family.repair();
    drop(lock);
    assert_ne!(made(&family, 1).index, old.index);
}

/// Returns whether a small block can be found after `spoil` has written to its entry.
fn can_be_found(spoil: impl FnOnce(&Block)) -> bool {
    let family = Family::new().unwrap();
    let id = made(&family, 100);
    let block = family.block(id.index).unwrap();
    spoil(block);
    registry::place_of(&family, id.index, block).is_ok()
}

#[test]
fn an_entry_that_another_process_has_corrupted_is_refused() {
    assert!(can_be_found(|_| {}));
    let spoils: [fn(&Block); 6] = [
        // The object is longer than its block.
        |block| block.len.store(129, Ordering::Relaxed),
        |block| block.len.store(u64::MAX, Ordering::Relaxed),
        // The order does not exist.
        |block| block.order.store(ORDERS as u32, Ordering::Relaxed),
        |block| {
            block.offset.store(0, Ordering::Relaxed);
            block.order.store(64, Ordering::Relaxed);
        },
        // The block lies across the end of its place.
        |block| block.offset.store(block.offset() + 8, Ordering::Relaxed),
        // No small blocks lie there.
        |block| block.offset.store(1 << 45, Ordering::Relaxed),
    ];
    for (number, spoil) in spoils.into_iter().enumerate() {
        assert!(!can_be_found(spoil), "way {number}");
    }
}
