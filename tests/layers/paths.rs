//! Every path that code without tests mentions, with the module or block that it is written in.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use proc_macro2::TokenStream;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, Expr, Item, Meta, Stmt, Type};

use super::cfg::is_left_out;
use super::imports::{Import, imports};
use super::tokens;
use super::tree::{ModuleId, Tree, attributes, plain, space, start};

/// Attributes that name no item.
const PLAIN_ATTRIBUTES: [&str; 8] = [
    "allow", "cfg", "deny", "doc", "expect", "forbid", "path", "warn",
];

/// Tools that an attribute's path may begin with.
const TOOLS: [&str; 5] = ["clippy", "diagnostic", "miri", "rustdoc", "rustfmt"];

/// A path somewhere in the code.
#[derive(Clone, Debug)]
pub(crate) struct Mention {
    pub(crate) scope: ModuleId,
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    pub(crate) spaces: u8,
    pub(crate) kind: Kind,
    /// Whether it stands for all names of the module that it leads to.
    pub(crate) is_star: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Use,
    /// A `use` that others see, too.
    ReExport,
    Elsewhere,
}

#[derive(Default)]
pub(crate) struct Mentions {
    pub(crate) all: Vec<Mention>,
    /// What macros mention without `crate` before it: it is looked up where they are invoked.
    pub(crate) in_macros: BTreeMap<usize, Vec<Mention>>,
    /// Names of generic parameters, by file.
    pub(crate) generics: BTreeMap<usize, BTreeSet<String>>,
    pub(crate) problems: Vec<String>,
}

/// Collects all paths of the tree.
pub(crate) fn mentions(tree: &mut Tree) -> Mentions {
    let mut visitor = Visitor {
        scope: 0,
        tree,
        mentions: Mentions::default(),
        in_attribute: false,
    };
    for (module, parsed) in mem::take(&mut visitor.tree.parsed) {
        visitor.scope = module;
        visitor.visit_file(&parsed);
    }
    visitor.mentions
}

struct Visitor<'a> {
    tree: &'a mut Tree,
    scope: ModuleId,
    mentions: Mentions,
    in_attribute: bool,
}

impl Visitor<'_> {
    fn file(&self) -> usize {
        self.tree.modules[self.scope].file
    }

    fn within(&mut self, scope: ModuleId, visit: impl FnOnce(&mut Self)) {
        let outside = mem::replace(&mut self.scope, scope);
        visit(self);
        self.scope = outside;
    }

    fn mention(&mut self, path: &syn::Path, names: usize, spaces: u8) {
        let lead = path.leading_colon.map(|_| String::new());
        let names = path.segments.iter().take(names);
        let path: Vec<_> = lead
            .into_iter()
            .chain(names.clone().map(|segment| plain(&segment.ident)))
            .collect();
        let line = names
            .map(|segment| segment.ident.span().start().line)
            .next();
        self.mentions.all.push(Mention {
            scope: self.scope,
            path,
            line: line.unwrap_or(0),
            spaces,
            kind: Kind::Elsewhere,
            is_star: false,
        });
    }

    /// Mentions a path that may have a type in `<…>` before it. Then only the trait's names count.
    fn mention_after(&mut self, qself: Option<&syn::QSelf>, path: &syn::Path, spaces: u8) {
        match qself {
            None => self.mention(path, path.segments.len(), spaces),
            Some(qself) if qself.position == 0 => {}
            Some(qself) => self.mention(path, qself.position, space::TYPES),
        }
    }

    fn import(&mut self, import: Import) {
        let kind = if import.is_shared {
            Kind::ReExport
        } else {
            Kind::Use
        };
        self.mentions.all.push(Mention {
            scope: self.scope,
            path: import.path,
            line: import.line,
            spaces: space::ALL,
            kind,
            is_star: import.name.is_none(),
        });
    }

    /// Mentions the paths among the tokens of an invocation, or of the body of a macro.
    fn tokens(&mut self, tokens: TokenStream, body_of: Option<usize>) {
        for found in tokens::paths(tokens, self.in_attribute) {
            let is_loose = found.path[0] != "crate";
            let mention = Mention {
                scope: self.scope,
                path: found.path,
                line: found.line,
                spaces: found.spaces,
                kind: Kind::Elsewhere,
                is_star: found.is_star,
            };
            match body_of {
                Some(body) if is_loose => {
                    self.mentions
                        .in_macros
                        .entry(body)
                        .or_default()
                        .push(mention);
                }
                _ => self.mentions.all.push(mention),
            }
        }
    }

    fn generic(&mut self, name: &syn::Ident) {
        let file = self.file();
        let generics = self.mentions.generics.entry(file).or_default();
        generics.insert(plain(name));
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_left_out(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let (line, column) = start(item.ident.span());
        let inline = self.tree.inline.get(&(self.file(), line, column)).copied();
        if let Some(module) = inline {
            self.within(module, |this| visit::visit_item_mod(this, item));
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        for import in imports(item) {
            self.import(import);
        }
    }

    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        let Some(name) = &item.ident else {
            return visit::visit_item_macro(self, item);
        };
        let (line, column) = start(name.span());
        let place = (self.file(), line, column);
        let body_of = self.tree.macro_places.get(&place).copied();
        self.tokens(item.mac.tokens.clone(), body_of);
    }

    fn visit_block(&mut self, block: &'ast Block) {
        let items = || {
            block.stmts.iter().filter_map(|statement| match statement {
                Stmt::Item(item) => Some(item),
                _ => None,
            })
        };
        if items().next().is_none() {
            return visit::visit_block(self, block);
        }
        let scope = self.tree.add_block(self.scope, items());
        self.within(scope, |this| visit::visit_block(this, block));
    }

    fn visit_macro(&mut self, invoked: &'ast syn::Macro) {
        self.mention(&invoked.path, invoked.path.segments.len(), space::MACROS);
        self.tokens(invoked.tokens.clone(), None);
    }

    fn visit_token_stream(&mut self, tokens: &'ast TokenStream) {
        self.tokens(tokens.clone(), None);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        let path = attribute.path();
        let first = path.segments.first().map(|first| first.ident.to_string());
        let first = first.as_deref().unwrap_or_default();
        if is_left_out(std::slice::from_ref(attribute)) {
            let (line, file) = (
                start(attribute.pound_token.span).0,
                &self.tree.files[self.file()],
            );
            self.mentions.problems.push(format!(
                "src/{file}:{line}: the judge cannot leave out what this stands before"
            ));
        }
        if PLAIN_ATTRIBUTES.contains(&first) || TOOLS.contains(&first) {
            return;
        }
        self.in_attribute = true;
        if path.segments.len() > 1 {
            self.mention(path, path.segments.len(), space::MACROS);
        }
        match &attribute.meta {
            Meta::Path(_) => {}
            Meta::List(list) => self.tokens(list.tokens.clone(), None),
            Meta::NameValue(pair) => self.visit_expr(&pair.value),
        }
        self.in_attribute = false;
    }

    fn visit_type_param(&mut self, parameter: &'ast syn::TypeParam) {
        self.generic(&parameter.ident);
        visit::visit_type_param(self, parameter);
    }

    fn visit_const_param(&mut self, parameter: &'ast syn::ConstParam) {
        self.generic(&parameter.ident);
        visit::visit_const_param(self, parameter);
    }

    /// A visibility names a module, but does not use it.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.mention(path, path.segments.len(), space::ALL);
        visit::visit_path(self, path);
    }

    fn visit_type(&mut self, node: &'ast Type) {
        let Type::Path(path) = node else {
            return visit::visit_type(self, node);
        };
        self.mention_after(path.qself.as_ref(), &path.path, space::TYPES);
        if let Some(qself) = &path.qself {
            self.visit_qself(qself);
        }
        visit::visit_path(self, &path.path);
    }

    fn visit_expr_path(&mut self, path: &'ast syn::ExprPath) {
        self.mention_after(path.qself.as_ref(), &path.path, space::VALUES);
        if let Some(qself) = &path.qself {
            self.visit_qself(qself);
        }
        visit::visit_path(self, &path.path);
    }

    /// A single name in a pattern is a constant, or else a variable, which is found nowhere.
    fn visit_pat_ident(&mut self, pattern: &'ast syn::PatIdent) {
        if pattern.ident.to_string().starts_with(char::is_uppercase) {
            self.mention(&pattern.ident.clone().into(), 1, space::VALUES);
        }
        visit::visit_pat_ident(self, pattern);
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        let left_out = match statement {
            Stmt::Local(local) => is_left_out(&local.attrs),
            Stmt::Macro(invoked) => is_left_out(&invoked.attrs),
            Stmt::Item(_) => false,
            Stmt::Expr(expression, _) => match expression {
                Expr::Block(it) => is_left_out(&it.attrs),
                Expr::Call(it) => is_left_out(&it.attrs),
                Expr::MethodCall(it) => is_left_out(&it.attrs),
                Expr::Macro(it) => is_left_out(&it.attrs),
                Expr::If(it) => is_left_out(&it.attrs),
                Expr::Match(it) => is_left_out(&it.attrs),
                Expr::Return(it) => is_left_out(&it.attrs),
                _ => false,
            },
        };
        if !left_out {
            visit::visit_stmt(self, statement);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let left_out = match item {
            syn::ImplItem::Const(item) => is_left_out(&item.attrs),
            syn::ImplItem::Fn(item) => is_left_out(&item.attrs),
            syn::ImplItem::Type(item) => is_left_out(&item.attrs),
            syn::ImplItem::Macro(item) => is_left_out(&item.attrs),
            _ => false,
        };
        if !left_out {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_trait_item(&mut self, item: &'ast syn::TraitItem) {
        let left_out = match item {
            syn::TraitItem::Const(item) => is_left_out(&item.attrs),
            syn::TraitItem::Fn(item) => is_left_out(&item.attrs),
            syn::TraitItem::Type(item) => is_left_out(&item.attrs),
            syn::TraitItem::Macro(item) => is_left_out(&item.attrs),
            _ => false,
        };
        if !left_out {
            visit::visit_trait_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !is_left_out(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !is_left_out(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !is_left_out(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !is_left_out(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }
}
