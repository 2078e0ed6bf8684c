//! Who pumps when several callers wait, and when none does; with made-up lanes.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use std::thread;
use std::time::Duration;

use super::*;
use crate::engine::processes::dispatch::made_up::{IN_TIME, Log, MadeUp, until};
use crate::engine::processes::task::Task;

/// A caller on a thread of its own.
struct Caller(Receiver<bool>);

impl Caller {
    /// Waits for the end of the task.
    fn wait(house: &MadeUp, task: &Arc<Task<Log>>, comes_back: bool) -> Self {
        let options = WaitOptions {
            cold: false,
            deadline: None,
            comes_back,
        };
        Self::wait_with(house, task, options)
    }

    fn wait_with(house: &MadeUp, task: &Arc<Task<Log>>, options: WaitOptions) -> Self {
        let (shared, task) = (house.shared.clone(), task.clone());
        let (say, said) = channel();
        thread::spawn(move || {
            let has_come = shared.wait(&task.results.ended, 0, options);
            // The test may have failed.
            let _ = say.send(has_come);
        });
        Self(said)
    }

    /// Returns whether what the caller waited for has come.
    #[track_caller]
    fn returns(&self) -> bool {
        match self.0.recv_timeout(IN_TIME) {
            Ok(has_come) => has_come,
            Err(RecvTimeoutError::Timeout) => panic!("the caller sleeps for ever"),
            Err(RecvTimeoutError::Disconnected) => panic!("the caller panicked"),
        }
    }

    fn waits(&self) -> bool {
        self.0.try_recv().is_err()
    }
}

fn leads(house: &MadeUp) {
    until("one caller leads", || house.lock().leadership.has_leader());
}

fn follow(house: &MadeUp, count: usize) {
    until("callers follow", || {
        house.lock().leadership.followers() == count
    });
}

/// Of two callers, the one that sleeps on the bell goes first: the other one takes its place.
#[test]
fn a_leader_that_leaves_hands_over_to_a_follower() {
    for comes_back in [false, true] {
        let house = MadeUp::new(2);
        let mut peers = [house.hire(0), house.hire(1)];
        let tasks = [(); 2].map(|()| house.place_with(1, |task| task.results.is_awaited = true));
        let begun = peers.each_mut().map(|peer| peer.must_begin());
        let of = |nth: usize| {
            let code = tasks[nth].function.code;
            begun.iter().position(|begun| begun.code == code).unwrap()
        };
        let leader = Caller::wait(&house, &tasks[0], comes_back);
        leads(&house);
        let follower = Caller::wait(&house, &tasks[1], false);
        follow(&house, 1);
        peers[of(0)].finish(begun[of(0)]);
        assert!(leader.returns());
        assert!(follower.waits());
        peers[of(1)].finish(begun[of(1)]);
        assert!(follower.returns());
        assert_eq!(house.shared.waiting.load(Ordering::Relaxed), 0);
        let (has_leader, followers) = {
            let dispatch = house.lock();
            (
                dispatch.leadership.has_leader(),
                dispatch.leadership.followers(),
            )
        };
        assert_eq!((has_leader, followers), (false, 0));
        house.assert_at_rest();
        house.end_background();
    }
}

#[test]
fn a_leader_wakes_the_follower_whose_task_has_ended() {
    let house = MadeUp::new(2);
    let mut peers = [house.hire(0), house.hire(1)];
    let tasks = [(); 2].map(|()| house.place_with(1, |task| task.results.is_awaited = true));
    let begun = peers.each_mut().map(|peer| peer.must_begin());
    let code = tasks[1].function.code;
    let its = begun.iter().position(|begun| begun.code == code).unwrap();
    let leader = Caller::wait(&house, &tasks[0], false);
    leads(&house);
    let follower = Caller::wait(&house, &tasks[1], false);
    follow(&house, 1);
    peers[its].finish(begun[its]);
    assert!(follower.returns());
    assert!(leader.waits());
    assert!(
        house.lock().leadership.has_leader(),
        "the other caller still sleeps on the bell"
    );
    peers[1 - its].finish(begun[1 - its]);
    assert!(leader.returns());
    house.assert_at_rest();
    house.end_background();
}

#[test]
fn a_leader_whose_time_is_over_hands_over_too() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = house.place_with(1, |task| task.results.is_awaited = true);
    let begun = peer.must_begin();
    let options = WaitOptions {
        cold: true,
        deadline: Some(Instant::now() + Duration::from_millis(100)),
        comes_back: false,
    };
    let leader = Caller::wait_with(&house, &task, options);
    let follower = Caller::wait(&house, &task, false);
    assert!(!leader.returns(), "its task has not ended");
    leads(&house);
    peer.finish(begun);
    assert!(follower.returns());
    house.assert_at_rest();
    house.end_background();
}

#[test]
fn a_follower_whose_time_is_over_leaves_the_others_to_wait() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let task = house.place_with(1, |task| task.results.is_awaited = true);
    let begun = peer.must_begin();
    let leader = Caller::wait(&house, &task, false);
    leads(&house);
    let follower = |time| {
        let options = WaitOptions {
            cold: true,
            deadline: Some(Instant::now() + time),
            comes_back: false,
        };
        Caller::wait_with(&house, &task, options)
    };
    let (brief, patient) = (follower(Duration::from_millis(20)), follower(IN_TIME));
    assert!(!brief.returns(), "its task has not ended");
    follow(&house, 1);
    assert!(house.lock().leadership.has_leader() && leader.waits());
    peer.finish(begun);
    assert!(leader.returns() && patient.returns());
    follow(&house, 0);
    assert_eq!(house.shared.waiting.load(Ordering::Relaxed), 0);
    house.assert_at_rest();
    house.end_background();
}

/// What a caller asked the workers for before it slept does not cover a task that comes later.
#[test]
fn a_leader_hears_of_a_task_that_was_given_to_a_worker_after_it_slept() {
    let house = MadeUp::new(2);
    let mut first = house.hire(0);
    let awaited = |task: &mut Task<Log>| task.results.is_awaited = true;
    let one = house.place_with(1, awaited);
    let begun = first.must_begin();
    let leader = Caller::wait(&house, &one, false);
    leads(&house);
    let mut second = house.hire(1);
    let other = house.place_with(1, awaited);
    house.shared.ensure_progress(&mut house.lock());
    let follower = Caller::wait(&house, &other, false);
    follow(&house, 1);
    second.serve();
    assert!(follower.returns());
    first.finish(begun);
    assert!(leader.returns());
    house.assert_at_rest();
    house.end_background();
}

/// The leader has asked the workers that were busy then, and no caller waits for this one.
#[test]
fn a_leader_hears_of_an_end_that_is_to_be_told_of_a_task_that_came_after_it_slept() {
    let house = MadeUp::new(2);
    let mut first = house.hire(0);
    let one = house.place_with(1, |task| task.results.is_awaited = true);
    let begun = first.must_begin();
    let leader = Caller::wait(&house, &one, false);
    leads(&house);
    let mut second = house.hire(1);
    let told = house.place_with(1, |task| {
        task.results.is_told = true;
        task.results.is_awaited = true;
    });
    house.shared.ensure_progress(&mut house.lock());
    second.serve();
    until("the end is told", || told.has_ended());
    first.finish(begun);
    assert!(leader.returns());
    house.assert_at_rest();
    house.end_background();
}

/// No caller waits, and there are more tasks than the lanes hold.
#[test]
fn a_backlog_moves_on_in_the_background() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let tasks: Vec<_> = (0..40).map(|_| house.place(1)).collect();
    house.shared.ensure_progress(&mut house.lock());
    // The test itself does not pump.
    until("all tasks are run", || {
        peer.serve();
        let code = tasks[39].function.code;
        house.runs(&tasks[39], 0) == 1 && code > 0
    });
    house.end_background();
    assert!(tasks.iter().all(|task| task.has_ended()));
}

#[test]
fn an_end_that_is_to_be_told_is_found_in_the_background() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let told = |task: &mut Task<Log>| {
        task.results.is_told = true;
        task.results.is_awaited = true;
    };
    for _ in 0..3 {
        let task = house.place_with(1, told);
        house.shared.ensure_progress(&mut house.lock());
        until("the thread sleeps on the bell", || {
            house.lock().leadership.background_sleeps()
        });
        peer.serve();
        until("the end is told", || task.has_ended());
        assert_eq!(task.failures(), []);
    }
    house.end_background();
}

/// A caller that comes back soon leaves what is to be told to the background meanwhile.
#[test]
fn what_is_to_be_told_does_not_wait_for_a_caller_to_come_back() {
    let house = MadeUp::new(2);
    let mut peers = [house.hire(0), house.hire(1)];
    let told = house.place_with(1, |task| {
        task.results.is_told = true;
        task.results.is_awaited = true;
    });
    let waited_for = house.place_with(1, |task| task.results.is_awaited = true);
    let begun = peers.each_mut().map(|peer| peer.must_begin());
    let code = waited_for.function.code;
    let its = begun.iter().position(|begun| begun.code == code).unwrap();
    let caller = Caller::wait(&house, &waited_for, true);
    leads(&house);
    peers[its].finish(begun[its]);
    assert!(caller.returns());
    peers[1 - its].finish(begun[1 - its]);
    until("the end is told", || told.has_ended());
    house.end_background();
}
