//! Which code is left out: what only builds for tests, fuzzing or the README's examples.

use syn::punctuated::Punctuated;
use syn::{Attribute, Meta, Token};

/// The predicates that only hold in builds for tests. Every other one may hold or not, and both
/// sides of it are read.
const OFF: [&str; 3] = ["test", "fuzzing", "doctest"];

/// Returns whether the attributes leave the code out of every build that is not for tests.
pub(crate) fn is_left_out(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || (attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<Meta>()
                    .is_ok_and(|predicate| holds(&predicate) == Some(false)))
    })
}

/// Returns what the predicate comes to without tests; `None` if that depends on the build.
fn holds(predicate: &Meta) -> Option<bool> {
    let name = predicate.path().get_ident()?.to_string();
    let Meta::List(list) = predicate else {
        return OFF.contains(&name.as_str()).then_some(false);
    };
    let parts: Vec<_> = list
        .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
        .ok()?
        .iter()
        .map(holds)
        .collect();
    match name.as_str() {
        "not" => parts.first()?.map(|part| !part),
        "all" if parts.contains(&Some(false)) => Some(false),
        "all" => parts.iter().all(Option::is_some).then_some(true),
        "any" if parts.contains(&Some(true)) => Some(true),
        "any" => parts.iter().all(Option::is_some).then_some(false),
        _ => None,
    }
}
