//! What a `use` brings in.

use proc_macro2::Span;
use syn::{ItemUse, UseTree, Visibility};

use super::tree::plain;

/// One name, or one star, of a `use`.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    /// The name that it gets here; `None` for a star.
    pub(crate) name: Option<String>,
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    /// Whether others see it, so that it is a re-export.
    pub(crate) is_shared: bool,
}

/// Returns what a `use` imports, one entry for each name.
pub(crate) fn imports(item: &ItemUse) -> Vec<Import> {
    let is_shared = !matches!(item.vis, Visibility::Inherited);
    let prefix = match item.leading_colon {
        Some(_) => vec![String::new()],
        None => Vec::new(),
    };
    let mut all = Vec::new();
    add_imports(&item.tree, &prefix, is_shared, &mut all);
    all
}

fn add_imports(tree: &UseTree, prefix: &[String], is_shared: bool, all: &mut Vec<Import>) {
    let with = |last: &syn::Ident| [prefix, &[plain(last)]].concat();
    let mut add = |name: Option<String>, path: Vec<String>, span: Span| {
        all.push(Import {
            name,
            path,
            line: span.start().line,
            is_shared,
        });
    };
    match tree {
        UseTree::Path(tree) => add_imports(&tree.tree, &with(&tree.ident), is_shared, all),
        UseTree::Group(group) => {
            for tree in &group.items {
                add_imports(tree, prefix, is_shared, all);
            }
        }
        UseTree::Glob(star) => add(None, prefix.to_vec(), star.star_token.spans[0]),
        UseTree::Name(name) if name.ident == "self" => {
            add(prefix.last().cloned(), prefix.to_vec(), name.ident.span());
        }
        UseTree::Name(name) => add(
            Some(plain(&name.ident)),
            with(&name.ident),
            name.ident.span(),
        ),
        UseTree::Rename(name) => {
            let path = if name.ident == "self" {
                prefix.to_vec()
            } else {
                with(&name.ident)
            };
            add(Some(plain(&name.rename)), path, name.ident.span());
        }
    }
}
