//! What hears of the end of a call, and what does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::*;

fn counting(ending: &Ending, count: &Arc<AtomicUsize>) -> Watch {
    let count = Arc::clone(count);
    ending.watch(move |_| _ = count.fetch_add(1, Ordering::Relaxed))
}

#[test]
fn b88_a_hook_runs_once_or_is_forgotten() {
    let (ending, count) = (Ending::new(), Arc::default());
    let _kept = counting(&ending, &count);
    drop(counting(&ending, &count));
    assert_eq!(ending.reason(), None);
    assert_eq!(ending.fire_if_over(), None);
    for _ in 0..2 {
        ending.end(Reason::Cancelled);
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
    assert!(ending.0.hooks().list.is_empty());
    let _late = counting(&ending, &count);
    assert_eq!(
        count.load(Ordering::Relaxed),
        2,
        "the call was over already"
    );
    assert!(ending.0.hooks().list.is_empty());
}

#[test]
fn b88_a_hook_may_end_and_watch_and_forget() {
    let ending = Ending::new();
    let (other, count) = (ending.clone(), Arc::<AtomicUsize>::default());
    let inner = counting(&ending, &count);
    let seen = Arc::clone(&count);
    let _watch = ending.watch(move |_| {
        other.end(Reason::DeadlineExceeded);
        drop(inner);
        drop(counting(&other, &seen));
    });
    ending.end(Reason::Cancelled);
    assert_eq!(count.load(Ordering::Relaxed), 2);
    assert_eq!(
        ending.reason(),
        Some(Reason::Cancelled),
        "the first reason stays"
    );
}

#[test]
fn b88_a_call_ends_with_the_first_of_its_tokens_and_then_lets_go_of_them() {
    let tokens = [Ending::new(), Ending::new()];
    let call = Ending::of_call(tokens.iter(), None, None);
    let hooks = |token: &Ending| token.0.hooks().list.len();
    assert_eq!((hooks(&tokens[0]), hooks(&tokens[1])), (1, 1));
    tokens[1].end(Reason::Cancelled);
    assert_eq!(call.reason(), Some(Reason::Cancelled));
    assert_eq!(tokens[0].reason(), None);
    drop(call);
    assert_eq!((hooks(&tokens[0]), hooks(&tokens[1])), (0, 0));
    let late = Ending::of_call(tokens.iter(), None, None);
    assert_eq!(late.reason(), Some(Reason::Cancelled));
}

#[test]
fn b90_a_deadline_is_seen_at_once_and_fired_by_what_looks() {
    let past = Ending::of_call(std::iter::empty(), Some(Instant::now()), None);
    let count = Arc::default();
    let _watch = counting(&past, &count);
    assert_eq!(past.reason(), Some(Reason::DeadlineExceeded));
    assert_eq!(count.load(Ordering::Relaxed), 0);
    assert_eq!(past.fire_if_over(), Some(Reason::DeadlineExceeded));
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let far = Instant::now() + Duration::from_secs(3_600);
    let far = Ending::of_call(std::iter::empty(), Some(far), None);
    assert_eq!(far.reason(), None);
}

#[test]
fn b90_a_deadline_that_is_armed_fires_by_itself_in_order_of_time() {
    let now = Instant::now();
    let (send, receive) = channel();
    let armed = |after: u64| {
        let at = now + Duration::from_millis(after);
        let ending = Ending::of_call(std::iter::empty(), Some(at), None);
        let send = send.clone();
        let watch = ending.watch(move |reason| send.send((after, reason)).unwrap());
        ending.arm().unwrap();
        ending.arm().unwrap();
        (ending, watch)
    };
    let far = armed(3_600_000);
    let both = [armed(120), armed(60)];
    for expected in [60, 120] {
        let (after, reason) = receive.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!((after, reason), (expected, Reason::DeadlineExceeded));
        assert!(now.elapsed() >= Duration::from_millis(after));
    }
    let again = armed(130);
    assert_eq!(
        receive.recv_timeout(Duration::from_secs(60)).unwrap().0,
        130
    );
    drop((far, both, again));
    assert!(receive.try_recv().is_err());
}

#[test]
fn b92_the_hooks_of_the_second_kind_run_when_the_grace_period_has_passed() {
    let token = Ending::new();
    let with = |grace| Ending::of_call(std::iter::once(&token), None, grace);
    let calls = [None, Some(20), Some(3_600_000)].map(|grace| {
        let call = with(grace.map(Duration::from_millis));
        let (send, heard) = channel();
        let [asked, killed] = [send.clone(), send];
        let watches = call.watch(move |reason| asked.send(("asked", reason)).unwrap());
        let watches = watches.and(call.watch_kill(move |reason| {
            // The test may have ended.
            let _ = killed.send(("killed", reason));
        }));
        (call, heard, watches)
    });
    token.end(Reason::Cancelled);
    for (call, heard, _) in &calls {
        assert_eq!(heard.recv(), Ok(("asked", Reason::Cancelled)));
        assert_eq!(call.reason(), Some(Reason::Cancelled));
    }
    let [
        (at_once, heard_first, _),
        (soon, heard_soon, _),
        (late, heard_late, watches),
    ] = calls;
    assert_eq!(heard_first.try_recv(), Ok(("killed", Reason::Cancelled)));
    assert_eq!(at_once.killed(), Some(Reason::Cancelled));
    let long = Duration::from_secs(30);
    assert_eq!(
        heard_soon.recv_timeout(long),
        Ok(("killed", Reason::Cancelled))
    );
    assert_eq!(soon.killed(), Some(Reason::Cancelled));
    assert!(heard_late.try_recv().is_err());
    assert_eq!(late.killed(), None);
    drop(watches);
    assert!(heard_late.recv().is_err(), "both hooks are gone");
    // One that comes too late runs at once.
    let (send, heard) = channel();
    let _watch = soon.watch_kill(move |reason| send.send(reason).unwrap());
    assert_eq!(heard.try_recv(), Ok(Reason::Cancelled));
}

#[test]
fn b92_a_grace_period_begins_at_the_deadline_whenever_it_is_seen() {
    let at = Instant::now();
    let hour = Duration::from_secs(3_600);
    let call = Ending::of_call(std::iter::empty(), Some(at), Some(hour));
    assert_eq!(call.reason(), Some(Reason::DeadlineExceeded));
    assert_eq!((call.killed_at(), call.killed()), (Some(at + hour), None));
    let none = Ending::of_call(std::iter::empty(), Some(at), Some(Duration::ZERO));
    assert_eq!(none.killed(), Some(Reason::DeadlineExceeded));
    let endless = Ending::of_call(std::iter::empty(), Some(at), Some(Duration::MAX));
    assert_eq!(
        (endless.reason().is_some(), endless.killed_at()),
        (true, None)
    );
    assert_eq!(endless.killed(), None);
}
