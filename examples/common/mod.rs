//! The arguments of an example: what is missing has a default, and what cannot be read ends the
//! example with a sentence.
#![allow(dead_code, unreachable_pub, reason = "each example uses its part")]

use std::env::ArgsOs;
use std::ffi::OsString;
use std::process::exit;

use manyhands::prelude::*;

/// The arguments that have not been taken yet.
pub struct Arguments {
    rest: std::iter::Skip<ArgsOs>,
    usage: &'static str,
}

impl Arguments {
    /// Takes the arguments of the program. If one of them asks for help, prints `usage` and ends.
    pub fn new(usage: &'static str) -> Self {
        if std::env::args_os().any(|word| word == "--help" || word == "-h") {
            println!("{usage}");
            exit(0);
        }
        Self {
            rest: std::env::args_os().skip(1),
            usage,
        }
    }

    /// Ends the example with what is wrong.
    fn refuse(&self, wrong: &str) -> ! {
        eprintln!("{wrong}\n\n{}", self.usage);
        exit(2)
    }

    /// Takes the next argument, which is a whole number from 1 on.
    pub fn number(&mut self, what: &str, otherwise: usize) -> usize {
        let Some(word) = self.rest.next() else {
            return otherwise;
        };
        let number = word.to_str().and_then(|text| text.parse().ok());
        match number {
            Some(number) if number > 0 => number,
            _ => self.refuse(&format!(
                "{what} is a whole number from 1 on, and not {}",
                word.display()
            )),
        }
    }

    /// Takes the next argument as it is.
    pub fn word(&mut self) -> Option<OsString> {
        self.rest.next()
    }

    /// Returns whether the next argument is this word. Any other ends the example.
    pub fn flag(&mut self, flag: &str) -> bool {
        match self.rest.next() {
            Some(word) if word == flag => true,
            Some(word) => self.refuse(&format!("{} is not {flag}", word.display())),
            None => false,
        }
    }

    /// Makes the pool that the next argument names: by default worker processes.
    pub fn pool(&mut self) -> Pool<AnyEngine> {
        let word = self.rest.next();
        let text = word.map_or_else(
            || "processes".into(),
            |word| word.to_string_lossy().into_owned(),
        );
        let pool = text.parse();
        pool.unwrap_or_else(|error: PoolError| self.refuse(&error.to_string()))
    }

    /// Refuses what is left.
    pub fn end(mut self) {
        if let Some(word) = self.rest.next() {
            self.refuse(&format!("{} is one argument too many", word.display()));
        }
    }
}
