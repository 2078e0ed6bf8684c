//! The crate's modules, as the compiler would find them: which file each lies in, and which names
//! it has.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proc_macro2::{Span, TokenStream, TokenTree};
use syn::{Attribute, Expr, ExprLit, Item, ItemMod, Lit, Meta};

use super::cfg::is_left_out;
use super::imports::{Import, imports};

/// A module by its place in [`Tree::modules`]. A block with items of its own counts as one.
pub(crate) type ModuleId = usize;

/// The namespaces of names, as bits.
pub(crate) mod space {
    pub(crate) const TYPES: u8 = 1;
    pub(crate) const VALUES: u8 = 2;
    pub(crate) const MACROS: u8 = 4;
    pub(crate) const ALL: u8 = 7;
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Meaning {
    Module(ModuleId),
    /// An item that is defined in this module.
    Item {
        module: ModuleId,
    },
    /// One of [`Tree::macros`].
    Macro(usize),
    /// Something of another crate, which this module imports.
    Foreign {
        module: ModuleId,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Definition {
    pub(crate) spaces: u8,
    pub(crate) meaning: Meaning,
}

#[derive(Default)]
pub(crate) struct Module {
    pub(crate) file: usize,
    /// What `super` means here.
    pub(crate) parent: Option<ModuleId>,
    /// For a block: the module or block around it, whose names it sees.
    pub(crate) around: Option<ModuleId>,
    pub(crate) names: HashMap<String, Vec<Definition>>,
    pub(crate) imports: Vec<Import>,
    /// Every word in invocations of macros that make items here. One of these words may be the name
    /// of such an item.
    pub(crate) perhaps: BTreeSet<String>,
}

/// A `macro_rules!`, with the file that has it.
pub(crate) struct Macro {
    pub(crate) name: String,
    pub(crate) module: ModuleId,
    /// Every word in it: one of them may be the name of an item that it makes.
    pub(crate) makes: BTreeSet<String>,
}

#[derive(Default)]
pub(crate) struct Tree {
    /// The text of each file, by its path below `src`.
    sources: BTreeMap<String, String>,
    /// The names of all crates that a path may begin with.
    pub(crate) foreign: BTreeSet<String>,
    /// The files that are read, without those for tests.
    pub(crate) files: Vec<String>,
    pub(crate) modules: Vec<Module>,
    pub(crate) macros: Vec<Macro>,
    /// What was parsed, with the module that it is.
    pub(crate) parsed: Vec<(ModuleId, syn::File)>,
    /// Inline modules by file, line and column.
    pub(crate) inline: HashMap<(usize, usize, usize), ModuleId>,
    /// Macros, likewise.
    pub(crate) macro_places: HashMap<(usize, usize, usize), usize>,
    /// What could not be read.
    pub(crate) problems: Vec<String>,
    /// Files that only tests have.
    test_files: BTreeSet<String>,
}

/// Where the files of a module's children lie.
struct Place {
    /// The folder of a child's file.
    children: String,
    /// The folder that `#[path]` counts from.
    file: String,
}

impl Place {
    /// Returns the place of the children of an inline module.
    fn within(&self, name: &str) -> Self {
        let children = join(&self.children, name);
        Self {
            file: children.clone(),
            children,
        }
    }
}

impl Tree {
    /// Reads all files of `sources` (by path below `src`), beginning with `lib.rs`.
    pub(crate) fn read(sources: BTreeMap<String, String>, foreign: BTreeSet<String>) -> Self {
        let mut tree = Self {
            sources,
            foreign,
            ..Self::default()
        };
        tree.read_file("lib.rs", None, String::new());
        for file in tree.sources.keys() {
            if !tree.files.contains(file) && !tree.test_files.contains(file) {
                tree.problems
                    .push(format!("src/{file}: no `mod` leads to this file"));
            }
        }
        tree
    }

    /// Reads a file as a module, and its children's. `children` is the folder of their files.
    fn read_file(&mut self, path: &str, parent: Option<ModuleId>, children: String) -> ModuleId {
        let module = self.modules.len();
        let file = self.files.len();
        self.files.push(path.to_owned());
        self.modules.push(Module {
            file,
            parent,
            ..Module::default()
        });
        match syn::parse_file(&self.sources[path]) {
            Ok(parsed) => {
                let place = Place {
                    children,
                    file: folder(path),
                };
                self.add_items(module, parsed.items.iter(), Some(&place));
                self.parsed.push((module, parsed));
            }
            Err(error) => self
                .problems
                .push(format!("src/{path} cannot be parsed: {error}")),
        }
        module
    }

    /// Makes a block a module, so that its items have names in it only.
    pub(crate) fn add_block<'a>(
        &mut self,
        around: ModuleId,
        items: impl Iterator<Item = &'a Item>,
    ) -> ModuleId {
        let module = self.modules.len();
        self.modules.push(Module {
            file: self.modules[around].file,
            parent: self.modules[around].parent,
            around: Some(around),
            ..Module::default()
        });
        self.add_items(module, items, None);
        module
    }

    fn add_items<'a>(
        &mut self,
        module: ModuleId,
        items: impl Iterator<Item = &'a Item>,
        place: Option<&Place>,
    ) {
        for item in items {
            let left_out = is_left_out(attributes(item));
            match item {
                Item::Mod(child) => self.add_module(module, child, left_out, place),
                _ if left_out => {}
                Item::Use(item) => self.modules[module].imports.extend(imports(item)),
                Item::Macro(item) => {
                    if let Some(name) = &item.ident {
                        self.add_macro(module, name, item);
                    } else {
                        words(item.mac.tokens.clone(), &mut self.modules[module].perhaps);
                        // What the macro's own body makes is known once all macros are.
                        if let Some(last) = item.mac.path.segments.last() {
                            let invoked = format!("{}!", last.ident);
                            self.modules[module].perhaps.insert(invoked);
                        }
                    }
                }
                Item::ForeignMod(block) => {
                    for item in &block.items {
                        match item {
                            syn::ForeignItem::Fn(item) => {
                                self.add(module, &item.sig.ident, space::VALUES);
                            }
                            syn::ForeignItem::Static(item) => {
                                self.add(module, &item.ident, space::VALUES);
                            }
                            syn::ForeignItem::Type(item) => {
                                self.add(module, &item.ident, space::TYPES);
                            }
                            _ => {}
                        }
                    }
                }
                Item::Const(item) => self.add(module, &item.ident, space::VALUES),
                Item::Static(item) => self.add(module, &item.ident, space::VALUES),
                Item::Fn(item) => self.add(module, &item.sig.ident, space::VALUES),
                Item::Struct(item) => self.add(module, &item.ident, space::TYPES | space::VALUES),
                Item::Enum(item) => self.add(module, &item.ident, space::TYPES),
                Item::Union(item) => self.add(module, &item.ident, space::TYPES),
                Item::Trait(item) => self.add(module, &item.ident, space::TYPES),
                Item::TraitAlias(item) => self.add(module, &item.ident, space::TYPES),
                Item::Type(item) => self.add(module, &item.ident, space::TYPES),
                Item::ExternCrate(item) => {
                    let name = item
                        .rename
                        .as_ref()
                        .map_or(&item.ident, |(_, rename)| rename);
                    let definition = Definition {
                        spaces: space::TYPES,
                        meaning: Meaning::Foreign { module },
                    };
                    self.define(module, name.to_string(), definition);
                }
                _ => {}
            }
        }
    }

    fn add(&mut self, module: ModuleId, name: &syn::Ident, spaces: u8) {
        let definition = Definition {
            spaces,
            meaning: Meaning::Item { module },
        };
        self.define(module, plain(name), definition);
    }

    fn define(&mut self, module: ModuleId, name: String, definition: Definition) {
        self.modules[module]
            .names
            .entry(name)
            .or_default()
            .push(definition);
    }

    /// A macro is a name of its module and, with `#[macro_export]`, one of the crate.
    fn add_macro(&mut self, module: ModuleId, name: &syn::Ident, item: &syn::ItemMacro) {
        let (line, column) = start(name.span());
        let place = (self.modules[module].file, line, column);
        self.macro_places.insert(place, self.macros.len());
        let name = plain(name);
        let definition = Definition {
            spaces: space::MACROS,
            meaning: Meaning::Macro(self.macros.len()),
        };
        let mut makes = BTreeSet::new();
        words(item.mac.tokens.clone(), &mut makes);
        self.macros.push(Macro {
            name: name.clone(),
            module,
            makes,
        });
        let is_exported = |attribute: &Attribute| attribute.path().is_ident("macro_export");
        if item.attrs.iter().any(is_exported) {
            self.define(0, name.clone(), definition.clone());
        }
        self.define(module, name, definition);
    }

    fn add_module(
        &mut self,
        module: ModuleId,
        child: &ItemMod,
        left_out: bool,
        place: Option<&Place>,
    ) {
        let name = plain(&child.ident);
        let parent = self.named(module);
        let file = self.modules[module].file;
        let (line, column) = start(child.ident.span());
        let id = if let Some((_, items)) = &child.content {
            let place = place.map(|place| place.within(&name));
            if left_out {
                self.leave_out(items, place.as_ref());
                return;
            }
            let id = self.modules.len();
            self.modules.push(Module {
                file,
                parent: Some(parent),
                ..Module::default()
            });
            self.inline.insert((file, line, column), id);
            self.add_items(id, items.iter(), place.as_ref());
            id
        } else if let Some((path, children)) = place.and_then(|place| self.find(child, place)) {
            if left_out {
                self.leave_file_out(&path, children);
                return;
            }
            self.read_file(&path, Some(parent), children)
        } else {
            let file = &self.files[file];
            self.problems
                .push(format!("src/{file}:{line}: no file for `mod {name};`"));
            return;
        };
        let definition = Definition {
            spaces: space::TYPES,
            meaning: Meaning::Module(id),
        };
        self.define(module, name, definition);
    }

    /// Notes the files of a module that only tests have, and those below it.
    fn leave_out(&mut self, items: &[Item], place: Option<&Place>) {
        let Some(place) = place else { return };
        for item in items {
            let Item::Mod(child) = item else { continue };
            if let Some((_, items)) = &child.content {
                let place = place.within(&plain(&child.ident));
                self.leave_out(items, Some(&place));
            } else if let Some((path, children)) = self.find(child, place) {
                self.leave_file_out(&path, children);
            }
        }
    }

    fn leave_file_out(&mut self, path: &str, children: String) {
        self.test_files.insert(path.to_owned());
        if let Ok(parsed) = syn::parse_file(&self.sources[path]) {
            let place = Place {
                children,
                file: folder(path),
            };
            self.leave_out(&parsed.items, Some(&place));
        }
    }

    /// Finds the file of `mod name;`, and the folder of its own children.
    fn find(&self, child: &ItemMod, place: &Place) -> Option<(String, String)> {
        if let Some(path) = child.attrs.iter().find_map(path_attribute) {
            let path = normal(&join(&place.file, &path));
            let children = folder(&path);
            return self.sources.contains_key(&path).then_some((path, children));
        }
        let children = join(&place.children, &plain(&child.ident));
        [format!("{children}.rs"), format!("{children}/mod.rs")]
            .into_iter()
            .find(|path| self.sources.contains_key(path))
            .map(|path| (path, children))
    }

    /// Returns the module that a block lies in; for a module, itself.
    pub(crate) fn named(&self, mut module: ModuleId) -> ModuleId {
        while let Some(around) = self.modules[module].around {
            module = around;
        }
        module
    }

    /// Returns whether `module` is `ancestor` or lies in it.
    pub(crate) fn is_within(&self, module: ModuleId, ancestor: ModuleId) -> bool {
        let mut at = Some(self.named(module));
        while let Some(module) = at {
            if module == ancestor {
                return true;
            }
            at = self.modules[module].parent;
        }
        false
    }
}

fn path_attribute(attribute: &Attribute) -> Option<String> {
    let Meta::NameValue(pair) = &attribute.meta else {
        return None;
    };
    match &pair.value {
        Expr::Lit(ExprLit {
            lit: Lit::Str(text),
            ..
        }) if pair.path.is_ident("path") => Some(text.value()),
        _ => None,
    }
}

/// Takes `..` and `.` out of a path.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn folder(path: &str) -> String {
    path.rsplit_once('/')
        .map_or_else(String::new, |(folder, _)| folder.to_owned())
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

/// Returns a name without `r#`.
pub(crate) fn plain(name: &syn::Ident) -> String {
    let name = name.to_string();
    name.strip_prefix("r#").map(str::to_owned).unwrap_or(name)
}

pub(crate) fn start(span: Span) -> (usize, usize) {
    let start = span.start();
    (start.line, start.column)
}

/// Collects all words of the tokens.
fn words(tokens: TokenStream, all: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => words(group.stream(), all),
            TokenTree::Ident(word) => drop(all.insert(plain(&word))),
            _ => {}
        }
    }
}

/// Returns the attributes of an item.
pub(crate) fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
