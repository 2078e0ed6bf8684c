//! Bytes that were not written for a value: they give an error, or some value, but no panic, and
//! take no memory beyond their size.

use std::cell::Cell;
use std::collections::HashMap;

use proptest::prelude::*;
use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use super::values::{Value, values};
use super::*;

/// Recursion through each thing that a type can nest, with what serde has on the stack for it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Chain {
    End,
    Newtype(Box<Chain>),
    Field { next: Option<Box<Chain>> },
}
#[derive(Debug, Serialize, Deserialize)]
struct Endless(Option<Box<Endless>>);
#[derive(Debug, Serialize, Deserialize)]
struct Bottomless(Box<Bottomless>);
#[derive(Debug, Serialize, Deserialize)]
struct Tree(Vec<Tree>);

#[test]
fn garbage_that_nests_without_end_is_an_error() {
    fn refused<T: DeserializeOwned + Debug>(bytes: &[u8]) {
        from_slice::<T>(bytes).unwrap_err();
    }
    let newtype = to_vec(&Chain::Newtype(Box::new(Chain::End)));
    let field = to_vec(&Chain::Field {
        next: Some(Box::new(Chain::End)),
    });
    let end = to_vec(&Chain::End).len();
    for unit in [
        &[0x81][..],
        &[0x9f],
        &[0xa1],
        &[0xa1, 0x01],
        &[0xbf, 0x01],
        &[0xc6],
        &[0x05],
        &newtype[..newtype.len() - end],
        &field[..field.len() - end],
    ] {
        let bytes = unit.repeat(100_000);
        refused::<Chain>(&bytes);
        refused::<Endless>(&bytes);
        refused::<Bottomless>(&bytes);
        refused::<Tree>(&bytes);
        refused::<Untagged<Chain>>(&bytes);
        refused::<Tagged<Option<Tree>>>(&bytes);
        refused::<Flat<Chain>>(&bytes);
        refused::<IgnoredAny>(&bytes);
        refused::<Option<Vec<Option<()>>>>(&bytes);
    }
}

#[test]
fn what_can_be_written_can_be_read() {
    let chain = |len| {
        (0..len).fold(Chain::End, |chain, at| match at % 2 {
            0 => Chain::Newtype(Box::new(chain)),
            _ => Chain::Field {
                next: Some(Box::new(chain)),
            },
        })
    };
    let deepest = (0..2_000)
        .map(chain)
        .take_while(|chain| to_vec_append(&mut Vec::new(), chain).is_ok())
        .last();
    let deepest = deepest.unwrap();
    assert_eq!(from_slice(&to_vec(&deepest)), Ok(deepest));
    assert!(to_vec_append(&mut Vec::new(), &chain(2_000)).is_err());
    // There may be any number of neighbours.
    let wide = vec![(Some(Newtype(1u8)), Kinds::Tuple(1u8, 1)); 3_000];
    assert_eq!(from_slice(&to_vec(&wide)), Ok(wide));
}

thread_local! {
    static HINTED: Cell<usize> = const { Cell::new(0) };
}

/// Any value, of which only the size hints are kept.
struct Hints;

impl<'de> Deserialize<'de> for Hints {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Hints {
    type Value = Self;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an array, a map or a number")
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        HINTED.set(HINTED.get() + seq.size_hint().unwrap_or(0));
        while seq.next_element::<Self>()?.is_some() {}
        Ok(self)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        HINTED.set(HINTED.get() + map.size_hint().unwrap_or(0));
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// Checks that the bytes cover all lengths together that a value's reader was told to expect.
fn hints_are_covered(bytes: &[u8]) {
    HINTED.set(0);
    let _ = from_slice::<Hints>(bytes);
    assert!(
        HINTED.get() <= bytes.len(),
        "{} of {}",
        HINTED.get(),
        bytes.len()
    );
}

#[test]
fn lengths_that_cannot_be_are_refused_at_once() {
    for head in [0x5b, 0x7b, 0x9b, 0xbb] {
        for len in [4, 1 << 20, u64::from(u32::MAX), u64::MAX] {
            let bytes = [&[head][..], &len.to_be_bytes(), &[0; 3]].concat();
            from_slice::<IgnoredAny>(&bytes).unwrap_err();
            hints_are_covered(&bytes);
        }
    }
    // Each length alone fits the bytes that are left.
    hints_are_covered(&[0x99, 0x7f, 0x00].repeat(30_000));
}

/// Reads the bytes as different types. Each reading ends, well or with an error.
fn read_as_everything(bytes: &[u8]) {
    fn read<T: DeserializeOwned>(bytes: &[u8]) {
        let _ = from_slice::<T>(bytes);
    }
    read::<Value>(bytes);
    read::<Untagged<Value>>(bytes);
    read::<Flat<Option<u128>>>(bytes);
    read::<Tagged<Option<i128>>>(bytes);
    read::<Kinds<Option<Option<()>>>>(bytes);
    read::<Chain>(bytes);
    read::<Endless>(bytes);
    read::<Tree>(bytes);
    read::<Vec<Option<String>>>(bytes);
    read::<HashMap<i64, Vec<u8>>>(bytes);
    read::<(u8, i16, f32, char, Bytes)>(bytes);
    read::<(i128, u128)>(bytes);
    read::<IgnoredAny>(bytes);
    hints_are_covered(bytes);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>()) {
        read_as_everything(&bytes);
    }

    #[test]
    fn any_heads_are_read_or_refused(
        heads in proptest::collection::vec(
            proptest::sample::select(&b"\x00\x18\x20\x3b\x41\x61a\x80\x81\x82\x9f\xa1\xa2\xbf\xc2\x50\xc6\xc7\xf4\xf6\xf7\xfa\xff"[..]),
            0..60,
        )
    ) {
        read_as_everything(&heads);
    }

    #[test]
    fn any_damage_is_read_or_refused(value in values(), at: prop::sample::Index, byte: u8) {
        let mut bytes = to_vec(&value);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        read_as_everything(&bytes);
    }
}
