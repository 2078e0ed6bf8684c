//! Values come back: one kind after the other, then through serde's attributes.

use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::net::IpAddr;

use serde::ser::{SerializeMap, SerializeSeq, SerializeStruct};

use super::*;

/// A sequence that does not know its length, or announces a false one.
struct Announced(Option<usize>, Vec<Option<u8>>);

impl Serialize for Announced {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(self.0)?;
        for element in &self.1 {
            seq.serialize_element(element)?;
        }
        seq.end()
    }
}

#[test]
fn options_come_back_as_deep_as_they_were() {
    type Deep<T> = Option<Option<Option<T>>>;
    fn all<T: Serialize + DeserializeOwned + PartialEq + Debug + Clone>(value: T) {
        round_trip_buffered::<Deep<T>>(None);
        round_trip_buffered::<Deep<T>>(Some(None));
        round_trip_buffered::<Deep<T>>(Some(Some(None)));
        round_trip_buffered::<Deep<T>>(Some(Some(Some(value.clone()))));
        round_trip_buffered(vec![Some(value.clone()), None]);
        round_trip_buffered((None::<T>, Some(value.clone()), Some(None::<T>)));
        round_trip_buffered(Some(Newtype(Some(Newtype(None::<T>)))));
        round_trip_buffered(Some(Kinds::Newtype(Some(None::<T>))));
        round_trip_buffered(Kinds::Tuple(Some(None), Some(Some(value.clone()))));
        round_trip_buffered(Kinds::Struct {
            a: Some(Some(value)),
            b: Some(None),
        });
    }
    all(());
    all(UnitStruct);
    all(Newtype(()));
    all(PhantomData::<u8>);
    all(7u8);
    all("text".to_owned());
    all(Kinds::<()>::Unit);
    all(Vec::<()>::new());
    assert_eq!(to_vec(&Some(Some(None::<()>))), [0xc6, 0xc6, 0xf6]);
}

/// How deep a value may be does not depend on its neighbours.
#[test]
fn values_of_every_kind_may_be_many_times_side_by_side() {
    fn many<T: Serialize + DeserializeOwned + PartialEq + Debug + Clone>(value: T) {
        let bytes = to_vec(&vec![value.clone(); 1_000]);
        assert_eq!(from_slice(&bytes), Ok(vec![value; 1_000]));
    }
    many(Some(7u8));
    many(Newtype(7u8));
    many(vec![7u8]);
    many((7u8, "text".to_owned()));
    many(BTreeMap::from([(7u8, false)]));
    many(Kinds::<u8>::Unit);
    many(Kinds::Newtype(7u8));
    many(Kinds::Tuple(Some(7u8), None));
    many(Kinds::Struct {
        a: Some(7u8),
        b: None,
    });
}

#[test]
fn numbers_of_every_width() {
    macro_rules! edges {
        ($($number:ty)*) => {$(
            for shift in 0..<$number>::BITS {
                let edge = (1 as $number) << shift;
                for value in [edge, edge.wrapping_sub(1), !edge, edge.wrapping_neg(), <$number>::MAX] {
                    assert_eq!(from_slice::<$number>(&to_vec(&value)), Ok(value));
                    if <$number>::BITS <= 64 {
                        round_trip_buffered(value);
                    } else {
                        round_trip(&Some(value));
                    }
                }
            }
        )*};
    }
    edges!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);
    assert!(from_slice::<u8>(&to_vec(&256)).is_err());
    assert!(from_slice::<i8>(&to_vec(&-129)).is_err());
    assert!(from_slice::<u64>(&to_vec(&-1)).is_err());
    assert!(from_slice::<i128>(&to_vec(&u128::MAX)).is_err());
}

#[test]
fn what_serdes_buffer_does_not_take_is_an_error() {
    let wide = to_vec(&Untagged::Newtype(1u128));
    from_slice::<Untagged<u128>>(&wide).unwrap_err();
    // Written as numbers, since the bytes are not for humans; the buffer says that they are.
    let address = to_vec(&Untagged::Newtype(IpAddr::from([127, 0, 0, 1])));
    from_slice::<Untagged<IpAddr>>(&address).unwrap_err();
}

#[test]
fn floats_to_the_bit() {
    for bits in [
        0,
        1,
        0x7ff0_0000_0000_0001,
        0xfff8_dead_beef_0001,
        u64::MAX,
        1 << 63,
    ] {
        let low = f32::from_bits((bits >> 32) as u32 | 1);
        round_trip_buffered(Floats(low, f64::from_bits(bits)));
    }
    round_trip_buffered([f64::INFINITY, f64::MIN_POSITIVE, 0.1]);
    round_trip_buffered([f32::NEG_INFINITY, f32::MAX, 0.1]);
}

#[test]
fn text_chars_and_bytes() {
    // In other formats a char and a text of one character look alike.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Char(char),
        Bare(u8),
        Wrapped(Option<u8>),
    }
    for len in [0, 1, 23, 24, 255, 256, 300] {
        round_trip_buffered("ß".repeat(len));
        round_trip_buffered(Bytes(vec![0xff; len]));
        round_trip_buffered(vec![Some(()); len]);
    }
    let long = "x".repeat(70_000);
    assert_eq!(from_slice(&to_vec(&long)), Ok(long));
    for char in ['a', 'ß', '\u{1F600}', '\0'] {
        round_trip_buffered(char);
        round_trip_buffered(BTreeMap::from([(char, Some(char))]));
    }
    round_trip_buffered(Either::Text("a".into()));
    round_trip_buffered(Either::Char('a'));
    round_trip_buffered(Either::Bare(1));
    round_trip_buffered(Either::Wrapped(Some(1)));
    round_trip_buffered(Either::Wrapped(None));
}

#[test]
fn containers_and_enums() {
    round_trip_buffered(Kinds::<u8>::Unit);
    round_trip_buffered(Kinds::Newtype(()));
    round_trip_buffered(Kinds::Newtype((1, 'x', "y".to_owned())));
    round_trip_buffered(Kinds::Tuple(vec![1u8], vec![]));
    round_trip_buffered(Kinds::Struct {
        a: Kinds::Unit,
        b: Kinds::Newtype(UnitStruct),
    });
    round_trip_buffered(HashMap::from(
        [(-1, Some("a")), (300, None)].map(|(k, v)| (k, v.map(str::to_owned))),
    ));
    round_trip_buffered(BTreeMap::from([(true, [1u8; 4])]));
    round_trip(&BTreeMap::from([((1, Some(())), 'a'), ((1, None), 'b')]));
    round_trip_buffered(Ok::<Result<(), ()>, String>(Err(())));
    round_trip_buffered((std::time::Duration::new(1, 2), 1..2u8));
    round_trip(&IpAddr::from([127, 0, 0, 1]));
}

#[test]
fn attributes() {
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
    #[serde(default, rename_all = "camelCase")]
    struct Sparse {
        #[serde(skip_serializing_if = "Option::is_none")]
        first_one: Option<Option<u8>>,
        #[serde(rename = "2", skip_serializing_if = "Vec::is_empty")]
        second: Vec<Option<()>>,
        #[serde(skip)]
        never: u8,
    }
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "t", content = "c")]
    enum Adjacent {
        Unit,
        Newtype(Option<Option<()>>),
        Tuple(u8, Option<UnitStruct>),
        Struct { sparse: Sparse },
    }
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "t")]
    enum Internal {
        Unit,
        Empty(UnitStruct),
        Newtype(Sparse),
        Struct { it: Option<Box<Internal>> },
    }
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Nested {
        #[serde(flatten)]
        sparse: Sparse,
        #[serde(flatten)]
        internal: Internal,
    }
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Open {
        #[serde(flatten)]
        sparse: Option<Sparse>,
        #[serde(flatten)]
        rest: BTreeMap<String, Option<Option<()>>>,
    }
    let sparse = |first_one, second| Sparse {
        first_one,
        second,
        never: 0,
    };
    for first in [None, Some(None), Some(Some(1))] {
        let sparse = sparse(first, vec![None, Some(())]);
        round_trip_buffered(sparse.clone());
        round_trip_buffered(Adjacent::Struct {
            sparse: sparse.clone(),
        });
        round_trip_buffered(Internal::Newtype(sparse.clone()));
        let internal = Internal::Struct {
            it: Some(Box::new(Internal::Newtype(sparse.clone()))),
        };
        let rest = [("x", None), ("y", Some(None)), ("z", Some(Some(())))];
        round_trip_buffered(Nested {
            sparse: sparse.clone(),
            internal,
        });
        round_trip_buffered(Open {
            sparse: Some(sparse),
            rest: rest.map(|(key, value)| (key.to_owned(), value)).into(),
        });
    }
    round_trip_buffered(sparse(None, vec![]));
    round_trip_buffered(vec![
        Adjacent::Unit,
        Adjacent::Newtype(Some(None)),
        Adjacent::Newtype(None),
    ]);
    round_trip_buffered(Adjacent::Tuple(1, Some(UnitStruct)));
    round_trip_buffered(vec![
        Internal::Unit,
        Internal::Empty(UnitStruct),
        Internal::Struct { it: None },
    ]);
}

#[test]
fn lengths_are_kept_or_refused() {
    let elements = vec![None, Some(1)];
    for announced in [None, Some(2)] {
        let bytes = to_vec(&Announced(announced, elements.clone()));
        assert_eq!(from_slice(&bytes), Ok(elements.clone()));
        assert_eq!(from_slice(&bytes), Ok((None::<u8>, Some(1u8))));
        assert!(from_slice::<(Option<u8>,)>(&bytes).is_err());
        assert!(from_slice::<[Option<u8>; 3]>(&bytes).is_err());
    }
    for announced in [1, 3] {
        let value = Announced(Some(announced), elements.clone());
        assert!(to_vec_append(&mut Vec::new(), &value).is_err());
    }
}

/// A struct and a map that write another number of fields than they announce.
struct Fields {
    is_map: bool,
    announced: usize,
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_map {
            let mut map = serializer.serialize_map(Some(self.announced))?;
            map.serialize_entry("a", &1_u8)?;
            map.serialize_entry("b", &2_u8)?;
            map.end()
        } else {
            let mut fields = serializer.serialize_struct("Fields", self.announced)?;
            fields.serialize_field("a", &1_u8)?;
            fields.serialize_field("b", &2_u8)?;
            fields.end()
        }
    }
}

#[test]
fn a_wrong_number_of_fields_is_an_error_of_the_writer() {
    for is_map in [false, true] {
        for (announced, is_right) in [(1, false), (2, true), (3, false)] {
            let fields = Fields { is_map, announced };
            let mut bytes = Vec::new();
            assert_eq!(to_vec_append(&mut bytes, &fields).is_ok(), is_right);
            if is_right {
                let read = from_slice::<BTreeMap<String, u8>>(&bytes).unwrap();
                assert_eq!(read.into_values().collect::<Vec<_>>(), [1, 2]);
            }
        }
    }
}

#[test]
fn types_may_write_an_option_and_read_what_is_in_it_or_the_reverse() {
    assert_eq!(from_slice(&to_vec(&Some(Some(5u8)))), Ok(5u8));
    assert_eq!(from_slice(&to_vec(&Some("a"))), Ok("a".to_owned()));
    assert_eq!(from_slice(&to_vec(&5u8)), Ok(Some(5u8)));
    assert_eq!(from_slice(&to_vec(&())), Ok(None::<u8>));
    assert_eq!(from_slice(&to_vec(&None::<u8>)), Ok(()));
    let bytes = to_vec(&Bytes(vec![1, 2]));
    assert_eq!(from_slice(&bytes), Ok(vec![1u8, 2]));
    assert_eq!(from_slice(&bytes), Ok((1u8, 2u8)));
    // The type must take as many elements as there are: fewer or more are an error.
    assert!(from_slice::<(u8,)>(&bytes).is_err());
    assert!(from_slice::<[u8; 3]>(&bytes).is_err());
}
