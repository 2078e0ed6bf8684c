//! What a path leads to: through `use`, re-exports, stars, blocks and macros, to the module that
//! defines the item.

use std::collections::BTreeSet;

use super::tree::{Definition, Meaning, ModuleId, Tree, space};

/// What no `use` has to bring in: the standard prelude and primitive types.
const PRELUDE: &str = "Self bool char str u8 u16 u32 u64 u128 usize i8 \
     i16 i32 i64 i128 isize f32 f64 AsMut AsRef Box Clone Copy Default DoubleEndedIterator Drop Eq \
     ExactSizeIterator Extend Fn FnMut FnOnce From FromIterator Into IntoIterator Iterator None Ok \
     Err Option Ord PartialEq PartialOrd Result Send Some String Sync ToOwned ToString TryFrom \
     TryInto Unpin Vec AsyncFn AsyncFnMut AsyncFnOnce";

/// A path that leads nowhere. Holds the first of its names that was not found.
#[derive(Debug)]
pub(crate) struct Lost(pub(crate) String);

/// Names that are being looked up, with module and namespaces. Stops imports of themselves.
type Visited = BTreeSet<(ModuleId, String, u8)>;

impl Tree {
    /// Returns all that `path`, written in `from`, may mean. Stops at the first item that is not a
    /// module, such as a type before its functions. `spaces` are those of the last name.
    ///
    /// Nothing is found for a single name that is no item: a variable, or something of the prelude.
    ///
    /// # Errors
    ///
    /// [`Lost`] if the path has no end in this crate, another one, the prelude or a generic type.
    pub(crate) fn resolve(
        &self,
        from: ModuleId,
        path: &[String],
        spaces: u8,
        is_generic: impl Fn(&str) -> bool,
    ) -> Result<Vec<Definition>, Lost> {
        let first = &path[0];
        match self.follow(from, path, spaces, &mut Visited::new()) {
            Ok(found) => Ok(found),
            Err(Lost(name)) if name == *first && !is_keyword(first) => {
                let is_known = path.len() == 1
                    || self.is_foreign(first)
                    || is_generic(first)
                    || PRELUDE.split_whitespace().any(|known| known == first);
                if is_known {
                    Ok(Vec::new())
                } else {
                    Err(Lost(name))
                }
            }
            Err(lost) => Err(lost),
        }
    }

    fn follow(
        &self,
        from: ModuleId,
        path: &[String],
        spaces: u8,
        visited: &mut Visited,
    ) -> Result<Vec<Definition>, Lost> {
        let mut at = match path[0].as_str() {
            "crate" => vec![module(0)],
            "self" => vec![module(self.named(from))],
            "super" => match self.modules[self.named(from)].parent {
                Some(parent) => vec![module(parent)],
                None => return Err(Lost(path[0].clone())),
            },
            name => {
                let spaces = if path.len() == 1 {
                    spaces
                } else {
                    space::TYPES
                };
                self.around(from, name, spaces, visited)
            }
        };
        if at.is_empty() {
            return Err(Lost(path[0].clone()));
        }
        for (position, name) in path.iter().enumerate().skip(1) {
            let spaces = if position + 1 == path.len() {
                spaces
            } else {
                space::TYPES
            };
            let mut next = Vec::new();
            for definition in at {
                match definition.meaning {
                    Meaning::Module(within) if name == "super" => {
                        next.extend(self.modules[within].parent.map(module));
                    }
                    Meaning::Module(within) => {
                        next.extend(self.inside(within, name, spaces, visited));
                    }
                    // Whatever follows a type or a foreign crate belongs to it.
                    _ => next.push(definition),
                }
            }
            if next.is_empty() {
                return Err(Lost(name.clone()));
            }
            at = next;
        }
        at.dedup();
        Ok(at)
    }

    /// Looks a name up in a block, those around it, and their module.
    fn around(
        &self,
        from: ModuleId,
        name: &str,
        spaces: u8,
        visited: &mut Visited,
    ) -> Vec<Definition> {
        let mut found = Vec::new();
        let mut at = Some(from);
        while let Some(module) = at.filter(|_| found.is_empty()) {
            found = self.inside(module, name, spaces, visited);
            at = self.modules[module].around;
        }
        // A macro is also known in the modules below its own.
        let is_macro = |known: &Definition| matches!(known.meaning, Meaning::Macro(_));
        let mut above = self.modules[self.named(from)].parent;
        while let Some(module) = above.filter(|_| !found.iter().any(is_macro)) {
            let macros = space::MACROS & spaces;
            found.extend(of_spaces(self.modules[module].names.get(name), macros));
            above = self.modules[module].parent;
        }
        found
    }

    /// Looks a name up in one module: its items and imports, then what its stars bring, then what
    /// macros may have made there.
    fn inside(
        &self,
        module: ModuleId,
        name: &str,
        spaces: u8,
        visited: &mut Visited,
    ) -> Vec<Definition> {
        let key = (module, name.to_owned(), spaces);
        if !visited.insert(key.clone()) {
            return Vec::new();
        }
        let this = &self.modules[module];
        let mut found = of_spaces(this.names.get(name), spaces);
        for import in &this.imports {
            if import.name.as_deref() == Some(name) {
                found.extend(self.imported(module, &import.path, spaces, visited));
            }
        }
        if found.is_empty() {
            for import in this.imports.iter().filter(|import| import.name.is_none()) {
                for star in self.imported(module, &import.path, space::TYPES, visited) {
                    if let Meaning::Module(within) = star.meaning {
                        found.extend(self.inside(within, name, spaces, visited));
                    }
                }
            }
        }
        if found.is_empty() && spaces != space::MACROS && self.may_make(module, name) {
            found.push(Definition {
                spaces,
                meaning: Meaning::Item { module },
            });
        }
        visited.remove(&key);
        found
    }

    /// Returns what the path of a `use` leads to.
    fn imported(
        &self,
        module: ModuleId,
        path: &[String],
        spaces: u8,
        visited: &mut Visited,
    ) -> Vec<Definition> {
        match self.follow(module, path, spaces, visited) {
            Ok(found) => found,
            Err(Lost(name)) if name == path[0] && self.is_foreign(&name) => vec![Definition {
                spaces: space::ALL,
                meaning: Meaning::Foreign { module },
            }],
            Err(_) => Vec::new(),
        }
    }

    fn is_foreign(&self, name: &str) -> bool {
        name.is_empty() || self.foreign.contains(name)
    }

    /// Returns whether a macro that makes items in `module` may have made one of this name.
    fn may_make(&self, module: ModuleId, name: &str) -> bool {
        let perhaps = &self.modules[module].perhaps;
        perhaps.contains(name)
            || self
                .macros
                .iter()
                .filter(|made| perhaps.contains(&format!("{}!", made.name)))
                .any(|made| made.makes.contains(name))
    }

    /// Returns the names that a star brings, with what they mean.
    pub(crate) fn names_of(&self, module: ModuleId) -> Vec<Definition> {
        let mut names = BTreeSet::new();
        self.collect_names(module, &mut names, &mut BTreeSet::new());
        let mut all: Vec<_> = names
            .iter()
            .flat_map(|name| self.inside(module, name, space::ALL, &mut Visited::new()))
            .collect();
        all.dedup();
        all
    }

    fn collect_names(
        &self,
        module: ModuleId,
        names: &mut BTreeSet<String>,
        seen: &mut BTreeSet<ModuleId>,
    ) {
        if !seen.insert(module) {
            return;
        }
        let this = &self.modules[module];
        names.extend(this.names.keys().cloned());
        for import in &this.imports {
            if let Some(name) = &import.name {
                names.extend(import.is_shared.then(|| name.clone()));
                continue;
            }
            let stars = self.imported(module, &import.path, space::TYPES, &mut Visited::new());
            for star in stars {
                if let Meaning::Module(within) = star.meaning {
                    self.collect_names(within, names, seen);
                }
            }
        }
    }
}

fn module(id: ModuleId) -> Definition {
    Definition {
        spaces: space::TYPES,
        meaning: Meaning::Module(id),
    }
}

fn is_keyword(name: &str) -> bool {
    matches!(name, "crate" | "self" | "super")
}

/// Returns the definitions in one of these namespaces.
fn of_spaces(definitions: Option<&Vec<Definition>>, spaces: u8) -> Vec<Definition> {
    definitions
        .into_iter()
        .flatten()
        .filter(|definition| definition.spaces & spaces != 0)
        .cloned()
        .collect()
}
