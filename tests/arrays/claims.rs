//! What claims allow and refuse.

use std::sync::atomic::Ordering;
use std::time::Duration;

use manyhands::prelude::*;
use manyhands::{
    SharedArray, SharedValue,
    shm::{ClaimError, FrozenArray},
};

use crate::common::{Leftovers, assert_matches, eventually};
use crate::{LONG, Result, engines, forked, is_claimed, is_late};

#[test]
fn b73_nobody_has_the_same_element_twice() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::<u64>::zeros(100)?;
    let clone = array.clone();
    let reading = array.try_read_range(..60)?;
    assert!(is_claimed(&clone.try_write_range(59..)) && is_claimed(&clone.try_atomics()));
    assert!(is_claimed(&clone.set(59, 1)) && clone.set(60, 1).is_ok());
    let (also, writing) = (clone.try_read_range(40..60)?, clone.try_write_range(60..)?);
    let own = std::process::id();
    assert_matches!(
        array.try_read().unwrap_err(),
        ClaimError::Claimed { by, range, .. } if by == Some(own) && range == (60..100)
    );
    assert!(is_claimed(&array.get(60)) && array.get(59).is_ok());
    drop((reading, also));
    let mut front = array.try_write_range(..60)?;
    front[0] = 1;
    drop((front, writing));
    let (one, two) = (array.try_atomics()?, clone.try_atomics()?);
    one[5].fetch_add(2, Ordering::Relaxed);
    two[5].fetch_add(3, Ordering::Relaxed);
    assert!(
        is_claimed(&array.try_read())
            && is_claimed(&array.try_write())
            && is_claimed(&array.get(0))
    );
    drop((one, two));
    assert_eq!(array.get(5)?, 5);
    // A guard that is leaked keeps what it has, as long as its process lives.
    let child = Process::spawn(
        |array: SharedArray<u64>| {
            std::mem::forget(array.try_write_range(..1).unwrap());
            assert!(is_claimed(&array.try_write()) && array.try_write_range(1..).is_ok());
        },
        array.clone(),
    )?;
    assert!(child.join()?.success());
    assert!(array.try_write().is_ok() && array.is_poisoned());
    Ok(())
}

#[test]
fn b73_claims_of_other_processes_count_like_ones_own() -> Result {
    let _none = Leftovers::none();
    let (array, step) = (SharedArray::<u64>::zeros(100)?, SharedValue::new(0u32)?);
    let child = Process::spawn(
        |(array, step): (SharedArray<u64>, SharedValue<u32>)| {
            let writing = array.try_write_range(10..20).unwrap();
            step.set(1);
            while step.get() == 1 {
                std::thread::yield_now();
            }
            drop(writing);
        },
        (array.clone(), step.clone()),
    )?;
    eventually("the child has claimed them", || step.get() == 1);
    let refused = array.try_write_range(19..21).unwrap_err();
    assert_matches!(
        &refused,
        ClaimError::Claimed { by, range, .. } if *by == Some(child.pid()) && *range == (10..20)
    );
    assert!(refused.to_string().contains(&child.pid().to_string()));
    // A timeout of zero is late too, and both tell who has what.
    for time in [Duration::ZERO, Duration::from_millis(20)] {
        let late = array.write_range_timeout(.., time).unwrap_err();
        assert_matches!(
            late,
            ClaimError::TimedOut { by, range, .. } if by == Some(child.pid()) && range == (10..20)
        );
        assert!(is_late(&array.read_range_timeout(15..16, time)));
    }
    // Another error is no matter of time.
    let outside = array.read_range_timeout(..1_000, Duration::ZERO);
    assert_matches!(outside, Err(ClaimError::OutOfBounds { .. }));
    assert!(array.try_write_range(20..).is_ok() && array.try_read_range(..10).is_ok());
    step.set(2);
    // A thread that waits is told when the claim is given up.
    array.write_range_timeout(.., LONG)?.fill(1);
    assert!(child.join()?.success());
    assert!(!array.is_poisoned());
    Ok(())
}

#[test]
fn b73_the_whole_array_is_waited_for_as_parts_are() -> Result {
    let _none = Leftovers::none();
    let (array, step) = (SharedArray::<u64>::zeros(100)?, SharedValue::new(0u32)?);
    let child = Process::spawn(
        |(array, step): (SharedArray<u64>, SharedValue<u32>)| {
            let mut writing = array.try_write_range(99..).unwrap();
            step.set(1);
            while step.get() == 1 {
                std::thread::yield_now();
            }
            writing[0] = 7;
        },
        (array.clone(), step.clone()),
    )?;
    eventually("the child has claimed them", || step.get() == 1);
    let short = Duration::from_millis(20);
    assert!(is_late(&array.read_timeout(short)) && is_late(&array.write_timeout(short)));
    step.set(2);
    assert_eq!(array.read_timeout(LONG)?[99], 7);
    let reading = array.try_read()?;
    assert!(array.read_timeout(Duration::ZERO).is_ok() && is_late(&array.write_timeout(short)));
    drop(reading);
    array.write_timeout(Duration::ZERO)?.fill(1);
    assert!(child.join()?.success());
    Ok(())
}

#[test]
fn b73_counters_are_right_when_everybody_adds() -> Result {
    let _none = Leftovers::none();
    let counters = SharedArray::<u32>::zeros(8)?;
    let add = |counters: &SharedArray<u32>, x: usize| {
        // Another worker may have the table locked, and no core for as long as this call waits.
        let mut claimed = counters.try_atomics();
        eventually("the table of claims is free", || {
            if matches!(claimed, Err(ClaimError::Busy { .. })) {
                claimed = counters.try_atomics();
            }
            !matches!(claimed, Err(ClaimError::Busy { .. }))
        });
        claimed.unwrap()[x % 8].fetch_add(1, Ordering::Relaxed);
    };
    for pool in engines() {
        counters.fill(0)?;
        pool.map_with(&counters, add, 0..8_000)?;
        assert_eq!(counters.to_vec()?, [1_000; 8], "{}", pool.engine().kind());
    }
    Ok(())
}

#[test]
fn frozen_arrays_are_slices_everywhere_and_stay_as_they_are() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_fn(1_000, |i| i as u64)?;
    let text = serde_json::to_string(&array)?;
    let early = serde_json::from_str::<FrozenArray<u64>>(&text).unwrap_err();
    assert!(early.to_string().contains("not frozen"), "{early}");
    for one in [0..1, 999..1_000] {
        let writing = array.try_write_range(one)?;
        assert!(is_claimed(&array.clone().freeze()));
        drop(writing);
    }
    let frozen = array.clone().freeze()?;
    for refused in [
        array.try_write().map(drop),
        array.set(0, 1),
        array.fill(1),
        array.try_atomics().map(drop),
    ] {
        assert_eq!(refused, Err(ClaimError::Frozen));
    }
    let pool = Pool::processes(2)?;
    let write = |array: SharedArray<u64>| matches!(array.try_write(), Err(ClaimError::Frozen));
    assert!(pool.submit(write, array.clone()).result()?);
    let refused = pool.for_each_chunk(&mut array.clone(), 10, |_, _: &mut [u64]| {});
    assert_eq!(refused, Err(TaskError::from(ClaimError::Frozen)));
    assert_eq!(
        pool.map_with(
            &frozen,
            |frozen, i: usize| frozen[i] + frozen.as_slice()[1],
            0..3
        )?,
        [1, 2, 3]
    );
    assert_eq!(forked().map(|i: usize| frozen[i], 0..3)?, [0, 1, 2]);
    assert_eq!(array.try_read()?[999], 999);
    // Its memory is there as long as a handle.
    drop(array);
    assert_eq!(frozen.clone()[999], 999);
    Ok(())
}

#[test]
fn b73_a_claim_with_a_time_is_of_its_range_and_of_nothing_else() -> Result {
    let _none = Leftovers::none();
    let array = SharedArray::from_fn(10, |i| i as u64)?;
    let mut writing = array.write_range_timeout(2..5, LONG)?;
    assert_eq!(*writing, [2, 3, 4]);
    writing[0] = 20;
    assert!(array.try_write_range(..2).is_ok() && array.try_write_range(5..).is_ok());
    assert!(is_claimed(&array.try_read_range(4..5)) && is_claimed(&array.get(2)));
    drop(writing);
    let reading = array.read_range_timeout(2..=3, LONG)?;
    assert_eq!(*reading, [20, 3]);
    assert!(array.try_write_range(..2).is_ok() && array.try_write_range(4..).is_ok());
    assert!(is_claimed(&array.set(3, 0)) && array.try_read_range(2..4).is_ok());
    drop(reading);
    for outside in [
        array.read_range_timeout(3..11, LONG).unwrap_err(),
        array.write_range_timeout(3..11, LONG).unwrap_err(),
    ] {
        assert_matches!(
            outside,
            ClaimError::OutOfBounds { range, len: 10, .. } if range == (3..11)
        );
    }
    // A frozen array is waited for by none.
    let frozen = array.clone().freeze()?;
    assert_eq!(array.write_timeout(LONG).unwrap_err(), ClaimError::Frozen);
    assert_eq!(array.read_timeout(Duration::ZERO)?[2], frozen[2]);
    Ok(())
}
