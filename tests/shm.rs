//! Handles of shared objects: where they go, what keeps the object, and when its memory comes back.

mod common;

use common::{Leftovers, eventually, kill};
use manyhands::prelude::*;
use manyhands::{SharedValue, closure, shm};

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
    let forked = Forked::builder().workers(2).allow_threads().build()?;
    forked.map(|x: u64| value.update(|old| old + x), 1..=2)?;
    assert_eq!(value.get(), 6);
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
                std::thread::yield_now()
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
    let forked = Forked::builder().workers(2).allow_threads().build()?;
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
                std::thread::park()
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
    // Of a child that never comes to read it.
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
