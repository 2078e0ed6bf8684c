//! The judge on made-up crates, so that it is seen to fail.

use std::collections::{BTreeMap, BTreeSet};

use super::verdict::{Floor, Verdict};
use super::{List, graph, judge, shrunk};

const FLOORS: &[Floor] = &[("low", &["low"]), ("high", &["high"]), ("top", &["lib"])];

const LIB: &str = "mod low; mod high; pub use high::Thing; pub use high::deep::*;";

const HIGH: &str = "pub struct Thing; pub enum Kind { One } pub fn make() {} pub trait Trait {}
    pub mod deep { pub struct Inner; }";

fn judged(files: &[(&str, &str)], floors: &[Floor], list: &str) -> Verdict {
    let sources: BTreeMap<_, _> = files
        .iter()
        .map(|(path, text)| ((*path).to_owned(), (*text).to_owned()))
        .collect();
    let foreign = BTreeSet::from(["std".to_owned(), "serde".to_owned()]);
    judge(&graph(sources, foreign), floors, &List::read(list))
}

/// Judges a crate of two floors whose lower one is this text.
fn low(text: &str) -> Verdict {
    judged(
        &[("lib.rs", LIB), ("high.rs", HIGH), ("low.rs", text)],
        FLOORS,
        "",
    )
}

/// Checks that the judge sees an arrow up, at the last line of the text and no other.
#[track_caller]
fn goes_up(text: &str) {
    let complaints = low(text).complaints;
    let line = text.lines().count();
    assert_eq!(complaints.len(), 1, "{text}\n{complaints:#?}");
    let complaint = &complaints[0];
    let places: Vec<_> = complaint
        .lines()
        .filter(|line| line.contains(".rs:"))
        .collect();
    let place = format!("    src/low.rs:{line}: `");
    assert!(!places.is_empty(), "{text}\n{complaint}");
    for at in places {
        assert!(at.starts_with(&place), "{text}\n{complaint}");
        assert!(at.ends_with(" is in src/high.rs"), "{text}\n{complaint}");
    }
    assert!(complaint.contains("from `low` to `high`"), "{complaint}");
}

#[track_caller]
fn is_allowed(text: &str) {
    let complaints = low(text).complaints;
    assert!(complaints.is_empty(), "{text}\n{complaints:#?}");
}

#[test]
fn a_use_goes_up() {
    goes_up("use crate::high::Thing;");
    goes_up("use crate::high::{\n  deep::Inner as Other};");
    goes_up("use super::high::Kind::One;");
    goes_up("use crate::high::Trait as _;");
    goes_up("pub(crate) use crate::high::make;");
    goes_up("fn f() {\n  use crate::high::make; }");
}

#[test]
fn a_path_goes_up() {
    goes_up("fn f() { crate::high::make(); }");
    goes_up("fn f() { let _: Vec<super::high::Thing>; }");
    goes_up("struct S(crate::high::deep::Inner);");
    goes_up("fn f(kind: u8) { match kind { crate::high::Kind::One => {} _ => {} } }");
    goes_up("fn f<T>() where T: crate::high::Trait {}");
    goes_up("fn f() { <u8 as crate::high::Trait>::go() }");
    goes_up("impl crate::high::Trait for u8 {}");
    goes_up("mod inner { fn f() { super::super::high::make() } }");
    goes_up("#[cfg(not(test))] fn f() { crate::high::make(); }");
    goes_up("#[cfg(any(test, loom))] fn f() { crate::high::make(); }");
}

#[test]
fn a_path_through_an_imported_module_goes_up() {
    goes_up("use crate::high;\nfn f() { high::make() }");
    goes_up("use crate::high::{self as other, deep};\nfn f() { other::make(); deep::Inner }");
    goes_up("use crate as root;\nfn f() { root::high::make() }");
    goes_up("fn f() {\n use crate::high; high::make() }");
}

#[test]
fn a_re_export_does_not_hide_where_it_leads() {
    goes_up("use crate::Thing;");
    goes_up("use crate::Inner;");
    goes_up("fn f() { crate::Inner; }");
    let middle = "pub use crate::high::*;";
    let files = [
        ("lib.rs", "mod low; mod high; mod middle;"),
        ("high.rs", HIGH),
        ("middle.rs", middle),
        ("low.rs", "use crate::middle::Thing;"),
    ];
    let floors: &[Floor] = &[
        ("low", &["low"]),
        ("high", &["high", "middle"]),
        ("top", &["lib"]),
    ];
    let complaints = judged(&files, floors, "").complaints;
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    assert!(complaints[0].contains("src/low.rs:1: `crate::middle::Thing` is in src/high.rs"));
}

#[test]
fn a_re_export_of_another_crate_belongs_to_the_file_that_has_it() {
    let files = [
        ("lib.rs", "mod low; mod high;"),
        ("high.rs", "pub use std::thread;"),
        ("low.rs", "fn f() { crate::high::thread::yield_now() }"),
    ];
    let complaints = judged(&files, FLOORS, "").complaints;
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    assert!(complaints[0].contains("src/low.rs:1: `crate::high::thread::yield_now` is in"));
}

#[test]
fn a_star_brings_all_that_it_could() {
    goes_up("use crate::high::*;");
    goes_up("use crate::high::deep::*;");
    goes_up("use crate::high::Kind::*;");
    is_allowed("mod inner { pub struct Own; }\nuse self::inner::*;\nfn f() { Own; }");
}

#[test]
fn a_path_in_a_macro_goes_up() {
    goes_up("fn f() { assert!(crate::high::make() == ()); }");
    goes_up("use crate::high;\nfn f() { vec![1, high::make()]; }");
    goes_up("macro_rules! m { ($x:expr) => { $crate::high::make($x) }; }");
    goes_up("macro_rules! m { () => { use $crate::high::{self, Thing}; }; }");
    goes_up("macro_rules! m { () => { use $crate::high::*; }; }");
    goes_up("use crate::high;\nfn f() { matches!(0 as *const high::Thing, _) }");
    goes_up("use crate::high;\nfn f() { matches!(Vec::<high::Thing>::new(), _) }");
    goes_up("macro_rules! m { ($name:ident) => { $crate::high::$name() }; }");
    goes_up("thread_local! { static X: crate::high::Thing = const { f() }; }");
    goes_up("#[derive(crate::high::Thing)] struct S;");
    goes_up("#[serde(with = \"crate::high::deep\")] struct S;");
    goes_up("macro_rules! m { ($x:ident) => { $x!() }; }\nfn f() { m!(crate::high::make) }");
}

#[test]
fn a_macro_leads_to_its_file_and_from_where_it_is_invoked() {
    // The name is found where the macro is invoked.
    goes_up(
        "macro_rules! m { () => { high::make() }; }\nmod a { use crate::high; fn f() { m!() } }",
    );
    // A macro that is passed on is invoked, too.
    goes_up(
        "macro_rules! on { ($m:ident) => { $m!() }; }\nmod a { use crate::high; \
         macro_rules! m { () => { high::make() }; } on!(m); }",
    );
    // Also if it is known from the module above, and items are made of it.
    goes_up(
        "macro_rules! on { ($m:ident) => { $m!(); }; }\n\
         macro_rules! m { () => { type T = high::Thing; }; }\n\
         mod a { use crate::high; on!(m); }",
    );
    goes_up(
        "macro_rules! m { ($x:ident) => { use self::high::*; high::$x(); }; }\n\
         mod a { use crate::high; m!(make); }",
    );
    let files = [
        ("lib.rs", "mod low; mod high;"),
        (
            "high.rs",
            "#[macro_export] macro_rules! m { () => {}; }\npub(crate) use m;",
        ),
        (
            "low.rs",
            "fn f() { crate::high::m!(); }\nfn g() { crate::m!() }",
        ),
    ];
    let complaints = judged(&files, FLOORS, "").complaints;
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    assert!(complaints[0].contains("src/low.rs:1: `crate::high::m` is in src/high.rs"));
    assert!(complaints[0].contains("src/low.rs:2: `crate::m` is in src/high.rs"));
}

#[test]
fn what_a_macro_makes_is_found() {
    let made = "macro_rules! make { ($name:ident) => { pub struct $name; pub struct Fixed; }; }
        make!(Given);";
    let files = [
        ("lib.rs", "mod low; mod high;"),
        ("high.rs", made),
        ("low.rs", "use crate::high::{Fixed,\nGiven};"),
    ];
    let complaints = judged(&files, FLOORS, "").complaints;
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    assert!(complaints[0].contains("src/low.rs:1: `crate::high::Fixed` is in src/high.rs"));
    assert!(complaints[0].contains("src/low.rs:2: `crate::high::Given` is in src/high.rs"));
}

#[test]
fn tests_may_use_anything() {
    is_allowed("#[cfg(test)] use crate::high::Thing;");
    is_allowed("#[cfg(all(test, not(loom)))] mod tests { use crate::high::Thing; }");
    is_allowed("#[test] fn f() { crate::high::make() }");
    is_allowed("impl S { #[cfg(test)] fn f() { crate::high::make() } }\nstruct S;");
    is_allowed("fn f() { #[cfg(test)] crate::high::make(); }");
    is_allowed("struct S { #[cfg(test)] of: crate::high::Thing }");
    let files = [
        ("lib.rs", "mod low; mod high;"),
        ("high.rs", HIGH),
        ("low.rs", "#[cfg(test)] mod tests;"),
        ("low/tests.rs", "use crate::high::Thing; mod more;"),
        ("low/tests/more.rs", "use crate::high::Thing;"),
    ];
    assert!(judged(&files, FLOORS, "").complaints.is_empty());
}

#[test]
fn words_are_no_uses() {
    is_allowed("/// As [`crate::high::make`].\npub(in crate::low) fn f() { \"crate::high\"; }");
    is_allowed("use crate::high;");
    is_allowed("fn f<T: Default>(make: u8) { T::default(); u8::from(make); std::mem::take }");
    is_allowed("fn f() { assert!(x.high().make, \"{}\", Self::high); }");
    is_allowed("macro_rules! m { ($make:ident) => { struct $make; $make::new(); }; }");
}

#[test]
fn a_path_without_an_end_is_an_error() {
    for (text, lost) in [
        (
            "\nuse crate::nowhere::Thing;",
            "src/low.rs:2: `crate::nowhere::Thing` leads nowhere: no `nowhere`",
        ),
        (
            "fn f() { nowhere::make() }",
            "src/low.rs:1: `nowhere::make` leads nowhere: no `nowhere`",
        ),
        (
            "macro_rules! m { () => { nowhere::make() }; }",
            "src/low.rs:1: `nowhere::make` leads nowhere",
        ),
        (
            "fn f() { assert!(super::high::none()) }",
            "src/low.rs:1: `super::high::none` leads nowhere: no `none`",
        ),
        ("mod missing;", "src/low.rs:1: no file for `mod missing;`"),
        ("fn f( {", "src/low.rs cannot be parsed"),
        (
            "fn f(#[cfg(test)] x: u8) {}",
            "src/low.rs:1: the judge cannot leave out",
        ),
    ] {
        let complaints = low(text).complaints;
        assert_eq!(complaints.len(), 1, "{text}\n{complaints:#?}");
        assert!(complaints[0].starts_with(lost), "{text}\n{complaints:#?}");
    }
}

#[test]
fn every_file_has_a_module_and_a_floor() {
    let files = [
        ("lib.rs", "mod low; mod other;"),
        ("low.rs", ""),
        ("other.rs", ""),
        ("lost.rs", ""),
    ];
    let complaints = judged(&files, FLOORS, "").complaints;
    assert_eq!(complaints.len(), 3, "{complaints:#?}");
    assert_eq!(complaints[0], "src/lost.rs: no `mod` leads to this file");
    assert!(complaints[1].starts_with("src/other.rs is on no floor"));
    assert!(complaints[2].starts_with("no file is left for `high`"));
}

#[test]
fn files_are_found_as_the_compiler_does() {
    let files = [
        (
            "lib.rs",
            "#[path = \"odd/name.rs\"] mod low; mod high; mod a { mod b; }",
        ),
        ("odd/name.rs", "mod child;"),
        ("odd/child.rs", "fn f() { super::super::high::make() }"),
        ("high/mod.rs", "mod deep; pub use deep::make;"),
        ("high/deep.rs", "pub fn make() {}"),
        ("a/b.rs", "fn f() { super::super::low::child::f() }"),
    ];
    let floors: &[Floor] = &[
        ("low", &["odd"]),
        ("high", &["high"]),
        ("top", &["lib", "a"]),
    ];
    let complaints = judged(&files, floors, "").complaints;
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    assert!(
        complaints[0]
            .contains("src/odd/child.rs:1: `super::super::high::make` is in src/high/deep.rs")
    );
}

#[test]
fn the_list_may_only_shrink() {
    let files = [
        ("lib.rs", LIB),
        ("high.rs", HIGH),
        ("low.rs", "use crate::high::Thing;"),
    ];
    let list = "# why\nlow.rs -> high.rs  # until it moves\n";
    assert!(judged(&files, FLOORS, list).complaints.is_empty());

    let files = [("lib.rs", LIB), ("high.rs", HIGH), ("low.rs", "")];
    let verdict = judged(&files, FLOORS, list);
    assert_eq!(verdict.complaints.len(), 1);
    assert!(verdict.complaints[0].starts_with("no arrow goes up from low.rs to high.rs any more"));
    assert_eq!(shrunk(list, &verdict.stale, [0; 3]), "# why\n");

    for list in [
        "b.rs -> a.rs\na.rs -> b.rs",
        "a.rs -> b.rs\na.rs -> b.rs",
        "what?",
    ] {
        assert_eq!(List::read(list).problems.len(), 1, "{list}");
    }
}

const ROUND: [(&str, &str); 4] = [
    ("lib.rs", "mod a; mod b; mod c;"),
    ("a.rs", "use crate::b::B; pub struct A;"),
    ("b.rs", "pub struct B; fn f() { crate::c::C; }"),
    (
        "c.rs",
        "pub struct C; macro_rules! m { () => { $crate::a::A }; }",
    ),
];

#[test]
fn a_circle_of_three_is_counted() {
    let floors: &[Floor] = &[("all", &["lib", "a", "b", "c"])];
    let with = |files, folders| {
        format!("largest circle of files: {files}\nlargest circle of folders: {folders}\n")
    };
    let verdict = judged(&ROUND, floors, &with(3, 3));
    assert!(verdict.complaints.is_empty());
    assert_eq!(verdict.circles, [["a.rs", "b.rs", "c.rs"]]);
    let larger = judged(&ROUND, floors, &with(2, 3)).complaints;
    assert_eq!(larger.len(), 1);
    assert!(larger[0].starts_with("largest circle of files: 3, and 2 are allowed."));
    assert!(larger[0].ends_with("\n    a.rs b.rs c.rs"));
    let smaller = judged(&ROUND, floors, &with(3, 4)).complaints;
    assert_eq!(smaller.len(), 1);
    assert!(smaller[0].starts_with("largest circle of folders: only 3 any more."));
    assert_eq!(shrunk(&with(5, 2), &BTreeSet::new(), [3; 3]), with(3, 2));
}

#[test]
fn circles_beside_the_largest_may_not_grow() {
    let floors: &[Floor] = &[("all", &["lib", "a", "b", "c", "d"])];
    let mut files = ROUND;
    files[0].1 = "mod a; mod b; mod c; mod d;";
    files[2].1 = "pub struct B; fn f() { crate::c::C; crate::d::D; }";
    let files = [&files[..], &[("d.rs", "pub struct D; use crate::b::B;")]].concat();
    let list = "largest circle of files: 4\nlargest circle of folders: 4\n";
    let complaints = judged(&files, floors, list).complaints;
    assert_eq!(complaints.len(), 1);
    assert!(complaints[0].starts_with("files in circles of more than three: 4, and 0 are allowed"));
}

#[test]
fn a_table_of_contents_makes_no_circle() {
    let floors: &[Floor] = &[("all", &["lib", "a"])];
    let mut files = vec![
        ("lib.rs", "mod a; pub use a::X;"),
        ("a/mod.rs", "mod x; pub use self::x::X; pub struct Shared;"),
        ("a/x.rs", "pub struct X(super::Shared);"),
    ];
    let verdict = judged(&files, floors, "");
    assert!(verdict.complaints.is_empty(), "{:#?}", verdict.complaints);
    // But a file that uses the name itself has the arrow.
    for text in [
        "mod x; pub use self::x::X; pub struct Shared; fn f() -> X {}",
        "mod x; use self::x::X; pub struct Shared;",
    ] {
        files[1].1 = text;
        assert_eq!(judged(&files, floors, "").circles, [["a/mod.rs", "a/x.rs"]]);
    }
    // And so has one whose child is on a higher floor. As it goes up, it makes no circle.
    let floors: &[Floor] = &[("low", &["a"]), ("high", &["a/x"]), ("top", &["lib"])];
    files[1].1 = "mod x; pub use self::x::X; pub struct Shared;";
    let verdict = judged(&files, floors, "");
    assert!(verdict.circles.is_empty(), "{:?}", verdict.circles);
    let complaints = verdict.complaints;
    assert_eq!(complaints.len(), 1, "{complaints:#?}");
    assert!(complaints[0].contains("src/a/mod.rs:1: `self::x::X` is in src/a/x.rs"));
}

#[test]
fn folders_go_round_where_files_do_not() {
    let files = [
        ("lib.rs", "mod p;"),
        ("p/mod.rs", "mod a; mod b;"),
        ("p/a/mod.rs", "pub mod x; pub mod y;"),
        ("p/a/x.rs", "use super::super::b::z::Z;"),
        ("p/a/y.rs", "pub struct Y;"),
        ("p/b.rs", "pub mod z; use crate::p::a::y::Y;"),
        ("p/b/z.rs", "pub struct Z;"),
    ];
    let verdict = judged(&files, &[("all", &["lib", "p"])], "");
    assert!(verdict.circles.is_empty());
    assert_eq!(verdict.folder_circles, [["p/a", "p/b"]]);
}
