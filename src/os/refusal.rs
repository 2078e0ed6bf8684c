//! What the kernel refused, in words: the call, what it was for, the limit that it met, and what to
//! do about it.
//!
//! The kernel says no more than a number. The limit that the number stands for is read at the
//! moment of the refusal, because it may be another one by the time the user looks.

use std::fmt;
use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::memory_left::memory_left;

/// A refusal. It is inside the [`io::Error`] that [`refused`] makes.
#[derive(Debug)]
struct Refusal {
    call: &'static str,
    object: String,
    errno: Errno,
    /// What limit it is and what to do; empty if that is not known.
    advice: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}: {}", self.call, self.object, text(self.errno))?;
        if self.advice.is_empty() {
            return Ok(());
        }
        write!(f, " ({})", self.advice)
    }
}

impl std::error::Error for Refusal {}

/// Returns a refused call as an error of the same kind, whose text names the call, what it was for,
/// the limit, and what to do.
pub(crate) fn refused(
    call: &'static str,
    object: impl fmt::Display,
    error: impl Into<io::Error>,
) -> io::Error {
    let error = error.into();
    let Some(number) = error.raw_os_error() else {
        if code(&error).is_some() {
            // It names its call already.
            return error;
        }
        return io::Error::new(error.kind(), format!("{call} for {object}: {error}"));
    };
    let errno = Errno::from_raw(number);
    let object = object.to_string();
    let refusal = Refusal {
        call,
        advice: advice(call, &object, errno),
        object,
        errno,
    };
    io::Error::new(error.kind(), refusal)
}

/// Returns the kernel's number for an error: that of a refusal as well.
pub(crate) fn code(error: &io::Error) -> Option<Errno> {
    if let Some(code) = error.raw_os_error() {
        return Some(Errno::from_raw(code));
    }
    let refusal = error.get_ref()?.downcast_ref::<Refusal>()?;
    Some(refusal.errno)
}

/// Checks that this process may make a file of `len` bytes. Beyond the limit on the size of files
/// the kernel sends a signal that ends the process (SIGXFSZ), before there is an error.
///
/// # Errors
///
/// The error of the kernel for a file that is too large.
pub(crate) fn check_file_size(
    call: &'static str,
    object: impl fmt::Display,
    len: u64,
) -> io::Result<()> {
    match limit(Resource::RLIMIT_FSIZE) {
        Some(most) if len > most => Err(refused(call, object, Errno::EFBIG)),
        _ => Ok(()),
    }
}

/// Returns what the kernel's number means.
fn text(errno: Errno) -> &'static str {
    match errno {
        // "Try again" is no advice here.
        Errno::EAGAIN => "Resource temporarily unavailable",
        errno => errno.desc(),
    }
}

/// Returns a limit of this process; `None` if there is none.
fn limit(resource: Resource) -> Option<u64> {
    let (soft, _) = getrlimit(resource).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

/// Returns the first number in a file.
fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Returns the limit that a call has met, and what to do.
fn advice(call: &'static str, object: &str, errno: Errno) -> String {
    match errno {
        Errno::EMFILE => format!(
            "RLIMIT_NOFILE is {}; raise it with `ulimit -n`",
            shown(limit(Resource::RLIMIT_NOFILE))
        ),
        Errno::ENFILE => format!(
            "the machine has as many open files as it may have, which is {}; raise it with `sysctl fs.file-max`",
            shown(number("/proc/sys/fs/file-max"))
        ),
        Errno::EFBIG => format!(
            "RLIMIT_FSIZE is {} bytes, and it counts for shared memory too; raise it with `ulimit -f`",
            shown(limit(Resource::RLIMIT_FSIZE))
        ),
        Errno::EPERM | Errno::ENOSYS => not_allowed(call),
        Errno::ENOENT => missing(object),
        Errno::EACCES => "the file's permissions, or a mount without the right to execute, do not allow it".to_owned(),
        Errno::EAGAIN if call == "timer_create" => format!(
            "RLIMIT_SIGPENDING is {}, for timers and signals of the user together; raise it with `ulimit -i`",
            shown(limit(Resource::RLIMIT_SIGPENDING))
        ),
        // The C library says so as well where a thread's stack found no memory.
        Errno::EAGAIN if ["clone", "fork", "posix_spawn"].contains(&call) => {
            too_many_tasks().unwrap_or_else(no_memory)
        }
        Errno::ENOMEM => no_memory(),
        Errno::ENOSPC => memory_said(),
        Errno::E2BIG => "the environment is too large for a new program; the limit is a quarter of `ulimit -s`, and 128 KiB \
                         for one variable"
            .to_owned(),
        _ => String::new(),
    }
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "not known".to_owned(), |limit| limit.to_string())
}

/// Returns since which kernel there is a call, of those that are younger than the oldest kernel in
/// use.
fn since(call: &str) -> Option<&'static str> {
    match call {
        "memfd_create" => Some("3.17"),
        "pidfd_open" => Some("5.3"),
        _ => None,
    }
}

fn not_allowed(call: &str) -> String {
    let sandbox =
        format!("a sandbox, such as a container's seccomp profile, forbids {call}: allow it there");
    match since(call) {
        Some(version) => format!("{sandbox}. Or the kernel is older than Linux {version}"),
        None => sandbox,
    }
}

/// Returns what is missing where a file that is on every system is not there.
fn missing(object: &str) -> String {
    if object.contains("/proc/") && !std::path::Path::new("/proc/self").exists() {
        return "/proc is not mounted, and worker processes need it: `mount -t proc proc /proc`"
            .to_owned();
    }
    if object.starts_with("/dev/") {
        return "/dev is not there as it should be; in a container or chroot, mount it".to_owned();
    }
    String::new()
}

/// Returns which limit on processes and threads is reached; `None` if none is known to be.
fn too_many_tasks() -> Option<String> {
    if let Some((most, path)) = full_group() {
        return Some(format!(
            "the control group's limit on processes and threads is reached: pids.max is {most} in {path}; raise it there, or \
             with the container's option (`--pids-limit`)"
        ));
    }
    let own = limit(Resource::RLIMIT_NPROC)
        .filter(|most| user_tasks().is_none_or(|tasks| tasks >= *most))?;
    Some(format!(
        "RLIMIT_NPROC is {own}, for processes and threads of the user together; raise it with `ulimit -u`"
    ))
}

/// Returns how many threads the user of this process has; `None` if `/proc` does not tell.
fn user_tasks() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let own = fs::metadata("/proc/self").ok()?.uid();
    let mut count = 0;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let is_ours = process.metadata().is_ok_and(|data| data.uid() == own);
        if is_ours && process.file_name().as_encoded_bytes()[0].is_ascii_digit() {
            count += fs::read_dir(process.path().join("task")).map_or(1, Iterator::count) as u64;
        }
    }
    Some(count)
}

/// Returns the limit on tasks of a control group of this process that is full, and the group's
/// folder.
fn full_group() -> Option<(u64, String)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            names if names.split(',').any(|name| name == "pids") => "/sys/fs/cgroup/pids",
            _ => continue,
        };
        // Inside a container the path may be the one outside of it. Then the process's own group is
        // at the root.
        let mut path = path.trim_end_matches('/');
        loop {
            let folder = format!("{root}{path}");
            let most = number(&format!("{folder}/pids.max"));
            let there = number(&format!("{folder}/pids.current"));
            if let (Some(most), Some(there)) = (most, there)
                && there >= most
            {
                return Some((most, folder));
            }
            match path.rfind('/') {
                Some(end) => path = &path[..end],
                None => break,
            }
        }
    }
    None
}

/// Returns which limit on memory is met, as far as can be told.
fn no_memory() -> String {
    let maps = fs::read_to_string("/proc/self/maps").ok();
    if let (Some(maps), Some(most)) = (maps, number("/proc/sys/vm/max_map_count")) {
        // Some of them are the kernel's own. A few are free again after the refusal.
        let count = maps.lines().count() as u64;
        if count + 16 >= most {
            return format!(
                "this process has {count} mappings, and vm.max_map_count is {most}; raise it with `sysctl -w vm.max_map_count=…`, \
                 or have fewer objects, pools and threads at a time"
            );
        }
    }
    if let Some(most) = limit(Resource::RLIMIT_AS) {
        return format!("RLIMIT_AS is {most} bytes of addresses; raise it with `ulimit -v`");
    }
    if let Some(most) = limit(Resource::RLIMIT_DATA) {
        return format!("RLIMIT_DATA is {most} bytes; raise it with `ulimit -d`");
    }
    memory_said()
}

fn memory_said() -> String {
    match memory_left() {
        Some(left) => {
            format!(
                "the machine, or the control group of this process, has {left} bytes of memory left"
            )
        }
        None => "the machine, or the control group of this process, has no memory left".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b114_a_refusal_names_call_object_limit_and_way_out_and_keeps_its_kind() {
        let most = limit(Resource::RLIMIT_NOFILE).unwrap();
        for (errno, text) in [
            (
                Errno::EMFILE,
                format!(
                    "memfd_create for a lane: Too many open files (RLIMIT_NOFILE is {most}; raise it with `ulimit -n`)"
                ),
            ),
            (
                Errno::ENOSYS,
                "memfd_create for a lane: Function not implemented (a sandbox, such as a container's seccomp profile, forbids \
                 memfd_create: allow it there. Or the kernel is older than Linux 3.17)"
                    .to_owned(),
            ),
            (Errno::EBADF, "memfd_create for a lane: Bad file number".to_owned()),
        ] {
            let error = refused("memfd_create", "a lane", errno);
            assert_eq!(error.to_string(), text);
            assert_eq!(error.kind(), io::Error::from(errno).kind());
            assert_eq!(code(&error), Some(errno));
            // One that is refused already keeps its own words.
            assert_eq!(refused("open", "x", error).to_string(), text);
        }
        // A call that only would have to wait is no matter of limits, nor is a process that is
        // gone.
        let later = refused("recvmsg", "a line", Errno::EAGAIN);
        assert_eq!(
            later.to_string(),
            "recvmsg for a line: Resource temporarily unavailable"
        );
        assert_eq!(later.kind(), io::ErrorKind::WouldBlock);
        let gone = refused("open", "/proc/0/stat", Errno::ENOENT);
        assert_eq!(
            gone.to_string(),
            "open for /proc/0/stat: No such file or directory"
        );
        let other = refused("open", "x", io::Error::other("why"));
        assert_eq!(other.to_string(), "open for x: why");
        assert_eq!(code(&other), None);
    }

    #[test]
    fn b114_a_file_that_would_end_the_process_is_an_error_before() {
        check_file_size("fallocate", "a lane", 0).unwrap();
        let Some(most) = limit(Resource::RLIMIT_FSIZE) else {
            return;
        };
        let error = check_file_size("fallocate", "a lane", most + 1).unwrap_err();
        assert!(error.to_string().contains("`ulimit -f`"), "{error}");
    }
}
