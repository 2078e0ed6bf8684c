//! [`Environment`]: how the environment of a new process differs from that of this process.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// How the environment of a new process differs from that of this process.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// Whether the new process has only what is set here.
    is_cleared: bool,
    /// The variables that are set or, with `None`, removed.
    changes: BTreeMap<OsString, Option<OsString>>,
}

impl Environment {
    /// Sets a variable.
    pub(crate) fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.changes.insert(name.into(), Some(value.into()));
    }

    /// Sets a variable that has no value in the new process otherwise, and has not been removed.
    pub(crate) fn set_default(&mut self, name: &str, value: &str) {
        let is_inherited = !self.is_cleared && env::var_os(name).is_some();
        if !is_inherited && !self.has_changed(OsStr::new(name)) {
            self.set(name, value);
        }
    }

    /// Removes a variable.
    pub(crate) fn remove(&mut self, name: impl Into<OsString>) {
        self.changes.insert(name.into(), None);
    }

    /// Removes all variables, also those that were set here.
    pub(crate) fn clear(&mut self) {
        self.is_cleared = true;
        self.changes.clear();
    }

    /// Returns the variables that are set or, with `None`, removed.
    pub(crate) fn changes(&self) -> impl Iterator<Item = (&OsStr, Option<&OsStr>)> {
        self.changes
            .iter()
            .map(|(name, value)| (name.as_os_str(), value.as_deref()))
    }

    fn has_changed(&self, name: &OsStr) -> bool {
        self.changes.contains_key(name)
    }

    /// Returns all variables of a new process, by what this process has now.
    pub(super) fn variables(&self) -> impl Iterator<Item = (OsString, OsString)> {
        let inherited = (!self.is_cleared).then(env::vars_os).into_iter().flatten();
        let kept = inherited.filter(|(name, _)| !self.has_changed(name));
        let set = self
            .changes()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        kept.chain(set)
    }

    /// Gives a command this environment.
    pub(super) fn give_to(&self, command: &mut Command) {
        if self.is_cleared {
            command.env_clear();
        }
        for (name, value) in self.changes() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }
}

/// Changes the environment of this process, which has just been forked and has one thread.
pub(crate) fn apply(environment: &Environment) {
    if environment.is_cleared {
        // Not one by one: a name may be one that std refuses.
        // SAFETY: no other thread runs in a process that has just been forked.
        unsafe { libc::clearenv() };
    }
    for (name, value) in environment.changes() {
        match value {
            // SAFETY: as above.
            Some(value) => unsafe { env::set_var(name, value) },
            // SAFETY: as above.
            None => unsafe { env::remove_var(name) },
        }
    }
}

/// Shows no values of variables, which may be secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_set = |is_set: bool| {
            let changes = self.changes.iter();
            let names = changes.filter(move |(_, value)| value.is_some() == is_set);
            names.map(|(name, _)| name).collect::<Vec<_>>()
        };
        f.debug_struct("Environment")
            .field("is_cleared", &self.is_cleared)
            .field("set", &is_set(true))
            .field("removed", &is_set(false))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(environment: &Environment, name: &str) -> Option<OsString> {
        let mut variables = environment.variables();
        let found = variables.find(|(other, _)| other == name);
        assert!(variables.all(|(other, _)| other != name), "twice: {name}");
        found.map(|(_, value)| value)
    }

    #[test]
    fn variables_take_the_place_of_those_that_are_there() {
        let mut changed = Environment::default();
        assert_eq!(of(&changed, "PATH"), env::var_os("PATH"));
        changed.set("PATH", "none");
        changed.set("MANYHANDS_A", "1");
        changed.set("MANYHANDS_A", "2");
        assert_eq!(of(&changed, "PATH").unwrap(), "none");
        assert_eq!(of(&changed, "MANYHANDS_A").unwrap(), "2");
        changed.remove("PATH");
        assert_eq!(of(&changed, "PATH"), None);
        changed.clear();
        assert_eq!(changed.variables().count(), 0);
        changed.set("MANYHANDS_A", "3");
        let all: Vec<_> = changed.variables().collect();
        assert_eq!(all, [("MANYHANDS_A".into(), "3".into())]);
    }

    #[test]
    fn a_default_holds_only_where_nothing_else_is_said() {
        let with_default = |mut environment: Environment| {
            environment.set_default("PATH", "default");
            of(&environment, "PATH")
        };
        let mut environment = Environment::default();
        assert_eq!(with_default(environment.clone()), env::var_os("PATH"));
        environment.clear();
        assert_eq!(with_default(environment.clone()).unwrap(), "default");
        environment.set("PATH", "set");
        assert_eq!(with_default(environment.clone()).unwrap(), "set");
        environment.remove("PATH");
        assert_eq!(with_default(environment), None);
    }

    #[test]
    fn what_is_shown_has_no_values() {
        let mut environment = Environment::default();
        environment.set("TOKEN", "secret");
        environment.remove("HOME");
        let shown = format!("{environment:?}");
        assert!(!shown.contains("secret"), "{shown}");
        assert!(
            shown.contains(r#"set: ["TOKEN"], removed: ["HOME"]"#),
            "{shown}"
        );
    }
}
