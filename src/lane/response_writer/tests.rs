//! What a worker writes is what its parent reads, whatever the sizes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::*;
use crate::error::Corruption;
use crate::lane::{Expected, RawBytes, Receiver, Sink};
use crate::panic::{self, Caught};

const TASK: u32 = 9;
/// Index of the first item.
const FIRST: u32 = 5;

struct Bell(Arc<AtomicU32>);

impl Ring for Bell {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

type Answer = Result<Vec<u8>, Fault>;

/// The answers in the order in which they came.
struct Log {
    size: Option<usize>,
    answers: Mutex<Vec<(u32, Answer)>>,
}

impl Sink for Log {
    fn results(&self, first: u32, count: u32, bytes: RawBytes<'_>) {
        let mut all = Vec::new();
        bytes.append_to(&mut all);
        let mut rest = all.as_slice();
        for item in first..first + count {
            let len = self.size.or_else(|| codec::records_len(rest, 1));
            let (one, after) = rest.split_at(len.unwrap());
            self.answers.lock().push((item, Ok(one.to_vec())));
            rest = after;
        }
        assert!(rest.is_empty());
    }

    fn fault(&self, index: u32, fault: Fault) {
        self.answers.lock().push((index, Err(fault)));
    }

    fn has_stopped(&self) -> bool {
        let answers = self.answers.lock();
        let mut results = answers
            .iter()
            .filter_map(|(_, answer)| answer.as_ref().ok());
        results.any(|result| codec::is_err(result))
    }
}

/// A lane with both its ends.
struct Ends {
    responses: ResponseWriter,
    receiver: Receiver,
    rings: Arc<AtomicU32>,
}

impl Ends {
    fn new() -> Self {
        let lane = Lane::new().unwrap();
        let rings = Arc::default();
        let bell = Box::new(Bell(Arc::clone(&rings)));
        let mut responses = ResponseWriter::new(lane.clone(), bell, Pace::Tasks);
        responses.begin(TASK, FIRST);
        Self {
            responses,
            receiver: Receiver::new(lane),
            rings,
        }
    }

    /// Takes all answers of a task with `count` items, which must all have been written.
    fn take(&mut self, count: usize, size: Option<usize>) -> Vec<Answer> {
        let log = Log {
            size,
            answers: Mutex::default(),
        };
        let mut expected = Expected {
            task: TASK,
            next: FIRST,
            end: FIRST + count as u32,
            result_size: size,
            stops_at: StopsAt::Nothing,
            may_stop: false,
        };
        let mut has_ended = false;
        while self.receiver.has_next() {
            assert!(!has_ended, "a message after the end");
            has_ended = self.receiver.take(&mut expected, &log).unwrap();
        }
        assert!(has_ended, "the end was not told");
        let (items, answers): (Vec<u32>, Vec<_>) = log.answers.into_inner().into_iter().unzip();
        assert!(items.into_iter().eq(FIRST..expected.end));
        answers
    }
}

fn panicked(len: usize) -> Fault {
    Fault::Panicked(Caught::saying("x".repeat(len)))
}

#[test]
fn results_of_any_size_and_faults_come_whole_and_in_order() {
    let most = CELL_PAYLOAD - RESPONSE_HEAD;
    let record = |len: usize| {
        let mut bytes = Vec::new();
        codec::append(&mut bytes, &vec![len as u8; len - 8]).unwrap();
        assert_eq!(bytes.len(), len);
        bytes
    };
    let large = [most - 1, most, most + 1, CELL_PAYLOAD, 2 * most, 9_000];
    for small_before in [0, 1, 2] {
        for len in large {
            let mut sent = vec![Ok(record(20)); small_before];
            sent.extend([
                Ok(record(len)),
                Ok(record(8)),
                Err(panicked(3)),
                Err(Fault::ResultEncode("no".to_owned())),
                Ok(record(len - small_before)),
                Err(panicked(len)),
                Err(Fault::TimedOut(Duration::from_secs(1))),
                Ok(record(30)),
            ]);
            let mut ends = Ends::new();
            for answer in &sent {
                ends.responses.item_starts();
                match answer {
                    Ok(bytes) => ends.responses.result(bytes),
                    Err(fault) => ends.responses.fault(fault),
                }
            }
            ends.responses.end();
            assert!(ends.take(sent.len(), None) == sent, "{small_before} {len}");
            let received = ends.receiver.received();
            let counts = (received.panicked, received.encode, received.timed_out);
            assert_eq!(counts, (2, 1, 1));
            let payload: usize = sent.iter().flatten().map(Vec::len).sum();
            assert!(received.bytes >= payload as u64 + len as u64);
            assert!(received.bytes < 2 * (payload + len) as u64 + 1_000);
        }
    }
}

#[test]
fn results_of_one_size_fill_cells_and_a_panic_among_them_costs_one() {
    for size in [1, 8, 24, 1_000] {
        let fits = ((CELL_PAYLOAD - RESPONSE_HEAD) / size) as u32;
        // More results than a cell holds, with a panic at the start, in the middle and at the end
        // of a cell.
        for fails in [0, 1, fits - 1, fits, fits + 2] {
            let count = 2 * fits + 3;
            let mut ends = Ends::new();
            let mut done = 0;
            while done < count {
                let batch = ends.responses.room_for(size).min(count - done);
                assert!(batch > 0);
                let ran = panic::catch(|| {
                    ends.responses.results(batch, size, |item, slot| {
                        assert_eq!(slot.len(), size);
                        let item = done + item as u32;
                        assert!(item != fails, "on purpose");
                        slot.fill(item as u8);
                    });
                });
                if ran.is_ok() {
                    done += batch;
                } else {
                    let ended = ends.responses.recount(size);
                    assert_eq!(done + ended, fails);
                    ends.responses.fault(&panicked(1));
                    done = fails + 1;
                }
            }
            ends.responses.end();
            let answers = ends.take(count as usize, Some(size));
            for (item, answer) in (0..count).zip(answers) {
                let own = if item == fails {
                    Err(panicked(1))
                } else {
                    Ok(vec![item as u8; size])
                };
                assert!(answer == own, "{size} {fails}: item {item}");
            }
        }
    }
}

#[test]
fn the_bell_rings_at_the_end_of_what_was_asked_for() {
    let mut ends = Ends::new();
    let rings = |ends: &Ends| ends.rings.load(Ordering::Relaxed);
    for (asked, begun, rung) in [
        (None, TASK, 0),
        (Some(TASK + 1), TASK, 0),
        (None, TASK + 1, 1),
        (None, TASK + 2, 1),
        (Some(TASK + 2), TASK + 3, 2),
    ] {
        if let Some(asked) = asked {
            ends.responses.lane.header().ring_at(asked);
        }
        ends.responses.begin(begun, 0);
        ends.responses.item_starts();
        ends.responses.result(&[0; 8]);
        ends.responses.end();
        assert_eq!(rings(&ends), rung, "task {begun}");
    }
    // A worker with nothing to do rings, whichever task the parent has asked for.
    ends.responses.ring_if_asked();
    assert_eq!(rings(&ends), 2);
    ends.responses.lane.header().ring_at(TASK + 99);
    ends.responses.ring_if_asked();
    ends.responses.ring_if_asked();
    assert_eq!(rings(&ends), 3);
}

/// Takes what there is of a task with four items. Returns how many were answered for, and whether
/// the task has ended.
fn take_some(ends: &mut Ends, stops_at: StopsAt, is_cut: bool) -> Result<(u32, bool), Corruption> {
    let log = Log {
        size: None,
        answers: Mutex::default(),
    };
    let mut expected = Expected {
        task: TASK,
        next: FIRST,
        end: FIRST + 4,
        result_size: None,
        stops_at,
        may_stop: is_cut,
    };
    let mut has_ended = false;
    while ends.receiver.has_next() {
        has_ended = ends.receiver.take(&mut expected, &log)?;
    }
    assert_eq!(has_ended, expected.end == expected.next);
    Ok((expected.next - FIRST, has_ended))
}

#[test]
fn a_task_ends_early_at_what_it_stops_at_and_the_parent_is_told_at_once() {
    let record = |value: Result<u32, String>| {
        let mut bytes = Vec::new();
        codec::append(&mut bytes, &value).unwrap();
        Ok(bytes)
    };
    let answers = [
        record(Ok(1)),
        record(Err("no".to_owned())),
        Err(panicked(1)),
        record(Ok(2)),
    ];
    for (stops_at, most) in [
        (StopsAt::Nothing, 4),
        (StopsAt::Fault, 3),
        (StopsAt::Err, 2),
    ] {
        let mut ends = Ends::new();
        ends.responses.set_stops_at(stops_at);
        // The parent has asked for a later task.
        ends.responses.lane.header().ring_at(TASK + 3);
        let mut ran = 0;
        for answer in &answers {
            if !ends.responses.goes_on() {
                break;
            }
            ends.responses.item_starts();
            match answer {
                Ok(bytes) => ends.responses.result(bytes),
                Err(fault) => ends.responses.fault(fault),
            }
            ran += 1;
        }
        ends.responses.end();
        assert_eq!(ran, most, "{stops_at:?}");
        let rung = ends.rings.load(Ordering::Relaxed);
        assert_eq!(
            rung,
            u32::from(stops_at != StopsAt::Nothing),
            "{stops_at:?}"
        );
        let taken = take_some(&mut ends, stops_at, false);
        assert_eq!(taken, Ok((most, true)), "{stops_at:?}");
        // The next task stops at nothing.
        ends.responses.begin(TASK + 1, 0);
        assert!(ends.responses.goes_on());
        ends.responses.item_starts();
        ends.responses.fault(&panicked(1));
        assert!(ends.responses.goes_on());
    }
}

#[test]
fn a_task_that_is_cut_ends_after_the_item_that_runs_and_no_other_is() {
    for (cut, told, taken) in [
        (TASK..=TASK, true, Ok((1, true))),
        (TASK - 1..=u32::MAX, true, Ok((1, true))),
        (TASK..=TASK, false, Err(Corruption::WrongCount)),
        (TASK + 1..=u32::MAX, false, Ok((4, true))),
        (TASK - 1..=TASK - 1, false, Ok((4, true))),
    ] {
        let mut ends = Ends::new();
        for item in 0..4 {
            if !ends.responses.goes_on() {
                break;
            }
            ends.responses.item_starts();
            if item == 0 {
                ends.receiver.header().cut(cut.clone());
            }
            ends.responses.result(&[0; 8]);
        }
        ends.responses.end();
        assert_eq!(take_some(&mut ends, StopsAt::Fault, told), taken, "{cut:?}");
        // So it is where results have one size.
        let mut ends = Ends::new();
        let room = ends.responses.room_for(8).min(4);
        let lane = ends.responses.lane.clone();
        let ran = ends.responses.results(room, 8, |item, slot| {
            if item == 1 {
                lane.header().cut(cut.clone());
            }
            slot.fill(0);
        });
        assert_eq!(ran, if cut.contains(&TASK) { 2 } else { 4 }, "{cut:?}");
    }
}

#[test]
fn limit_and_times_are_those_of_the_task_at_work() {
    let mut ends = Ends::new();
    ends.responses.set_limit(Duration::from_nanos(1));
    ends.responses.set_recorded();
    let before = clock::now();
    ends.responses.item_starts();
    let header = ends.receiver.header();
    let started = header.started_at(header.progress()).unwrap();
    assert!((before..=clock::now()).contains(&started));
    while clock::now() <= started + 1 {}
    assert_eq!(ends.responses.exceeded(), Some(Duration::from_nanos(1)));
    ends.responses.result(&[0; 8]);
    ends.responses.end();
    assert_eq!(ends.take(1, Some(8)), [Ok(vec![0; 8])]);
    let times = ends.receiver.take_times().unwrap();
    assert!(times.started <= started && started < times.ended);
    assert!(times.ended <= clock::now());
    assert_eq!(ends.receiver.take_times(), None);
    // The next task has neither a limit nor times.
    ends.responses.begin(TASK, FIRST);
    assert!(!ends.responses.has_limit());
    ends.responses.item_starts();
    assert_eq!(ends.responses.exceeded(), None);
    ends.responses.result(&[0; 8]);
    ends.responses.end();
    ends.take(1, Some(8));
    assert_eq!(ends.receiver.take_times(), None);
    // An item that has time left has not exceeded it.
    ends.responses.begin(TASK, FIRST);
    ends.responses.set_limit(Duration::from_secs(3_600));
    ends.responses.item_starts();
    assert_eq!(ends.responses.exceeded(), None);
    assert!(!header_has_run(&ends));
    ends.responses.item_has_run();
    assert!(header_has_run(&ends));
}

fn header_has_run(ends: &Ends) -> bool {
    let header = ends.receiver.header();
    header.has_run(header.progress())
}
