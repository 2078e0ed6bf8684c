//! Models of the ring: two cells, or one, of the real words, and contents that loom watches.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::Claim;
use super::word::{FREE, Word, state};

#[derive(Default)]
struct Slot {
    word: Word,
    // Two of them, so that a torn message is one whose halves differ.
    content: UnsafeCell<[u32; 2]>,
}

/// The steps of `Writer::send` and of a reader, for messages of one cell.
struct Model<const CELLS: usize>([Slot; CELLS]);

// SAFETY: loom finds out whether two threads touch a content at the same time.
unsafe impl<const CELLS: usize> Sync for Model<CELLS> {}

impl<const CELLS: usize> Model<CELLS> {
    fn new() -> Arc<Self> {
        Arc::new(Self([(); CELLS].map(|()| Slot::default())))
    }

    fn at(&self, position: usize) -> (&Slot, u32) {
        (&self.0[position % CELLS], (position / CELLS) as u32)
    }

    fn send(&self, position: usize) {
        let (slot, lap) = self.at(position);
        while slot.word.look() != state(lap, FREE) {
            thread::yield_now();
        }
        let content = [position as u32 + 1; 2];
        // SAFETY: the pointer is valid; loom checks that no other thread uses it.
        slot.content.with_mut(|place| unsafe { *place = content });
        slot.word.publish(lap);
    }

    /// Returns whether there was a message for the reader.
    fn receive(&self, position: usize) -> bool {
        let (slot, lap) = self.at(position);
        while slot.word.look() == state(lap, FREE) {
            thread::yield_now();
        }
        let claim = slot.word.claim(lap);
        if claim == Claim::Taken {
            // SAFETY: as in `send`.
            let content = slot.content.with(|place| unsafe { *place });
            assert_eq!(content, [position as u32 + 1; 2]);
        }
        assert_ne!(claim, Claim::Corrupted);
        slot.word.release(lap);
        claim == Claim::Taken
    }
}

#[test]
fn every_message_comes_once_in_order_and_whole_through_a_full_ring() {
    loom::model(|| {
        let ring = Model::<2>::new();
        let writer = ring.clone();
        let writer = thread::spawn(move || (0..4).for_each(|position| writer.send(position)));
        for position in 0..4 {
            assert!(ring.receive(position));
        }
        writer.join().unwrap();
    });
}

#[test]
fn a_message_is_the_readers_or_the_writers_again() {
    loom::model(|| {
        let ring = Model::<1>::new();
        let writer = ring.clone();
        let writer = thread::spawn(move || {
            writer.send(0);
            let (slot, lap) = writer.at(0);
            let is_back = slot.word.take_back(lap);
            writer.send(1);
            is_back
        });
        let is_taken = ring.receive(0);
        assert!(ring.receive(1));
        assert_eq!(writer.join().unwrap(), !is_taken);
    });
}
