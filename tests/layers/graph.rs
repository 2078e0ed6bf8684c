//! The arrows from file to file.

use std::collections::{BTreeMap, BTreeSet};

use super::paths::{Kind, Mention, Mentions, mentions};
use super::tree::{Definition, Meaning, ModuleId, Tree, space};

/// What makes one file use another.
#[derive(Default)]
pub(crate) struct Arrow {
    /// Line and path, each time.
    pub(crate) uses: Vec<(usize, String)>,
    /// Lines of a re-export of what lies in the module's own folder.
    pub(crate) contents: Vec<(usize, String)>,
}

#[derive(Default)]
pub(crate) struct Graph {
    /// All files below `src`, but those for tests.
    pub(crate) files: Vec<String>,
    pub(crate) arrows: BTreeMap<(String, String), Arrow>,
    /// Paths of which the end was not found, and files that could not be read.
    pub(crate) problems: Vec<String>,
}

/// Reads sources (by path below `src`) of a crate that may use the crates in `foreign`.
pub(crate) fn graph(sources: BTreeMap<String, String>, foreign: BTreeSet<String>) -> Graph {
    let mut tree = Tree::read(sources, foreign);
    let mentions = mentions(&mut tree);
    let mut maker = Maker {
        graph: Graph::default(),
        invoked: BTreeSet::new(),
        tree: &tree,
        mentions: &mentions,
    };
    for mention in &mentions.all {
        maker.add(mention, None);
    }
    maker.add_bodies();
    let mut graph = maker.graph;
    graph.problems.extend(mentions.problems);
    graph.problems.extend(tree.problems);
    graph.files = tree.files;
    graph
}

struct Maker<'a> {
    graph: Graph,
    /// Macros with the places where they were invoked.
    invoked: BTreeSet<(usize, ModuleId)>,
    tree: &'a Tree,
    mentions: &'a Mentions,
}

impl Maker<'_> {
    /// Adds the arrows of a path. `invoked` says where a macro was invoked that has it in its body.
    fn add(&mut self, mention: &Mention, invoked: Option<(ModuleId, usize)>) {
        let (scope, line) = invoked.unwrap_or((mention.scope, mention.line));
        for definition in self.resolve(mention, scope) {
            match definition.meaning {
                Meaning::Macro(id) => self.invoke(id, mention, scope, line),
                Meaning::Module(module) if mention.is_star => {
                    for definition in self.tree.names_of(module) {
                        self.add_arrow(&definition, mention, scope, line);
                    }
                }
                _ => {}
            }
            self.add_arrow(&definition, mention, scope, line);
        }
    }

    /// Looks up what a macro's body mentions at the place where it is invoked, or where its name is
    /// passed to another macro.
    fn invoke(&mut self, id: usize, mention: &Mention, scope: ModuleId, line: usize) {
        if mention.kind != Kind::Elsewhere || !self.invoked.insert((id, scope)) {
            return;
        }
        for mention in self.mentions.in_macros.get(&id).into_iter().flatten() {
            self.add(mention, Some((scope, line)));
        }
    }

    /// Looks up what the bodies of macros mention where they are written, too. There it need not be
    /// found, if the macro is invoked elsewhere.
    fn add_bodies(&mut self) {
        for (id, mentions) in &self.mentions.in_macros {
            let is_invoked = self.invoked.iter().any(|(known, _)| known == id);
            let problems = self.graph.problems.len();
            for mention in mentions {
                self.add(mention, None);
            }
            if is_invoked {
                self.graph.problems.truncate(problems);
            }
        }
    }

    fn resolve(&mut self, mention: &Mention, scope: ModuleId) -> Vec<Definition> {
        let file = self.tree.modules[mention.scope].file;
        let is_generic = |name: &str| {
            [file, self.tree.modules[scope].file]
                .iter()
                .filter_map(|file| self.mentions.generics.get(file))
                .any(|names| names.contains(name))
        };
        let path = &mention.path;
        let found = self.tree.resolve(scope, path, mention.spaces, is_generic);
        match found {
            Ok(found) if found.is_empty() && mention.spaces == space::MACROS => self.by_name(path),
            Ok(found) => found,
            Err(lost) => {
                let invoked = if scope == mention.scope {
                    String::new()
                } else {
                    let file = &self.tree.files[self.tree.modules[scope].file];
                    format!(" where src/{file} invokes the macro")
                };
                self.graph.problems.push(format!(
                    "src/{}:{}: `{}` leads nowhere: no `{}`{invoked}",
                    self.tree.files[file],
                    mention.line,
                    path.join("::"),
                    lost.0,
                ));
                Vec::new()
            }
        }
    }

    /// Returns the macros of that name: one that is defined before the module which invokes it
    /// needs no path.
    fn by_name(&self, path: &[String]) -> Vec<Definition> {
        let macros = self.tree.macros.iter().enumerate();
        macros
            .filter(|(_, known)| path.len() == 1 && known.name == path[0])
            .map(|(id, _)| Definition {
                spaces: space::MACROS,
                meaning: Meaning::Macro(id),
            })
            .collect()
    }

    fn add_arrow(&mut self, to: &Definition, mention: &Mention, scope: ModuleId, line: usize) {
        let tree = self.tree;
        let module = match to.meaning {
            Meaning::Item { module } | Meaning::Foreign { module } => module,
            Meaning::Macro(id) => tree.macros[id].module,
            // Only a way to what lies in it.
            Meaning::Module(_) => return,
        };
        let (from, to) = (tree.modules[scope].file, tree.modules[module].file);
        if from == to {
            return;
        }
        let key = (tree.files[from].clone(), tree.files[to].clone());
        let arrow = self.graph.arrows.entry(key).or_default();
        let is_contents =
            mention.kind == Kind::ReExport && tree.is_within(module, tree.named(mention.scope));
        let places = if is_contents {
            &mut arrow.contents
        } else {
            &mut arrow.uses
        };
        places.push((line, mention.path.join("::")));
    }
}
