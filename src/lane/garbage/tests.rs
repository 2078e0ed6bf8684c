//! Property tests over scripts: noise, and what is right with a little damage.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::codec;
use crate::lane::message::Fault;
use crate::panic::Caught;

/// An allocator that notes the largest block of memory that each thread asks for.
struct Noting;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // Fails while the thread ends, and notes nothing then.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

// SAFETY: hands everything on to the system's allocator; the cell it writes allocates nothing.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(start, layout, size) }
    }
}

#[global_allocator]
static NOTING: Noting = Noting;

/// Runs a script and checks what memory was asked for meanwhile.
fn run(script: &[u8]) -> Report {
    LARGEST.set(0);
    let report = super::run(script);
    // A growing vector doubles. What the script itself sends takes up to 16 KiB for a fault and 204
    // KiB for a result.
    let most = 2 * (report.taken + RING_BYTES) + (512 << 10);
    let largest = LARGEST.get();
    assert!(largest <= most, "{largest} bytes at once, of {report:?}");
    report
}

/// Results of all sizes, sent and taken, without damage.
fn sane() -> impl Strategy<Value = Vec<u8>> {
    let send =
        (64u8..192, any::<u8>(), any::<u8>()).prop_map(|(op, kind, len)| vec![op, kind, len]);
    let take = (224u8.., any::<u8>()).prop_map(|(op, most)| vec![op, most]);
    let operations = vec(prop_oneof![3 => send, 1 => take], 0..60);
    (any::<[u8; 3]>(), operations).prop_map(|(task, rest)| [&task[..], &rest.concat()].concat())
}

/// One thing that is wrong.
fn damage() -> impl Strategy<Value = Vec<u8>> {
    // Mostly in the first cells: the others are often not in use.
    let cell = prop_oneof![3 => 0u8..3, 1 => any::<u8>()];
    let value =
        prop_oneof![3 => (7u8..20).prop_map(|odd| [odd, 0, 0, 0, 0]), 1 => any::<[u8; 5]>()];
    let spoil = (0u8..10, cell, any::<u8>(), value).prop_map(|(kind, cell, field, value)| {
        let mut bytes = vec![kind, cell];
        if matches!(kind, 4 | 9) {
            bytes.push(field);
        }
        bytes.extend(value);
        bytes
    });
    let lie =
        (any::<u8>(), 7u8.., 0u8..2).prop_map(|(kind, count, ends)| vec![60, kind, count, ends]);
    prop_oneof![2 => spoil, 1 => lie]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_noise_is_an_error_or_items(script in vec(any::<u8>(), 0..600)) {
        run(&script);
    }

    #[test]
    fn what_is_right_is_accepted(script in sane()) {
        prop_assert_eq!(run(&script).refused, None);
    }

    #[test]
    fn what_is_right_but_for_a_little_is_an_error_or_items(
        before in sane(),
        damage in vec(damage(), 1..4),
        after in sane(),
    ) {
        run(&[before, damage.concat(), after].concat());
    }

    /// A correct stream in the ring, of which single bytes change before the parent looks.
    #[test]
    fn bytes_that_flip_are_an_error_or_items(
        task in any::<[u8; 3]>(),
        sends in vec((any::<u8>(), any::<u8>()), 1..8),
        flips in vec((0u8..6, 0u8..100, any::<u8>()), 1..6),
    ) {
        let mut script = task.to_vec();
        for (kind, len) in sends {
            script.extend([64, kind, len]);
        }
        for (cell, at, byte) in flips {
            let offset = (RING_BYTES + usize::from(cell) * CELL_BYTES + usize::from(at)) as u32;
            script.push(7);
            script.push(0);
            script.extend(offset.to_le_bytes());
            script.push(byte);
        }
        run(&script);
    }

    #[test]
    fn any_last_words_are_text_or_none(len: u32, noise in vec(any::<u8>(), 0..200)) {
        let lane = Lane::new().unwrap();
        let words = lane.header().crash_report();
        for len in [len, noise.len() as u32, len % (TEXT_BYTES as u32 + 2)] {
            words.spoil(len, &noise);
            let read = words.read();
            prop_assert!(read.is_none_or(|caught| caught.message.len() <= len as usize));
        }
    }

    #[test]
    fn any_fault_is_read_or_refused(message in ".*", at: prop::sample::Index, byte: u8) {
        let mut bytes = Vec::new();
        let fault = Fault::Panicked(Caught::saying(message));
        codec::exact::to_vec_append(&mut bytes, &fault).unwrap();
        prop_assert_eq!(codec::exact::from_slice::<Fault>(&bytes), Ok(fault));
        let at = at.index(bytes.len());
        bytes[at] = byte;
        LARGEST.set(0);
        let _ = codec::exact::from_slice::<Fault>(&bytes);
        prop_assert!(LARGEST.get() <= bytes.len() + 1_024);
    }

    #[test]
    fn any_records_are_counted_or_refused(bytes in vec(0u8..4, 0..200), count in 0usize..100) {
        if let Some(len) = codec::records_len(&bytes, count) {
            prop_assert!(len <= bytes.len() && len >= count * codec::LENGTH_BYTES);
        }
    }
}

/// A script of a task of `8 eights + 1` items with results of any size, then `operations`.
fn script(eights: u8, operations: &[&[u8]]) -> Vec<u8> {
    [&[2, 0, eights][..], &operations.concat()].concat()
}

const TAKE_ALL: &[u8] = &[224, 255];
const GO_ON: &[u8] = &[64, 0, 0];

#[test]
fn a_stream_of_all_sizes_is_taken_to_its_end() {
    // Small results, a fault, a result of several cells, one of more than the ring, in several
    // steps.
    let large: &[&[u8]] = &[&[64, 2, 255], TAKE_ALL, GO_ON, TAKE_ALL, GO_ON, TAKE_ALL];
    let small: &[&[u8]] = &[&[64, 1, 5], &[64, 0, 200], &[64, 2, 30], TAKE_ALL];
    let rest: &[&[u8]] = &[&[64, 1, 16], TAKE_ALL];
    let report = run(&script(3, &[small, large, rest].concat()));
    assert_eq!((report.answered, report.refused), (25, None));
}

#[test]
fn cells_that_are_empty_do_not_go_on_for_ever() {
    // The first cell of a long result, then a cell that is not full and not the last either.
    let report = run(&script(1, &[&[64, 2, 255], &[2, 1, 0], TAKE_ALL, TAKE_ALL]));
    assert_eq!(report.refused, Some(Corruption::CellNotFull));
}

#[test]
fn a_result_is_not_longer_than_it_says() {
    // A result of 255 numbers' worth of cells that says it has 4,100 bytes.
    let report = run(&script(
        1,
        &[&[64, 2, 255], &[6, 0, 4, 0], TAKE_ALL, TAKE_ALL],
    ));
    assert_eq!(report.refused, Some(Corruption::MessageLength));
}

#[test]
fn results_are_as_many_as_the_message_says() {
    // Three texts, said to be two.
    let report = run(&script(1, &[&[64, 1, 2], &[4, 0, 2, 9], TAKE_ALL]));
    assert_eq!(report.refused, Some(Corruption::WrongSize));
}

#[test]
fn a_cell_in_no_known_state_is_refused_and_not_waited_for() {
    for state in [2, 3, 9, 11] {
        let report = run(&script(1, &[&[64, 1, 2], &[0, 0, 7 + state], TAKE_ALL]));
        assert_eq!(report.refused, Some(Corruption::CellState), "{state}");
    }
}

#[test]
fn heads_that_cannot_be_right_are_refused() {
    // Of 9 items none is answered: too many, the end before the end, nothing at all, faults of no
    // item and of two.
    for (kind, count, ends) in [
        (1, 10, 1),
        (1, 250, 1),
        (1, 8, 0),
        (1, 0, 1),
        (0, 0, 1),
        (0, 2, 1),
    ] {
        for size in [0, 1, 2] {
            let head = [60, kind, 7u8.wrapping_add(count), ends];
            let report = run(&[&[size, 0, 1][..], &head, TAKE_ALL].concat());
            assert!(
                report.refused.is_some() && report.answered == 0,
                "{kind} {count} {ends}"
            );
        }
    }
}

#[test]
fn a_result_that_says_it_is_longer_than_memory_is_refused() {
    for almost in [0, 1, 23, 24] {
        let report = run(&script(
            1,
            &[&[64, 2, 255], &[6, 0, 7 + almost, 64], TAKE_ALL, TAKE_ALL],
        ));
        // If it is not refused yet, no more memory has been asked for than what has come.
        assert!(report.refused.is_some() || almost == 24, "{almost}");
    }
}

#[test]
fn progress_beyond_what_can_be_in_the_open_cell_gives_nothing() {
    // 1,000 results of 8 bytes would be in a cell of 4,080.
    let step = 2_001u32.to_le_bytes();
    let report = run(&[&[0, 0, 200, 9, 0, 1, 6][..], &step].concat());
    assert_eq!((report.answered, report.refused), (0, None));
    let step = 1_001u32.to_le_bytes();
    let report = run(&[&[0, 0, 200, 9, 0, 1, 6][..], &step].concat());
    assert_eq!(report.answered, 500);
}

#[test]
fn half_a_result_is_no_result_whatever_progress_says() {
    // A result longer than the ring has come in part; where it would go on, there lies an empty
    // record.
    let report = run(&script(
        1,
        &[&[64, 2, 255], TAKE_ALL, &[6, 0, 7, 0], &[9, 0, 1, 9]],
    ));
    assert_eq!((report.answered, report.refused), (0, None));
}
