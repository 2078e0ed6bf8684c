//! A C library that crashes on some inputs, called in a loop that does not stop for it.
//!
//! `library/port.c` reads the port of a service from a line. Lines that its author did not think of
//! end the process: by SIGSEGV, or by `abort`. No Rust code can catch that. Here the loop runs on
//! worker processes, so a worker ends and not the program. The line that did it is reported, the
//! worker is replaced, and every other line has its port.
//!
//! Run it with `cargo run -p crash_isolation`. It prints the same lines each time.

use std::ffi::{CStr, CString, c_char, c_int};

use manyhands::prelude::*;

mod library {
    use super::{c_char, c_int};

    unsafe extern "C" {
        /// The port in a line; see `library/port.h`.
        pub(crate) fn port_of(line: *const c_char) -> c_int;
    }
}

/// The port in a line such as `http=80`.
fn port_of(line: &CStr) -> i32 {
    // SAFETY: the pointer is to a string that ends with a zero and lives longer than the call. The
    // library does not say what else it asks of the string; this example is about that. On some
    // lines the library reads at address 1, where no process has memory. So the process ends there,
    // and corrupts nothing.
    unsafe { library::port_of(line.as_ptr()) }
}

const LINES: [&str; 10] = [
    "http=80",
    "https=443",
    "smtp", // no '=': SIGSEGV
    "ssh=22",
    "dns=-53", // out of range: SIGABRT
    "ntp=123",
    "imap=", // 0: SIGABRT
    "ldap=389",
    "# comment", // SIGSEGV
    "irc=6667",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::processes(2)?;
    let lines = LINES
        .iter()
        .map(|line| CString::new(*line))
        .collect::<Result<Vec<_>, _>>()?;

    // `map` would end with the first error; `map_outcomes` has an outcome for each line, in order.
    let outcomes = pool.map_outcomes(|line: CString| port_of(&line), lines);

    let mut crashed = 0;
    for (line, outcome) in LINES.iter().zip(&outcomes) {
        match outcome {
            Ok(port) => println!("{line:12} port {port}"),
            // The error has the worker's pid as well; it is another one in each run.
            Err(TaskError::WorkerDied { cause, .. }) => {
                crashed += 1;
                println!("{line:12} the worker {cause}");
            }
            Err(other) => println!("{line:12} {other}"),
        }
    }
    println!("{} lines, {crashed} crashes", outcomes.len());

    // The pool is as good as before.
    let again = pool.map(|line: CString| port_of(&line), [c"pop3=110".to_owned()])?;
    println!("and one more: port {}", again[0]);
    Ok(pool.close()?)
}
