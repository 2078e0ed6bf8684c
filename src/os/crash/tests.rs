//! The way up a stack, and what a dying process leaves of it, on made-up deaths.

use std::hint::black_box;

use super::*;
use crate::os::fault::{Child, Fate};
use crate::os::memory::SharedMemory;

/// A record in memory that this process shares with those that it forks.
struct Shared(SharedMemory);

impl Shared {
    fn new() -> Self {
        let len = std::num::NonZeroUsize::new(4_096).unwrap();
        Self(SharedMemory::new("a test", len).unwrap().0)
    }

    fn record(&self) -> &CrashRecord {
        // SAFETY: the mapping is large enough, zeros at first, and lives as long as `self`.
        unsafe { self.0.start().cast::<CrashRecord>().as_ref() }
    }
}

/// Calls `take` with the registers of this place in the code.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
fn from_here(take: &mut dyn FnMut(Registers)) {
    let mut registers: Registers = [0; unwind::REGISTERS];
    // SAFETY: the instructions only copy registers.
    unsafe {
        std::arch::asm!(
            "mov [{to} + 24], rbx",
            "mov [{to} + 48], rbp",
            "mov [{to} + 56], rsp",
            "mov [{to} + 96], r12",
            "mov [{to} + 104], r13",
            "mov [{to} + 112], r14",
            "mov [{to} + 120], r15",
            "lea {pc}, [rip]",
            "mov [{to} + 128], {pc}",
            to = in(reg) registers.as_mut_ptr(),
            pc = out(reg) _,
        );
    }
    take(registers);
    black_box(());
}

#[cfg(target_arch = "x86_64")]
fn frames(maps: &Maps, walk: &mut Walk, registers: Registers) -> Vec<usize> {
    let mut frames = Vec::new();
    walk.up(maps, registers, |step| {
        if let Step::Frame(address) = step {
            frames.push(address);
        }
        frames.len() < 1_000
    });
    frames
}

#[cfg(all(target_arch = "x86_64", feature = "symbols"))]
#[test]
fn b112_the_way_up_is_the_one_that_the_languages_unwinder_goes() {
    #[inline(never)]
    fn deep(depth: u32, take: &mut dyn FnMut(Registers)) -> u32 {
        if depth == 0 {
            from_here(take);
            return 0;
        }
        let large = black_box([depth; 100]);
        deep(depth - 1, take) + large[depth as usize]
    }
    let mut maps = Box::new(Maps::new());
    maps.read();
    let mut walk = Box::new(Walk::new());
    // The callbacks of a sort put frames of the standard library on the way.
    let mut numbers = [3, 1, 2];
    numbers.sort_by_key(|&number| {
        deep(number, &mut |registers| {
            let found = frames(&maps, &mut walk, registers);
            let mut expected = Vec::new();
            backtrace::trace(|frame| {
                expected.push(frame.ip() as usize);
                true
            });
            // Both began a few calls below `from_here`'s caller. The end of the stack may be told
            // with an address or without.
            let found = &found[1..];
            expected.retain(|&address| address != 0);
            assert!(found.len() > 10, "{found:x?}");
            assert!(expected.ends_with(found), "{expected:x?} {found:x?}");
        })
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn b127_a_stack_that_is_spoilt_ends_the_walk_and_not_the_process() {
    let mut maps = Box::new(Maps::new());
    maps.read();
    let mut walk = Box::new(Walk::new());
    let mut random = 0x9e37_79b9_7f4a_7c15_usize;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let stack = [0_usize; 64];
    let code = libc::getpid as *const () as usize;
    let own = from_here as *const () as usize;
    for round in 0..2_000 {
        let mut registers = [(); unwind::REGISTERS].map(|()| next());
        let near = |address: usize, by: usize| address.wrapping_add(by % 4_096);
        match round % 4 {
            0 => {}
            1 => registers[unwind::PC] = near(code, next()),
            2 => {
                registers[unwind::PC] = near(own, next());
                registers[unwind::RSP] = near(stack.as_ptr() as usize, next());
            }
            _ => {
                registers[unwind::PC] = near(own, next());
                registers[unwind::RBP] = near(stack.as_ptr() as usize, next()) & !7;
                registers[unwind::RSP] = registers[unwind::RBP].wrapping_sub(next() % 64);
            }
        }
        assert!(frames(&maps, &mut walk, registers).len() <= 1_000);
    }
}

#[test]
fn b127_a_crash_is_whole_or_without_its_stack_wherever_its_process_is_killed() {
    let head = Head {
        signal: libc::SIGBUS,
        code: 2,
        address: Some(8),
        instruction: 0x1000,
        sender: 0,
    };
    let mut seen = Vec::new();
    for number in 0.. {
        let shared = Shared::new();
        let child = Child::run(Fate::Killed, number, || {
            let record = shared.record();
            record.write_head(&head);
            record.add_module(0x1000, 0x2000, 0x800, b"/lib/a.so");
            assert!(record.add_frame(0x1000));
            record.add_module(0x1000, 0x2000, 0x800, b"/lib/a.so");
            record.add_module(0x3000, 0x4000, 0x3000, b"/lib/b.so");
            assert!(record.add_frame(0x3fff) && record.add_frame(0x5000));
            record.finish();
        });
        let is_through = child.end();
        let found = shared.record().read(libc::SIGBUS);
        assert_eq!(shared.record().read(libc::SIGSEGV), None, "another signal");
        seen.push(found.map(|found| {
            assert_eq!((found.address, found.instruction), (Some(8), 0x1000));
            let place = |frame: record::FoundFrame| (frame.address, frame.place);
            found.frames.into_iter().map(place).collect::<Vec<_>>()
        }));
        if is_through {
            break;
        }
    }
    let whole = vec![
        (0x1000, Some(("/lib/a.so".to_owned(), 0x800))),
        (0x3fff, Some(("/lib/b.so".to_owned(), 0xfff))),
        (0x5000, None),
    ];
    let (head, whole) = (Some(vec![]), Some(whole));
    assert_eq!(seen, [None, head.clone(), head, whole.clone(), whole]);
}

#[test]
fn b127_more_frames_and_modules_than_there_is_room_for_are_left_out() {
    let shared = Shared::new();
    let record = shared.record();
    let mut added = 1;
    while record.add_frame(added) {
        added += 1;
        assert!(added < 1_000);
    }
    assert!(!record.add_frame(added + 1));
    for module in 0..100 {
        let start = module * 100 + 1;
        record.add_module(start, start + 100, start, &[b'a'; 100]);
    }
    record.write_head(&Head {
        signal: 11,
        code: 1,
        address: None,
        instruction: 0,
        sender: 7,
    });
    record.finish();
    let found = record.read(11).unwrap();
    assert_eq!((found.frames.len(), found.address), (added, None));
    let named = found.frames.iter().filter(|frame| frame.place.is_some());
    assert_eq!(named.count(), added, "the first modules are kept");
}

#[test]
fn b127_any_noise_is_a_crash_or_none() {
    let shared = Shared::new();
    let mut random = 7_u64;
    let mut crashes = 0;
    for round in 0..20_000_u64 {
        shared.record().spoil(|| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Small numbers are those that mean something.
            match random % 4 {
                0 => ((random % 64) << 32) | ((random >> 8) % 3),
                1 => (random >> 8) % 700,
                2 => u64::MAX,
                _ => random,
            }
        });
        for signal in 0..12 {
            let Some(found) = shared.record().read(signal) else {
                continue;
            };
            crashes += 1;
            assert!(found.frames.len() <= 48, "{round}");
            for (path, _) in found.frames.iter().filter_map(|frame| frame.place.as_ref()) {
                assert!(!path.chars().any(char::is_control));
            }
        }
    }
    assert!(crashes > 100, "{crashes}: the noise says nothing");
}
