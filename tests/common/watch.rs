//! Deadlines for everything that a test waits for: a hang is a failure that says where.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

type Places = Arc<Mutex<BTreeMap<String, (String, Instant)>>>;

/// Knows what each thread is at.
pub struct Watch {
    places: Places,
    /// Gone when the round is.
    _round: Sender<()>,
}

impl Watch {
    /// Aborts the process when a thread has been at one thing for longer than `deadline`. `round`
    /// tells how to have the same again.
    pub fn new(round: impl Into<String>, deadline: Duration) -> Self {
        let (sender, over) = channel::<()>();
        let (places, round) = (Places::default(), round.into());
        let watched = Arc::clone(&places);
        std::thread::spawn(move || {
            let look = deadline.min(Duration::from_secs(1));
            while over.recv_timeout(look) == Err(RecvTimeoutError::Timeout) {
                let places = watched.lock().unwrap();
                if places.values().any(|(_, since)| since.elapsed() > deadline) {
                    // Threads that hang cannot be stopped. This is written past the test harness,
                    // which would keep it to itself.
                    super::stderr::say(&format!("hangs, {round}: {places:#?}\n"));
                    std::process::abort();
                }
            }
        });
        Self {
            places,
            _round: sender,
        }
    }

    /// Does what may take until the deadline.
    pub fn during<T>(&self, who: &str, what: &str, f: impl FnOnce() -> T) -> T {
        let place = (what.to_owned(), Instant::now());
        self.places.lock().unwrap().insert(who.to_owned(), place);
        let result = f();
        self.places.lock().unwrap().remove(who);
        result
    }
}
