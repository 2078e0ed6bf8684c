//! Starting a worker process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::worker::{Greeting, VARIABLE};
use crate::lane::Lane;
use crate::lane::bell::Bell;
use crate::os::{handoff, image::Image, pidfd::Child};
use crate::process::Origin;

/// A worker process as its parent has it.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) child: Arc<Child>,
    pub(super) lane: Lane,
    /// Closed when the parent lets go of the worker or dies; the worker dies with it.
    pub(super) _life_line: OwnedFd,
}

/// Starts worker `number` of the pool `pool`. It will be ready some time after this returns.
///
/// To be called on a thread that lives as long as the worker shall: the kernel kills the worker when that thread ends.
pub(super) fn start(pool: &str, number: usize, bell: &Bell) -> io::Result<Started> {
    let lane = Lane::new()?;
    // The first thing the worker does is to report; the bell shall ring for it.
    let (life_line, theirs) = handoff::pair()?;
    let secret = secret();
    let name = format!("manyhands:{pool}:{number}");
    let greeting = Greeting {
        fingerprint: Image::main().fingerprint(),
        parent: std::process::id(),
        name: short_name(pool, number),
        origin: Origin::of_worker(pool, number),
    };
    // Sent before there is anybody to read it: the worker finds it waiting.
    handoff::send(
        life_line.as_fd(),
        &greeting.to_message(secret)?,
        &[lane.fd(), bell.fd()],
    )?;

    // Never by its path: the file there may be another by now. Without a closure to run between fork and exec, std
    // uses posix_spawn, whose cost does not grow with the memory of this process.
    let mut process = Command::new("/proc/self/exe")
        .arg0(name)
        .env(VARIABLE.to_str().unwrap_or_default(), format!("{secret:x}"))
        .stdin(Stdio::from(theirs))
        .spawn()?;
    match Child::open(process.id()) {
        Ok(child) => Ok(Started {
            child: Arc::new(child),
            lane,
            _life_line: life_line,
        }),
        Err(error) => {
            // Out of descriptors, most likely. Nobody else knows of this process.
            process.kill()?;
            process.wait()?;
            Err(error)
        }
    }
}

/// A name of at most 15 bytes, which is what the kernel keeps: the end of it tells workers apart.
fn short_name(pool: &str, number: usize) -> String {
    let number = format!(":{number}");
    let mut end = pool.len().min(15_usize.saturating_sub(number.len()));
    while !pool.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{number}", &pool[..end])
}

/// A number that nobody else knows, from the seeds of std's hash maps, which come from the system.
pub(crate) fn secret() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_keep_the_number() {
        assert_eq!(short_name("render", 3), "render:3");
        assert_eq!(short_name("a-very-long-pool-name", 12), "a-very-long-:12");
        assert_eq!(short_name("ßßßßßßßßßß", 1), "ßßßßßß:1");
    }
}
