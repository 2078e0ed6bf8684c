//! The progress bar: on a terminal only, and drawn by the thread that runs the loop.
//!
//! A bar that redraws itself has a thread of its own. While there is one, `forked` must refuse to
//! fork.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the bar moves in one run of the loop, at most: the loop is timed, and drawing takes
/// time.
const STEPS: usize = 200;

/// How far all runs of all variants have come.
pub(crate) struct Bar {
    drawn: ProgressBar,
    /// Couples in one run.
    run: usize,
    /// Couples in the runs that have ended.
    before: usize,
    /// How far this run has to come before the bar moves again.
    next: usize,
}

impl Bar {
    /// Makes a bar for `runs` runs of `couples` couples each, on stderr; hidden unless that is a
    /// terminal.
    pub(crate) fn new(couples: usize, runs: usize) -> Self {
        let drawn = ProgressBar::with_draw_target(
            Some((couples * runs) as u64),
            ProgressDrawTarget::stderr(),
        );
        let style = ProgressStyle::with_template("{msg:24} {bar:40} {percent:>3} %  {elapsed}");
        drawn.set_style(style.expect("the template is well formed"));
        Self {
            drawn,
            run: couples,
            before: 0,
            next: 0,
        }
    }

    /// A run begins.
    pub(crate) fn begin(&mut self, message: String) {
        self.drawn.set_message(message);
        self.next = 0;
    }

    /// Tells that this run has done this many couples.
    pub(crate) fn at(&mut self, done: usize) {
        if done >= self.next {
            self.next = done + (self.run / STEPS).max(1);
            self.drawn.set_position((self.before + done) as u64);
        }
    }

    /// The run has ended.
    pub(crate) fn end(&mut self) {
        self.before += self.run;
        self.drawn.set_position(self.before as u64);
    }
}

impl Drop for Bar {
    /// Takes the bar off the terminal, before a result or an error is printed there.
    fn drop(&mut self) {
        self.drawn.finish_and_clear();
    }
}
