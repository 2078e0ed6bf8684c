use std::os::fd::AsFd;

use super::*;
use crate::lane::message::Fault;
use crate::os::readable::wait_readable;

struct Nothing;

impl Sink for Nothing {
    fn results(&self, _: u32, _: u32, _: RawBytes<'_>) {}
    fn fault(&self, _: u32, _: Fault) {}
}

impl Results for Nothing {
    fn discard(&self, _bytes: Vec<u8>) {}

    fn failed(&self, _: u32, _: TaskError) {}
    fn ended(&self) {}
    fn is_awaited(&self) -> bool {
        false
    }
}

/// Makes a task with these items, each of which is encoded by itself.
fn task(items: &[Vec<u8>], size: Option<usize>) -> Task<Nothing> {
    Task {
        function: Function {
            code: 0,
            context: None,
        },
        items: items.concat().into(),
        count: items.len() as u32,
        argument_size: size,
        result_size: None,
        limits: Limits::none(),
        handles: KeptHandles::default(),
        stops_at: StopsAt::Nothing,
        name: ItemIndex::NONE,
        results: Nothing,
    }
}

#[test]
fn any_run_of_items_has_their_bytes_and_no_others() {
    let record = |text: &str| {
        let mut bytes = Vec::new();
        codec::append(&mut bytes, &text.to_owned()).unwrap();
        bytes
    };
    let numbers: Vec<_> = (0..7_u16).map(|n| n.to_ne_bytes().to_vec()).collect();
    let texts = ["ant", "", "caterpillar", "bee", "", "a worm"].map(record);
    let nothings = vec![Vec::new(); 4];
    for (items, size) in [
        (numbers, Some(2)),
        (texts.to_vec(), None),
        (nothings, Some(0)),
    ] {
        let task = task(&items, size);
        for start in 0..=items.len() {
            for end in start..=items.len() {
                let own = items[start..end].concat();
                let range = start as u32..end as u32;
                assert_eq!(task.items(range.clone()), own, "{range:?}, {size:?}");
            }
        }
    }
}

#[test]
fn few_bytes_and_many_come_back_as_they_went() {
    for len in 0..2 * FEW {
        let bytes: Vec<u8> = (0..len as u8).collect();
        let raw = RawBytes::from(bytes.as_slice());
        let made = [
            Items::from(bytes.as_slice()),
            Items::from(bytes.clone()),
            Items::from(raw),
        ];
        assert!(made.iter().all(|items| items.as_slice() == bytes), "{len}");
    }
}

#[test]
fn a_context_that_no_task_needs_is_to_be_forgotten_once() {
    let alarm = Arc::new(Alarm::new().unwrap());
    let retired = Arc::new(Retired::new(Arc::clone(&alarm)));
    let contexts = [(); 3].map(|()| SentContext::new(Vec::new(), KeptHandles::default(), &retired));
    let ids = contexts.each_ref().map(|context| context.id);
    assert!(ids.is_sorted_by(|one, other| one < other), "each its own");
    assert_eq!(retired.take(), [0; 0]);
    let [first, second, third] = contexts;
    let copy = Arc::clone(&second);
    drop((first, second));
    assert_eq!(retired.take(), [ids[0]]);
    assert_eq!(retired.take(), [0; 0], "once");
    drop((copy, third));
    assert_eq!(retired.take(), [ids[1], ids[2]]);
    // These contexts hold no shared object whose end another process could wait for.
    let rung = wait_readable(&[alarm.as_fd()], Some(Duration::ZERO));
    assert_eq!(rung.unwrap(), None);
}
