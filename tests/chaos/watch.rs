//! Deadlines for everything that the test waits for: a hang is a failure that says where.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Far longer than anything here should take, however busy the machine is.
const DEADLINE: Duration = Duration::from_secs(40);

type Places = Arc<Mutex<BTreeMap<String, (String, Instant)>>>;

/// Knows what each thread is at.
pub(crate) struct Watch {
    places: Places,
    /// Gone when the round is.
    _round: Sender<()>,
}

impl Watch {
    pub(crate) fn new(seed: u64) -> Self {
        let (round, over) = channel::<()>();
        let places = Places::default();
        let watched = Arc::clone(&places);
        std::thread::spawn(move || {
            while over.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                let places = watched.lock().unwrap();
                if places.values().any(|(_, since)| since.elapsed() > DEADLINE) {
                    // Those that hang cannot be stopped. Past the test harness, which would keep this to itself.
                    let text = format!("hangs, MANYHANDS_SEED={seed}: {places:#?}\n");
                    let _ = std::io::stderr().write_all(text.as_bytes());
                    std::process::abort();
                }
            }
        });
        Self {
            places,
            _round: round,
        }
    }

    /// Does what may take until the deadline.
    pub(crate) fn during<T>(&self, who: &str, what: &str, f: impl FnOnce() -> T) -> T {
        let place = (what.to_owned(), Instant::now());
        self.places.lock().unwrap().insert(who.to_owned(), place);
        let result = f();
        self.places.lock().unwrap().remove(who);
        result
    }
}
