//! Starting a worker process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::output::Listener;
use super::server::{Hire, Server};
use super::settings::Settings;
use super::worker::{Greeting, WORKER};
use crate::engine::short_name;
use crate::lane::Lane;
use crate::lane::bell::Bell;
use crate::os::pidfd::Child;
use crate::os::{clock, handoff};
use crate::process::Origin;
use crate::process::launch::Launch;
use crate::process::tree;

/// How long a worker may take from its start to its first sign of life. Its initialiser may take as
/// long as it likes.
pub(super) const START_TIME: Duration = Duration::from_secs(30);

/// A worker process as its parent has it.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) child: Arc<Child>,
    pub(super) lane: Lane,
    /// When the start of the worker began, by the system's clock.
    pub(super) since: u64,
    /// Closed when the parent drops the worker or dies. The worker dies with it.
    pub(super) _life_line: OwnedFd,
}

/// What is particular to one worker of a pool.
pub(super) struct Place<'a> {
    pub(super) number: usize,
    /// The number of workers in all.
    pub(super) workers: usize,
    /// The cores this process may use.
    pub(super) cores: &'a [usize],
    pub(super) listener: Option<&'a Listener>,
}

/// Starts a worker. It will be ready some time after this returns.
///
/// If there is a server, it forks the worker. Otherwise the worker is the executable, started
/// again.
///
/// This must be called on a thread that lives as long as the worker shall: the kernel kills the
/// worker when that thread ends.
pub(super) fn start(
    settings: &Settings,
    place: &Place<'_>,
    bell: &Bell,
    server: Option<&mut Server>,
    meanwhile: &dyn Fn(),
) -> io::Result<Started> {
    let since = clock::now();
    let (lane, lane_fd) = Lane::new_with(settings.forwards_logs())?;
    // The first thing the worker does is to report; the bell shall ring for it.
    let name = format!("manyhands:{}:{}", settings.name, place.number);
    let greeting = Greeting {
        name: short_name(&settings.name, ':', place.number),
        setup: settings.setup(place.number, place.cores),
        origin: Origin::of_worker(&settings.name, place.number),
    };
    let (stdout, from_stdout) = settings.stdout.stream()?;
    let (stderr, from_stderr) = settings.stderr.stream()?;
    let mut environment = settings.environment(place.number, place.workers, place.cores.len())?;
    let model = settings.model.as_ref().map(|model| model.fd.as_fd());
    let is_asked = !settings.spares_descendants;
    let is_forked = server.is_some();
    let entry = is_asked.then(|| tree::enlist(is_forked)).flatten();
    tree::mark(&mut environment, entry.as_ref());
    let (child, life_line) = match server {
        None => {
            let launch = Launch {
                name: &name,
                environment,
                stdout,
                stderr,
                blocked: &[],
            };
            let mut fds = vec![lane_fd.as_fd(), bell.fd()];
            fds.extend(model);
            launch.launch(WORKER, &greeting, &fds)?
        }
        Some(server) => {
            let (life_line, theirs) = handoff::pair()?;
            let outputs = [stdout.into_fd()?, stderr.into_fd()?];
            let hire = Hire {
                greeting,
                environment,
                has_stdout: outputs[0].is_some(),
                has_stderr: outputs[1].is_some(),
            };
            let mut fds = vec![lane_fd.as_fd(), bell.fd(), theirs.as_fd()];
            fds.extend(model);
            fds.extend(outputs.iter().flatten().map(AsFd::as_fd));
            (server.hire(hire, &fds, meanwhile)?, life_line)
        }
    };
    if let Some(listener) = place.listener {
        listener.add(&name, from_stdout, &settings.stdout);
        listener.add(&name, from_stderr, &settings.stderr);
    }
    Ok(Started {
        child: Arc::new(child.with_tree(entry)),
        lane,
        since,
        _life_line: life_line,
    })
}
