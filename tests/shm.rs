//! Handles of shared objects: where they go, what keeps the object, and when its memory comes back.

mod common;

use common::random::{Random, number, seed};
use common::{Leftovers, Sleeper, eventually, kill, may_stop};
use manyhands::prelude::*;
use manyhands::{SharedArray, SharedValue, closure, shm};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

#[test]
fn handles_reach_workers_children_and_grandchildren() -> Result {
    let _none = Leftovers::none();
    let value = SharedValue::new(0u64)?;
    let pool = Pool::processes(2)?;
    pool.submit(|value: SharedValue<u64>| value.set(1), value.clone())
        .result()?;
    assert_eq!(value.get(), 1);
    pool.map(
        closure!([value] |x: u64| { value.update(|old| old + x); }),
        0..100,
    )?;
    assert_eq!(value.get(), 4_951);
    let child = Process::spawn(
        |value: SharedValue<u64>| {
            value.set(2);
            let grandchild = Process::spawn(
                |value: SharedValue<u64>| assert_eq!(value.update(|_| 3), 2),
                value,
            );
            assert!(grandchild.unwrap().join().unwrap().success());
        },
        value.clone(),
    )?;
    assert!(child.join()?.success());
    assert_eq!(value.get(), 3);
    let forked = Forked::builder().workers(2).allow_threads(true).build()?;
    forked.map(|x: u64| value.update(|old| old + x), 1..=2)?;
    assert_eq!(value.get(), 6);
    Ok(())
}

#[test]
fn an_update_sees_what_the_update_before_it_has_made() -> Result {
    let _none = Leftovers::none();
    let value = SharedValue::new(1u64)?;
    let sleeper = Sleeper::new();
    std::thread::scope(|scope| {
        value.update(|old| {
            scope.spawn(|| sleeper.run(|| value.update(|old| old * 10)));
            // It waits for this one.
            sleeper.is_asleep();
            old + 1
        });
    });
    assert_eq!(value.get(), 20);
    Ok(())
}

#[test]
fn a_handle_that_was_sent_keeps_the_object() -> Result {
    let _none = Leftovers::none();
    let pool = Pool::processes(1)?;
    // Still in the queue when the sender's handle has gone.
    let gate = SharedValue::new(0u8)?;
    let busy = pool.submit(
        |gate: SharedValue<u8>| {
            while gate.get() == 0 {
                std::thread::yield_now();
            }
        },
        gate.clone(),
    );
    let result = pool.submit(
        |value: SharedValue<u64>| value.get(),
        SharedValue::new(7u64)?,
    );
    gate.set(1);
    busy.result()?;
    assert_eq!(result.result()?, 7);
    // As the argument of a child, and as a result.
    let child = Process::spawn(
        |value: SharedValue<u64>| assert_eq!(value.get(), 8),
        SharedValue::new(8u64)?,
    )?;
    assert!(child.join()?.success());
    let value = pool
        .submit(|x: u64| SharedValue::new(x).unwrap(), 9)
        .result()?;
    pool.close()?;
    assert_eq!(value.get(), 9);
    let forked = Forked::builder().workers(2).allow_threads(true).build()?;
    let values = forked.map(|x: u64| SharedValue::new(x).unwrap(), 0..3)?;
    assert_eq!(
        values.iter().map(SharedValue::get).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    Ok(())
}

#[test]
fn memory_comes_back_with_the_last_handle() -> Result {
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let value = SharedValue::new([0u64; 32])?;
    let clone = value.clone();
    assert_eq!(shm::usage().objects, before + 1);
    drop(value);
    assert_eq!(shm::usage().objects, before + 1);
    drop(clone);
    assert_eq!(shm::usage().objects, before);
    // The last one is that of a child, which is killed.
    let value = SharedValue::new(0u32)?;
    let child = Process::spawn(
        |value: SharedValue<u32>| {
            value.set(std::process::id());
            loop {
                std::thread::park();
            }
        },
        value.clone(),
    )?;
    eventually("the child has it", || value.get() == child.pid());
    drop(value);
    assert_eq!(shm::usage().objects, before + 1);
    kill(child.pid());
    child.join()?;
    assert_eq!(shm::usage().objects, before);
    // The argument of a child that never comes to read it.
    let child = Process::spawn(|_: SharedValue<u32>| {}, SharedValue::new(0u32)?)?;
    kill(child.pid());
    child.join()?;
    assert_eq!(shm::usage().objects, before);
    Ok(())
}

#[test]
fn a_handle_that_nobody_kept_is_an_error() -> Result {
    let _none = Leftovers::none();
    let value = SharedValue::new(1u32)?;
    let text = serde_json::to_string(&value)?;
    assert_eq!(serde_json::from_str::<SharedValue<u32>>(&text)?.get(), 1);
    let error = serde_json::from_str::<SharedValue<i64>>(&text).unwrap_err();
    assert!(error.to_string().contains("another type"), "{error}");
    drop(value);
    let error = serde_json::from_str::<SharedValue<u32>>(&text).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
    let mut other: serde_json::Value = serde_json::from_str(&text)?;
    other["family"] = 1.into();
    let other = other.to_string();
    let error = serde_json::from_str::<SharedValue<u32>>(&other).unwrap_err();
    assert!(error.to_string().contains("another family"), "{error}");
    Ok(())
}

#[test]
fn what_a_grandchild_held_comes_back_when_nobody_is_left_to_wait_for_it() -> Result {
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let held = SharedValue::new(0u32)?;
    let child = Process::spawn(
        |held: SharedValue<u32>| {
            Process::spawn(
                |held: SharedValue<u32>| {
                    let _own = SharedValue::new(1u8).unwrap();
                    held.set(1);
                    loop {
                        std::thread::park();
                    }
                },
                held,
            )
            .unwrap()
            .join()
            .unwrap();
        },
        held.clone(),
    )?;
    eventually("the grandchild has made its own", || held.get() == 1);
    assert_eq!(shm::usage().objects, before + 2);
    drop(held);
    kill(child.pid());
    child.join()?;
    eventually("the grandchild has died of it", || {
        shm::usage().objects == before
    });
    Ok(())
}

/// What a block is full of.
fn pattern<const N: usize>(random: &mut Random) -> [u64; N] {
    let mut words = [random.next(); N];
    words[N - 1] = words[0];
    words
}

/// Makes a value and looks at it a while later.
struct Kept<const N: usize>(SharedValue<[u64; N]>, [u64; N]);

impl<const N: usize> Kept<N>
where
    [u64; N]: bytemuck::Pod,
{
    fn make(random: &mut Random) -> Self {
        let words = pattern(random);
        Self(SharedValue::new(words).unwrap(), words)
    }

    fn check(&self) {
        assert_eq!(self.0.get(), self.1, "two blocks lie in one place");
    }
}

/// Makes and drops objects of all sizes, and sees that none of them changes.
fn allocate((seed, done): (u64, SharedValue<u64>)) {
    let mut random = Random::new(seed);
    let (mut small, mut medium, mut large) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        match random.below(8) {
            0..3 => small.push(Kept::<8>::make(&mut random)),
            3 => medium.push(Kept::<512>::make(&mut random)),
            4 => large.push(Kept::<4_096>::make(&mut random)),
            5 => drop(random.one_in(2).then(|| small.drain(..small.len() / 2))),
            6 => drop(medium.pop()),
            _ => drop(large.pop()),
        }
        small.iter().for_each(Kept::check);
        medium.iter().for_each(Kept::check);
        large.iter().for_each(Kept::check);
        small.truncate(20);
        medium.truncate(5);
        large.truncate(3);
        done.update(|done| done + 1);
    }
}

#[test]
fn b79_blocks_never_overlap_and_all_come_back_though_processes_are_killed() -> Result {
    let _none = Leftovers::none();
    let before = shm::usage().objects;
    let mut random = Random::new(seed());
    let kills = number("MANYHANDS_KILLS").unwrap_or(60);
    let done = SharedValue::new(0u64)?;
    let start = |random: &mut Random| Process::spawn(allocate, (random.next(), done.clone()));
    let mut children = Vec::new();
    for _ in 0..4 {
        children.push(start(&mut random)?);
    }
    let mut killed = 0;
    while killed < kills || done.get() < 5_000 {
        let seen = done.get();
        let some = random.below(200) as u64;
        eventually("they go on", || done.get() > seen + some);
        let victim = children.swap_remove(random.below(4));
        may_stop(victim.pid(), |end| random.below(end as usize) as u64);
        victim.kill()?;
        let status = victim.join()?;
        assert_eq!(status, manyhands::process::ExitStatus::Signal(9));
        children.push(start(&mut random)?);
        killed += 1;
    }
    for child in children {
        child.kill()?;
        assert_eq!(child.join()?, manyhands::process::ExitStatus::Signal(9));
    }
    println!("{killed} kills, {} rounds", done.get());
    drop(done);
    assert_eq!(shm::usage().objects, before);
    Ok(())
}

#[test]
fn an_update_that_panics_changes_nothing_and_keeps_no_lock() -> Result {
    let _none = Leftovers::none();
    let value = SharedValue::new([1u64; 9])?;
    let panics = || value.update(|_| panic!("half-way"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    assert_eq!(value.get(), [1; 9]);
    value.set([2; 9]);
    assert_eq!(value.update(|old| old.map(|x| x + 1)), [2; 9]);
    assert_eq!(value.get(), [3; 9]);
    Ok(())
}

#[test]
fn usage_tells_what_there_is_and_what_it_takes() -> Result {
    let _none = Leftovers::none();
    let before = shm::usage();
    let small = SharedArray::<u64>::zeros(1_000)?;
    // More than what is kept for later.
    let large = SharedArray::<u8>::zeros(70 << 20)?;
    let now = shm::usage();
    assert_eq!(now.objects, before.objects + 2);
    let (asked, more) = (8_000 + (70 << 20), now.bytes - before.bytes);
    assert!((asked..asked + 10_000).contains(&more), "{more} bytes");
    let reserved = now.reserved - before.reserved;
    assert!(reserved >= 70 << 20, "{reserved} bytes are reserved");
    drop((small, large));
    let after = shm::usage();
    assert_eq!((after.objects, after.bytes), (before.objects, before.bytes));
    let given_back = now.reserved - after.reserved;
    assert!(given_back >= 70 << 20, "{given_back} bytes are given back");
    // Memory of this size is kept, though there is no object in it.
    drop(SharedArray::<u8>::zeros(5 << 20)?);
    let kept = shm::usage();
    assert_eq!(kept.bytes, before.bytes);
    assert!(kept.reserved >= 5 << 20, "{} bytes are kept", kept.reserved);
    Ok(())
}
