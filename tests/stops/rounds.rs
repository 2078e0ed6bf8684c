//! The rounds of each test: children are stopped and killed, and calls are made while they are.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use manyhands::Process;
use manyhands::process::ExitStatus;

use crate::common::random::{self, Random};
use crate::common::{self, eventually};

const CHILDREN: usize = 3;

/// By how much a call may be late on a machine that others use as well.
const LATE: u64 = 10_000;

type Run = Arc<dyn Fn(Duration) + Send + Sync>;

/// A call that says how long it waits.
pub(crate) struct Call {
    name: &'static str,
    /// How long it takes at most beside the time that it is given.
    extra: Duration,
    run: Run,
}

impl Call {
    pub(crate) fn new(name: &'static str, run: impl Fn(Duration) + Send + Sync + 'static) -> Self {
        Self {
            name,
            extra: Duration::ZERO,
            run: Arc::new(run),
        }
    }

    /// A call that gives up by itself after some time.
    pub(crate) fn with_own_time(mut self, extra: Duration) -> Self {
        self.extra = extra;
        self
    }
}

/// A thread that makes calls, so that one which hangs is noticed.
struct Caller {
    orders: Sender<(Run, Duration)>,
    done: Receiver<Duration>,
}

impl Caller {
    fn new() -> Self {
        let (orders, ordered) = channel::<(Run, Duration)>();
        let (tell, done) = channel();
        thread::spawn(move || {
            for (run, limit) in ordered {
                let start = Instant::now();
                run(limit);
                if tell.send(start.elapsed()).is_err() {
                    return;
                }
            }
        });
        Self { orders, done }
    }

    /// How late the call was.
    fn make(&self, call: &Call, limit: Duration, late: Duration) -> Duration {
        self.orders.send((call.run.clone(), limit)).unwrap();
        let most = limit + call.extra + late;
        match self.done.recv_timeout(most + Duration::from_secs(1)) {
            Ok(took) if took <= most => took.saturating_sub(limit + call.extra),
            Ok(took) => panic!("{} with {limit:?} took {took:?}", call.name),
            Err(error) => panic!("{} with {limit:?} does not come back: {error}", call.name),
        }
    }
}

fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

fn stop(child: &Process) {
    signal(child.pid(), nix::sys::signal::Signal::SIGSTOP);
    eventually("the child is stopped", || common::is_stopped(child.pid()));
}

fn go_on(child: &Process) {
    signal(child.pid(), nix::sys::signal::Signal::SIGCONT);
}

fn join_killed(dead: &mut VecDeque<Process>) {
    for child in dead.drain(..) {
        assert_eq!(child.join().unwrap(), ExitStatus::Signal(9));
    }
}

/// Stops and kills children, as often as the variables say, and makes calls while some are stopped.
/// In the end all of them have been killed.
pub(crate) fn run(what: &str, mut spawn: impl FnMut(u64) -> Process, calls: &[Call]) {
    let mut random = Random::new(random::seed());
    let stops = random::number("MANYHANDS_STOPS").unwrap_or(60);
    let kills = random::number("MANYHANDS_KILLS").unwrap_or(30);
    let late = Duration::from_millis(random::number("MANYHANDS_LATE").unwrap_or(LATE));
    let caller = Caller::new();
    let mut spawn = |random: &mut Random| spawn(random.next());
    let mut children: Vec<Process> = (0..CHILDREN).map(|_| spawn(&mut random)).collect();
    // Children that are dead and have not been waited for: a call has to notice what was theirs.
    let mut dead = VecDeque::new();
    let (mut stopped, mut killed, mut made, mut worst) = (0, 0, 0, Duration::ZERO);
    while stopped < stops || killed < kills {
        thread::sleep(Duration::from_micros(random.below(2_000) as u64));
        // Not all: one goes on and on.
        let first = random.below(CHILDREN);
        let victims: Vec<usize> = (0..=random.below(CHILDREN - 1))
            .map(|offset| (first + offset) % CHILDREN)
            .collect();
        let stops_them = stopped < stops && (killed >= kills || random.below(4) > 0);
        if stops_them {
            for &victim in &victims {
                stop(&children[victim]);
                stopped += 1;
            }
            for _ in 0..=random.below(2) {
                let call = &calls[random.below(calls.len())];
                let limit = Duration::from_millis([0, 1, 15, 40][random.below(4)]);
                worst = worst.max(caller.make(call, limit, late));
                made += 1;
            }
        }
        let mut dying = Vec::new();
        for victim in victims {
            if killed < kills && (!stops_them || random.one_in(2)) {
                common::kill(children[victim].pid());
                killed += 1;
                dying.push(victim);
            } else if stops_them {
                go_on(&children[victim]);
            }
        }
        // Now that none is stopped: one that is may have the ledger, which a new child needs.
        for victim in dying {
            let child = std::mem::replace(&mut children[victim], spawn(&mut random));
            dead.push_back(child);
        }
        if random.one_in(2) || dead.len() > 8 {
            join_killed(&mut dead);
        }
    }
    for child in children {
        common::kill(child.pid());
        dead.push_back(child);
    }
    join_killed(&mut dead);
    println!("{what}: {stopped} stops, {killed} kills, {made} calls, the latest by {worst:?}");
}
