//! Models of which process may free a block, while others move it without the lock of the ledger.

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::Holders;

/// A member that was killed while it held the block: it died between setting its bit and the pop.
const DEAD: u16 = 0;
const RECEIVER: u16 = 64;
const SENDER: u16 = 1;

/// A payload, with the lock of the ledger, and a queue for one payload.
#[derive(Default)]
struct Payload {
    holders: Holders,
    /// The lock of the ledger, and whether the block was freed.
    is_free: Mutex<bool>,
    is_in_queue: AtomicBool,
}

impl Payload {
    /// Releases like `Family::release`, and like the process that reclaims a dead member.
    fn release(&self, member: u16) {
        let mut is_free = self.is_free.lock().unwrap();
        assert!(!*is_free, "freed twice");
        if self.holders.is_needed_besides(member) {
            self.holders.remove(member);
        } else {
            *is_free = true;
        }
    }

    /// Moves the payload into the queue like `Payload::go_over` and the store that makes a push
    /// happen.
    fn push(&self) {
        self.holders.launch();
        self.holders.remove(SENDER);
        self.is_in_queue.store(true, Ordering::Release);
    }

    /// Moves the payload out of the queue like `Payload::reach` and `Payload::has_come_over`; then
    /// the read and the drop.
    fn pop(&self) {
        self.holders.insert(RECEIVER);
        self.holders.land();
        assert!(
            !*self.is_free.lock().unwrap(),
            "freed under its receiver's hands"
        );
        self.release(RECEIVER);
    }

    fn is_given_back(&self) {
        assert!(
            *self.is_free.lock().unwrap(),
            "the last one to let go has not freed it"
        );
    }
}

fn model(run: impl Fn(&Arc<Payload>) + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(3));
    model.check(move || {
        let payload = Arc::new(Payload::default());
        run(&payload);
        payload.is_given_back();
    });
}

fn spawn(payload: &Arc<Payload>, run: fn(&Payload)) -> thread::JoinHandle<()> {
    let payload = payload.clone();
    thread::spawn(move || run(&payload))
}

/// The receiver before was killed when it had reached for the payload and not popped it.
#[test]
fn a_reclaim_frees_no_payload_that_is_being_popped() {
    model(|payload| {
        payload.holders.launch();
        payload.holders.insert(DEAD);
        let receiver = spawn(payload, Payload::pop);
        payload.release(DEAD);
        receiver.join().unwrap();
    });
}

/// In no protocol of today does a dead process hold what a live one pushes. The rule covers that
/// case too.
#[test]
fn a_reclaim_frees_no_payload_that_is_being_pushed() {
    model(|payload| {
        payload.holders.insert(SENDER);
        payload.holders.insert(DEAD);
        let sender = spawn(payload, Payload::push);
        payload.release(DEAD);
        sender.join().unwrap();
        payload.pop();
    });
}

/// The payload moves by two moves, from a word that is read late to one that was read early.
#[test]
fn a_reclaim_frees_no_payload_that_is_pushed_and_popped_meanwhile() {
    model(|payload| {
        payload.holders.insert(SENDER);
        payload.holders.insert(DEAD);
        let sender = spawn(payload, Payload::push);
        let receiver = spawn(payload, |payload| {
            while !payload.is_in_queue.load(Ordering::Acquire) {
                thread::yield_now();
            }
            payload.pop();
        });
        payload.release(DEAD);
        sender.join().unwrap();
        receiver.join().unwrap();
    });
}
