//! Paths in the tokens of macros, which are not parsed.

use std::collections::BTreeSet;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

use super::tree::{plain, space};

/// A path among tokens.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
    pub(crate) spaces: u8,
    /// Whether a star follows, which brings all names of a module.
    pub(crate) is_star: bool,
}

/// Words that are no names.
const KEYWORDS: &str = "_ as async await break const continue dyn else enum extern false fn for if \
     impl in let loop macro_rules match mod move mut pub ref return static struct trait true type \
     unsafe union use where while yield";

/// What a name follows that is made right here.
const MAKERS: &str = "const enum fn macro_rules mod static struct trait type";

/// Finds the paths in `tokens`. Those that begin with a name that the tokens themselves make are
/// left out. With `in_texts`, texts that hold a path from `crate`, `self` or `super` count, as in
/// `#[serde(with = "crate::x")]`.
pub(crate) fn paths(tokens: TokenStream, in_texts: bool) -> Vec<Found> {
    let mut walk = Walk {
        in_texts,
        ..Walk::default()
    };
    walk.tokens(tokens, &[]);
    let made = walk.made;
    walk.found
        .into_iter()
        .filter(|found| !made.contains(&found.path[0]))
        .collect()
}

#[derive(Default)]
struct Walk {
    found: Vec<Found>,
    made: BTreeSet<String>,
    in_texts: bool,
}

impl Walk {
    /// Walks through tokens. `prefix` is the path before their braces, as in `use a::b::{…}`.
    fn tokens(&mut self, tokens: TokenStream, prefix: &[String]) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut in_use = !prefix.is_empty();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.tokens(group.stream(), &[]),
                TokenTree::Literal(literal) if self.in_texts => {
                    self.text(&literal.to_string(), literal.span().start().line);
                }
                TokenTree::Literal(_) => {}
                TokenTree::Punct(_) if is_double_colon(&tokens, at) => {
                    // What goes on from a type in `<…>`, or begins with another crate's name.
                    at += 2;
                    if word(&tokens, at).is_some() {
                        at = chain(&tokens, at).1;
                    }
                    continue;
                }
                TokenTree::Punct(mark) => {
                    let next = word(&tokens, at + 1);
                    let skip = match mark.as_char() {
                        // A lifetime, a fragment (whose `::` is skipped above), a field or a
                        // method. Two dots are a range.
                        '\'' => true,
                        '$' => next.as_deref() != Some("crate"),
                        '.' => !(at > 0 && is_mark(&tokens[at - 1], '.', Spacing::Joint)),
                        '*' if in_use && !prefix.is_empty() => {
                            self.add(prefix.to_vec(), mark.span().start().line, space::ALL, true);
                            false
                        }
                        ';' => {
                            in_use = false;
                            false
                        }
                        // `<T` makes a generic.
                        '<' => {
                            self.make(&tokens, at + 1);
                            false
                        }
                        _ => false,
                    };
                    if skip && next.is_some() {
                        at += 1;
                    }
                }
                TokenTree::Ident(ident) => {
                    let name = plain(ident);
                    if name == "use" {
                        in_use = true;
                    }
                    if is_among(MAKERS, &name) {
                        self.make(&tokens, at + 1 + usize::from(name == "macro_rules"));
                    }
                    if name == "as" && in_use {
                        self.made.extend(word(&tokens, at + 1));
                        at += 1;
                    } else if !is_among(KEYWORDS, &name) {
                        at = self.path(&tokens, at, prefix, in_use);
                        continue;
                    }
                }
            }
            at += 1;
        }
    }

    /// Notes a name that is made at `at`, if it is one: not a path, as in `*const a::B` and
    /// `<a::B`.
    fn make(&mut self, tokens: &[TokenTree], at: usize) {
        let name = word(tokens, at).filter(|_| !is_double_colon(tokens, at + 1));
        self.made.extend(name);
    }

    /// Notes the path that begins at `at`. Returns where it ends.
    fn path(&mut self, tokens: &[TokenTree], at: usize, prefix: &[String], in_use: bool) -> usize {
        let line = tokens[at].span().start().line;
        let (names, mut end) = chain(tokens, at);
        let mut path = [prefix, &names].concat();
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        if is_double_colon(tokens, end) {
            match tokens.get(end + 2) {
                Some(TokenTree::Group(group))
                    if in_use && group.delimiter() == Delimiter::Brace =>
                {
                    self.tokens(group.stream(), &path);
                    return end + 3;
                }
                Some(token) if in_use && is_mark(token, '*', Spacing::Alone) => {
                    self.add(path, line, space::ALL, true);
                    return end + 3;
                }
                // A fragment goes on with the path: it may be any name there.
                Some(token) if is_mark(token, '$', Spacing::Alone) => {
                    self.add(path, line, space::ALL, true);
                    return end + 2;
                }
                _ => {}
            }
        }
        let is_field = is_mark_at(tokens, end, ':', Spacing::Alone);
        let is_macro = is_mark_at(tokens, end, '!', Spacing::Alone)
            && matches!(tokens.get(end + 1), Some(TokenTree::Group(_)));
        if in_use {
            self.made
                .extend(path.last().cloned().filter(|_| path.len() > 1));
        }
        if is_macro {
            self.add(path, line, space::MACROS, false);
            end += 1;
        } else if path.len() > 1 || !is_field {
            self.add(path, line, space::ALL, false);
        }
        end
    }

    fn text(&mut self, literal: &str, line: usize) {
        let text = literal.trim_matches('"');
        let is_path = ["crate::", "self::", "super::"]
            .iter()
            .any(|start| text.starts_with(start));
        if is_path {
            let path = text.split("::").map(str::to_owned).collect();
            // If this is a module, any item in it may be meant.
            self.add(path, line, space::ALL, true);
        }
    }

    fn add(&mut self, path: Vec<String>, line: usize, spaces: u8, is_star: bool) {
        self.found.push(Found {
            path,
            line,
            spaces,
            is_star,
        });
    }
}

fn is_among(words: &str, word: &str) -> bool {
    words.split_whitespace().any(|known| known == word)
}

/// Returns the names of the path that begins at `at`, and where it ends.
fn chain(tokens: &[TokenTree], at: usize) -> (Vec<String>, usize) {
    let mut names: Vec<_> = word(tokens, at).into_iter().collect();
    let mut end = at + 1;
    while is_double_colon(tokens, end) {
        let Some(name) = word(tokens, end + 2) else {
            break;
        };
        names.push(name);
        end += 3;
    }
    (names, end)
}

fn word(tokens: &[TokenTree], at: usize) -> Option<String> {
    match tokens.get(at) {
        Some(TokenTree::Ident(ident)) => Some(plain(ident)),
        _ => None,
    }
}

fn is_mark(token: &TokenTree, mark: char, spacing: Spacing) -> bool {
    matches!(token, TokenTree::Punct(punct)
        if punct.as_char() == mark && (punct.spacing() == spacing || spacing == Spacing::Alone))
}

fn is_mark_at(tokens: &[TokenTree], at: usize, mark: char, spacing: Spacing) -> bool {
    tokens
        .get(at)
        .is_some_and(|token| is_mark(token, mark, spacing))
}

fn is_double_colon(tokens: &[TokenTree], at: usize) -> bool {
    is_mark_at(tokens, at, ':', Spacing::Joint) && is_mark_at(tokens, at + 1, ':', Spacing::Alone)
}
