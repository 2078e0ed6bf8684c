use super::*;
use crate::error::TaskId;
use crate::lane::bell::Bell;
use crate::os::fault::{Child, Fate};

fn lane() -> Lane {
    Lane::new_with(true).unwrap().0
}

fn writer(lane: &Lane) -> RecordWriter {
    RecordWriter::new(lane.clone(), Bell::new().unwrap().for_records()).unwrap()
}

fn record(message: &str) -> Record<'_> {
    Record {
        level: Level::Info,
        target: "a::target",
        module: Some("a::module"),
        file: None,
        line: Some(7),
        index: Some(3).into(),
        message,
        extra: None,
    }
}

fn bytes(message: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    record(message).write_to(&mut bytes);
    bytes
}

/// Takes all that there is, and returns the messages.
fn take_all(reader: &mut RecordReader) -> Result<Vec<String>, Unreadable> {
    let mut messages = Vec::new();
    while reader.take()? > 0 {
        let texts = reader.records().map(|record| record.message.to_vec());
        messages.extend(texts.map(|text| String::from_utf8(text).unwrap()));
    }
    Ok(messages)
}

#[test]
fn b107_a_record_comes_as_it_went() {
    let lane = lane();
    let (mut writer, mut reader) = (writer(&lane), RecordReader::new(lane.clone()));
    let task = ItemIndex::of_task(TaskId::next());
    for (level, index) in Level::iter().zip([Some(0).into(), task, ItemIndex::NONE].repeat(2)) {
        for (module, file, line) in [
            (None, Some("src/ä.rs"), None),
            (Some(""), None, Some(u32::MAX)),
        ] {
            let sent = Record {
                level,
                target: "ünïcode",
                module,
                file,
                line,
                index,
                message: "what happened",
                extra: (index == task).then_some(b"more of it"),
            };
            let mut bytes = Vec::new();
            sent.write_to(&mut bytes);
            writer.write(&bytes);
            assert!(reader.has_next());
            assert_eq!(reader.take(), Ok(1));
            let came = reader.records().next().unwrap();
            let text = |bytes| std::str::from_utf8(bytes).unwrap();
            let came = Record {
                level: came.level,
                target: text(came.target),
                module: came.module.map(text),
                file: came.file.map(text),
                line: came.line,
                index: came.index,
                message: text(came.message),
                extra: came.extra,
            };
            assert_eq!(came, sent);
            assert!(!reader.has_next());
        }
    }
}

#[test]
fn b107_records_of_all_lengths_come_in_order_over_many_laps() {
    let lane = lane();
    let (mut writer, mut reader) = (writer(&lane), RecordReader::new(lane.clone()));
    let mut next = 0;
    for round in 0..200_usize {
        let messages: Vec<String> = (0..=round % 7)
            .map(|nth| {
                next += 1;
                format!("{next} {}", "x".repeat((round * 31 + nth * 977) % 9_000))
            })
            .collect();
        for message in &messages {
            writer.write(&bytes(message));
        }
        assert_eq!(take_all(&mut reader), Ok(messages));
    }
    assert_eq!(lane.records_dropped(), 0);
}

#[test]
fn b109_what_is_too_long_is_cut_between_two_characters() {
    let lane = lane();
    let (mut writer, mut reader) = (writer(&lane), RecordReader::new(lane.clone()));
    let extra = vec![7; 2 * MOST];
    for prefix in ["", "a"] {
        let message = format!("{prefix}{}", "ä".repeat(MOST));
        let target = format!("{prefix}{}", "ö".repeat(MOST));
        let mut bytes = Vec::new();
        Record {
            target: &target,
            extra: Some(&extra),
            ..record(&message)
        }
        .write_to(&mut bytes);
        assert!(bytes.len() <= MOST);
        writer.write(&bytes);
        assert_eq!(reader.take(), Ok(1));
        let came = reader.records().next().unwrap();
        let came_target = std::str::from_utf8(came.target).unwrap();
        assert!(target.starts_with(came_target));
        assert!((MOST_OF_NAME - 1..=MOST_OF_NAME).contains(&came_target.len()));
        let text = std::str::from_utf8(came.message).unwrap();
        let kept = text.strip_suffix(" [cut]").unwrap();
        assert!(message.starts_with(kept) && kept.len() > MOST - MOST_OF_EXTRA - 2 * MOST_OF_NAME);
    }
}

#[test]
fn b109_a_full_ring_is_waited_for_once_and_then_records_are_dropped_and_counted() {
    let lane = lane();
    let (mut writer, mut reader) = (writer(&lane), RecordReader::new(lane.clone()));
    let one = bytes("a message");
    let fit = RING / one.len();
    for _ in 0..fit {
        writer.write(&one);
    }
    assert_eq!(lane.records_dropped(), 0);
    let start = Instant::now();
    writer.write(&one);
    assert!(start.elapsed() >= PATIENCE, "there could have been room");
    assert!(writer.has_given_up);
    for _ in 0..36 {
        writer.write(&one);
    }
    assert_eq!(lane.records_dropped(), 37);
    assert_eq!(take_all(&mut reader).unwrap().len(), fit);
    // There is room again, and the next full ring is waited for again.
    writer.write(&one);
    assert!(!writer.has_given_up);
    assert_eq!(take_all(&mut reader).unwrap().len(), 1);
    assert_eq!(lane.records_dropped(), 37);
}

#[test]
fn b109_a_writer_that_waits_goes_on_when_there_is_room() {
    let lane = lane();
    let (mut writer, mut reader) = (writer(&lane), RecordReader::new(lane.clone()));
    let count = 200_000_u32;
    let written = std::thread::spawn(move || {
        for nth in 0..count {
            writer.write(&bytes(&nth.to_string()));
        }
    });
    let mut came = Vec::new();
    while !written.is_finished() || reader.has_next() {
        came.extend(take_all(&mut reader).unwrap());
    }
    written.join().unwrap();
    let numbers: Vec<u32> = came.iter().map(|text| text.parse().unwrap()).collect();
    assert!(numbers.is_sorted());
    // A machine that lets this thread wait for long may cost some.
    assert_eq!(
        numbers.len() as u64 + lane.records_dropped(),
        u64::from(count)
    );
}

#[test]
fn b108_records_are_whole_or_not_there_wherever_a_worker_dies() {
    let long = "y".repeat(5_000);
    let sent = ["one", long.as_str(), "three"];
    let mut seen = Vec::new();
    for number in 0.. {
        let lane = lane();
        let mut writer = writer(&lane);
        // What follows goes over the end of the ring.
        let mut reader = RecordReader::new(lane.clone());
        let first = bytes(&"z".repeat(9_000));
        while writer.head + 2_000 < RING as u64 {
            writer.write(&first[..]);
            take_all(&mut reader).unwrap();
        }
        let child = Child::run(Fate::Killed, number, || {
            for message in sent {
                writer.write(&bytes(message));
            }
        });
        let is_through = child.end();
        let came = take_all(&mut reader).unwrap();
        assert!(sent.map(str::to_owned).starts_with(&came), "{came:?}");
        seen.push(came.len());
        if is_through {
            break;
        }
    }
    assert!(seen.is_sorted(), "{seen:?}");
    assert_eq!((seen.first(), seen.last()), (Some(&0), Some(&3)));
    assert!(seen.len() > 3 * 4, "{seen:?}");
}

/// Overwrites the bytes of the ring from `at` on, and says that `head` bytes are written.
fn spoil(lane: &Lane, at: u64, noise: &[u8], head: u64) {
    let mut noise = noise;
    for (start, len) in lane.record_bytes(at, noise.len()).unwrap() {
        // SAFETY: within the mapping, and no other thread has this lane.
        unsafe { ptr::copy_nonoverlapping(noise.as_ptr(), start.as_ptr(), len) };
        noise = &noise[len..];
    }
    let words = lane.record_words().unwrap();
    words.worker.head.store(head, Ordering::Release);
}

#[test]
fn b108_what_is_no_record_is_refused_and_nothing_more_is_read() {
    let good = bytes("good");
    let len = good.len() as u64;
    let with = |at: usize, noise: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + noise.len()].copy_from_slice(noise);
        bytes
    };
    let cases = [
        (with(0, &0_u32.to_ne_bytes()), 2 * len),
        (with(0, &8_u32.to_ne_bytes()), 2 * len),
        (with(0, &u32::MAX.to_ne_bytes()), 2 * len),
        (with(0, &((len as u32) + 8).to_ne_bytes()), 2 * len),
        (with(0, &((len as u32) - 4).to_ne_bytes()), 2 * len),
        // The message is longer or shorter than what is there.
        (with(4, &u32::MAX.to_ne_bytes()), 2 * len),
        (with(4, &0_u32.to_ne_bytes()), 2 * len),
        // So is the target, or there is none.
        (with(8, &1_000_u16.to_ne_bytes()), 2 * len),
        (with(8, &NONE.to_ne_bytes()), 2 * len),
        // No level, no flag, no item.
        (with(14, &[0]), 2 * len),
        (with(14, &[6]), 2 * len),
        (with(15, &[2]), 2 * len),
        (with(24, &u64::MAX.to_ne_bytes()), 2 * len),
        // More is said to be there than can be.
        (good.clone(), RING as u64 + 8),
        (good.clone(), u64::MAX),
        (good.clone(), 2 * len - 1),
    ];
    for (nth, (noise, head)) in cases.into_iter().enumerate() {
        let lane = lane();
        let mut reader = RecordReader::new(lane.clone());
        spoil(&lane, 0, &good, head);
        spoil(&lane, len, &noise, head);
        let is_head = head != 2 * len;
        // What came before it is right.
        assert_eq!(reader.take().is_ok(), !is_head, "case {nth}");
        assert_eq!(
            reader.records().count(),
            usize::from(!is_head),
            "case {nth}"
        );
        if !is_head {
            assert_eq!(reader.take(), Err(Unreadable), "case {nth}");
        }
        // The worker may write what it likes.
        spoil(&lane, 0, &good, 3 * len);
        assert_eq!((reader.take(), reader.has_next()), (Ok(0), false));
        assert_eq!(reader.records().count(), 0);
    }
}

#[test]
fn b108_a_record_longer_than_what_it_says_is_refused() {
    let mut longer = bytes("good");
    longer.resize(longer.len() + 8, 0);
    let len = longer.len() as u32;
    longer[..4].copy_from_slice(&len.to_ne_bytes());
    let lane = lane();
    spoil(&lane, 0, &longer, u64::from(len));
    assert_eq!(RecordReader::new(lane).take(), Err(Unreadable));
}

#[test]
fn b108_noise_never_harms_the_reader() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let lane = lane();
        let mut reader = RecordReader::new(lane.clone());
        let mut noise: Vec<u8> = (0..RING / 8).flat_map(|_| next().to_ne_bytes()).collect();
        // Some of it is a record with a few bytes changed.
        let mut at = 0;
        while at + 100 < noise.len() && !next().is_multiple_of(16) {
            let mut good = bytes("some text");
            if next().is_multiple_of(4) {
                let place = next() as usize % good.len();
                good[place] = next() as u8;
            }
            noise[at..at + good.len()].copy_from_slice(&good);
            at += good.len();
        }
        spoil(&lane, 0, &noise, (next() % (RING as u64 + 64)) & !7);
        while let Ok(1..) = reader.take() {
            let texts = reader
                .records()
                .map(|record| record.message.len())
                .sum::<usize>();
            assert!(texts <= MOST_AT_ONCE);
        }
    }
}

#[test]
fn b107_the_worker_rings_when_it_was_asked_to_and_only_then() {
    let (lane, bell) = (lane(), Bell::new().unwrap().for_records());
    let mut writer = RecordWriter::new(lane.clone(), bell.clone()).unwrap();
    let reader = RecordReader::new(lane);
    let heard = bell.listen();
    writer.write(&bytes("one"));
    assert_eq!(bell.listen(), heard);
    reader.ask_for_bell();
    writer.write(&bytes("two"));
    assert_ne!(bell.listen(), heard);
    let heard = bell.listen();
    writer.write(&bytes("three"));
    assert_eq!(bell.listen(), heard);
}

#[test]
fn a_lane_without_records_has_none() {
    let lane = Lane::new().unwrap();
    assert!(RecordWriter::new(lane.clone(), Bell::new().unwrap().for_records()).is_none());
    let mut reader = RecordReader::new(lane.clone());
    assert!(!reader.has_next());
    assert_eq!((reader.take(), lane.records_dropped()), (Ok(0), 0));
}
