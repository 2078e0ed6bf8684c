//! What the benches share: medians, percentiles, a body of known length, a line about the machine.
#![allow(dead_code, reason = "each bench uses its part")]

use std::time::{Duration, Instant};

/// Returns the middle value.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the value below which this many in a hundred lie.
pub(crate) fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() * percent / 100).min(values.len() - 1)]
}

pub(crate) fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

/// A chain of multiplications and shifts that can be neither vectorised nor folded. A round takes
/// about half a nanosecond.
#[inline]
pub(crate) fn body(mut x: u64, rounds: u32) -> u64 {
    for _ in 0..rounds {
        x = x
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        x ^= x >> 29;
        opaque(&mut x);
    }
    x
}

/// Keeps a value from the optimiser without sending it through memory, as `black_box` would.
#[inline]
fn opaque(x: &mut u64) {
    // SAFETY: no instructions at all; the register is said to change, and may.
    unsafe {
        std::arch::asm!(
            "/* {0} */",
            inout(reg) * x,
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// Nothing to do for this long.
pub(crate) fn rest(time: Duration) {
    std::thread::sleep(time);
}

/// Prints which machine was measured.
pub(crate) fn print_machine() {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or(": unknown");
    let kernel = read("/proc/sys/kernel/osrelease");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{cores} cores of {}, Linux {}, not pinned\n",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim()
    );
}
