//! What a task's handle tells and does, with made-up lanes.

use std::iter;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use super::*;
use crate::call::entry::{self, Entry};
use crate::call::{Limits, Retry, RetryOn};
use crate::engine::processes::dispatch::State;
use crate::engine::processes::dispatch::made_up::{IN_TIME, MadeUp, Peer, until};
use crate::engine::processes::submit;
use crate::engine::processes::task::Function;
use crate::error::Death;
use crate::future::{CancellationToken, TaskFuture, ending_of};
use crate::lane::message::Fault;
use crate::panic::Caught;

/// Submits a task. Returns its handle, and what its worker will answer.
fn submit(house: &MadeUp) -> (TaskFuture<u64>, u64) {
    submit_until(house, None)
}

/// Submits a task of a call that ends early with this.
fn submit_until(house: &MadeUp, ending: Option<&Ending>) -> (TaskFuture<u64>, u64) {
    let limits = Limits::none().with(|given| given.ending = ending.cloned());
    let (task, answer) = submit_with(house, limits);
    if let Some(ending) = ending {
        task.end_with(ending);
    }
    (task, answer)
}

fn submit_with(house: &MadeUp, limits: Limits) -> (TaskFuture<u64>, u64) {
    fn entry_of<F: Fn(u64) -> u64>(_: F) -> Entry {
        entry::plain::<F, u64, u64>
    }
    let function = Function::new(entry_of(|x| x), None).unwrap();
    let answer = function.code << 32;
    let task = submit::submit(&house.shared, limits, Ok(function), 5_u64, None);
    (task, answer)
}

#[test]
fn a_handle_follows_its_task_from_the_lane_to_its_end() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let (task, answer) = submit(&house);
    let mut begun = None;
    for step in 0..5 {
        match step {
            1 => begun = peer.begin(),
            2 => peer.start(begun.as_mut().unwrap()),
            3 => peer.answer(begun.as_ref().unwrap()),
            4 => peer.responses.end(),
            _ => {}
        }
        // The test does not take the answer: the calls of the handle do.
        assert_eq!(task.is_running(), (2..4).contains(&step), "step {step}");
        assert_eq!(task.is_done(), step == 4, "step {step}");
        if step > 0 {
            assert!(!task.cancel());
        }
    }
    assert!(!task.kill(), "it has ended");
    assert_eq!(house.kill_reason(0), None);
    assert_eq!(task.result(), Ok(answer));
    house.assert_at_rest();
}

#[test]
fn a_task_that_has_not_begun_is_cancelled_by_kill_too_and_its_worker_goes_on() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    for kills in [false, true] {
        let (task, _) = submit(&house);
        assert!(if kills { task.kill() } else { task.cancel() });
        assert!(task.is_done() && !task.is_running());
        assert!(!task.cancel() && !task.kill(), "once");
        assert_eq!(task.result(), Err(TaskError::Cancelled {}));
        house.assert_at_rest();
    }
    assert_eq!(house.kill_reason(0), None);
    assert_eq!(peer.begin(), None);
    assert_eq!(house.lock().cancelled, 2);
}

#[test]
fn a_task_that_runs_is_killed_with_its_worker() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let (task, _) = submit(&house);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    assert!(task.kill());
    assert!(house.kill_reason(0).is_some());
    assert!(!task.kill(), "once");
    assert!(!task.is_done(), "its worker has not died yet");
    house.reclaim(0, Death::Signal(9));
    assert_eq!(task.result(), Err(TaskError::Cancelled {}));
    assert_eq!(house.lock().cancelled, 0);
}

#[test]
fn a_task_of_whose_end_a_callback_is_to_be_told_counts_as_one_until_then() {
    for ends in ["cancelled", "answered", "died", "with the pool"] {
        let house = MadeUp::new(1);
        let mut peer = house.hire(0);
        let (task, _) = submit(&house);
        assert_eq!(house.lock().told, 0);
        let (send, told) = channel();
        for _ in 0..2 {
            let send = send.clone();
            task.on_done(move |outcome| send.send(outcome.is_ok()).unwrap());
            assert_eq!(house.lock().told, 1, "{ends}");
        }
        match ends {
            "cancelled" => assert!(task.cancel()),
            "answered" => peer.serve(),
            "died" => {
                let mut begun = peer.must_begin();
                peer.start(&mut begun);
                house.reclaim(0, Death::Signal(9));
            }
            _ => house.end_background(),
        }
        for _ in 0..2 {
            assert_eq!(told.recv_timeout(IN_TIME), Ok(ends == "answered"));
        }
        assert_eq!(house.lock().told, 0, "{ends}");
        house.assert_at_rest();
        house.end_background();
    }
}

/// No supervisor looks at the lanes here.
#[test]
fn b133_an_answer_after_which_a_task_is_tried_again_is_seen_though_no_caller_waits() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let policy = Retry::up_to(1).on(RetryOn::PANIC);
    let limits = Limits::none().with(|given| given.retry = policy);
    let (task, answer) = submit_with(&house, limits);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    peer.fault(&Fault::Panicked(Caught::saying("not yet")));
    peer.responses.end();
    let mut next = None;
    until("the next attempt comes", || {
        next = peer.begin();
        next.is_some()
    });
    peer.finish(next.unwrap());
    until("its end is seen", || house.lock().told == 0);
    assert_eq!(task.result(), Ok(answer));
    house.assert_at_rest();
    house.end_background();
}

#[test]
fn who_waits_for_the_end_of_all_hears_that_the_last_task_is_cancelled() {
    let house = MadeUp::new(1);
    let _peer = house.hire(0);
    let (task, _) = submit(&house);
    let all_ended = {
        let mut dispatch = house.lock();
        dispatch.state = State::Closing { cancels: false };
        dispatch.all_ended.clone()
    };
    let (shared, (send, woken)) = (house.shared.clone(), channel());
    thread::spawn(move || {
        let options = WaitOptions {
            cold: true,
            deadline: None,
            comes_back: true,
        };
        // The test may have failed.
        let _ = send.send(shared.wait(&all_ended, 0, options));
    });
    until("it sleeps on the bell", || {
        house.lock().leadership.has_leader()
    });
    assert!(task.cancel());
    assert_eq!(woken.recv_timeout(IN_TIME), Ok(true));
    house.end_background();
}

#[test]
fn a_wait_with_a_deadline_ends_without_the_task_and_leaves_it_alone() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let (mut task, answer) = submit(&house);
    let moment = Duration::from_millis(1);
    assert!(task.result_timeout(moment).is_err());
    peer.serve();
    assert_eq!(task.result_timeout(IN_TIME), Ok(Ok(answer)));
    assert_eq!(task.result(), Err(TaskError::Taken {}));
    house.end_background();
}

/// Returns what ends with this token.
fn ending_with(token: &CancellationToken) -> Ending {
    ending_of(std::slice::from_ref(token), None, None).unwrap()
}

#[test]
fn b89_once_a_worker_is_killed_for_a_call_nothing_else_of_that_call_begins() {
    let house = Arc::new(MadeUp::new(1));
    let mut peer = house.hire(0);
    let token = CancellationToken::new();
    let ending = ending_with(&token);
    let (running, _) = submit_until(&house, Some(&ending));
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    // The end comes to one task after the other. After the first one, which is killed, this takes
    // so long that the worker has been replaced.
    let (send, next) = channel();
    let own = Arc::clone(&house);
    let _between = ending.watch(move |_| {
        own.reclaim(0, Death::Signal(9));
        send.send(own.hire(0).begin()).unwrap();
    });
    // More than a lane takes.
    let behind = (0..40).map(|_| submit_until(&house, Some(&ending)).0);
    let behind: Vec<_> = behind.collect();
    token.cancel();
    assert_eq!(next.recv(), Ok(None), "what the new worker begins with");
    for task in iter::once(running).chain(behind) {
        assert!(task.is_done());
        assert_eq!(task.result(), Err(TaskError::Cancelled {}));
    }
    house.assert_at_rest();
    assert_eq!(
        house.lock().cancelled,
        40,
        "what had begun is not one of them"
    );
}

#[test]
fn b89_a_worker_killed_for_one_task_that_has_just_begun_another_of_a_call_ends_both() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let token = CancellationToken::new();
    let ending = ending_with(&token);
    let [first, second, third] = [(); 3].map(|()| submit_until(&house, Some(&ending)));
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    assert!(first.0.kill());
    // The signal has not come yet.
    peer.answer(&begun);
    peer.responses.end();
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    token.cancel();
    assert!(third.0.is_done() && !second.0.is_done());
    house.reclaim(0, Death::Signal(9));
    assert_eq!(house.hire(0).begin(), None, "nothing begins again");
    assert_eq!(first.0.result(), Ok(first.1), "it has ended in time");
    for task in [second.0, third.0] {
        assert!(task.is_done());
        assert_eq!(task.result(), Err(TaskError::Cancelled {}));
    }
    house.assert_at_rest();
}

#[test]
fn b89_from_a_deadline_on_nothing_moves_to_another_worker_and_nothing_new_begins() {
    let house = MadeUp::new(2);
    let mut peer = house.hire(0);
    let at = Instant::now() + Duration::from_millis(20);
    let ending = ending_of(&[], Some(at), None).unwrap();
    let (long, _) = submit(&house);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    // These are in the lane of the one worker. No thread stops them at the deadline.
    let behind: Vec<_> = (0..5)
        .map(|_| submit_until(&house, Some(&ending)).0)
        .collect();
    until("the deadline passes", || Instant::now() > at);
    let mut other = house.hire(1);
    let late = submit_until(&house, Some(&ending)).0;
    assert_eq!(other.begin(), None);
    for task in behind.into_iter().chain([late]) {
        assert!(task.is_done());
        assert_eq!(task.result(), Err(TaskError::DeadlineExceeded {}));
    }
    peer.answer(&begun);
    peer.responses.end();
    assert!(long.result().is_ok());
    house.assert_at_rest();
}

/// Returns what ends with this token, and gives what runs this time.
fn ending_after(token: &CancellationToken, grace: Duration) -> Ending {
    ending_of(std::slice::from_ref(token), None, Some(grace)).unwrap()
}

#[test]
fn b93_a_task_is_told_to_stop_and_the_next_one_of_its_worker_is_not() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let token = CancellationToken::new();
    let ending = ending_after(&token, IN_TIME);
    let (task, answer) = submit_until(&house, Some(&ending));
    let (unbegun, _) = submit_until(&house, Some(&ending));
    let (next, _) = submit(&house);
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    let is_told = |peer: &Peer| {
        let header = peer.lane.header();
        header.is_cut(header.progress().task)
    };
    assert!(!is_told(&peer));
    token.cancel();
    assert!(is_told(&peer));
    assert_eq!(unbegun.result(), Err(TaskError::Cancelled {}), "at once");
    assert!(task.is_running());
    peer.answer(&begun);
    peer.responses.end();
    // The parent has not looked yet.
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    assert!(!is_told(&peer));
    peer.answer(&begun);
    peer.responses.end();
    assert_eq!(task.result(), Ok(answer));
    assert_eq!(next.result(), Ok(answer));
    assert_eq!(house.kill_reason(0), None);
    house.assert_at_rest();
}

#[test]
fn b92_a_task_that_goes_on_is_killed_when_the_grace_period_has_passed() {
    let house = MadeUp::new(1);
    let mut peer = house.hire(0);
    let token = CancellationToken::new();
    let ending = ending_after(&token, Duration::from_millis(20));
    let (task, _) = submit_until(&house, Some(&ending));
    let mut begun = peer.must_begin();
    peer.start(&mut begun);
    let begins = Instant::now();
    token.cancel();
    until("it is killed", || house.kill_reason(0).is_some());
    assert!(begins.elapsed() >= Duration::from_millis(20));
    assert!(!task.is_done());
    house.reclaim(0, Death::Signal(9));
    assert_eq!(task.result(), Err(TaskError::Cancelled {}));
}
