// These tests are about options in options.
#![allow(clippy::option_option)]

mod garbage;
mod round_trips;
mod values;

use std::fmt::{self, Debug};

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serializer};

use super::*;

fn to_vec<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    to_vec_append(&mut bytes, value).unwrap();
    bytes
}

/// Checks that the value comes back from its bytes, and from no part of them.
#[track_caller]
fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let bytes = to_vec(value);
    let back = from_slice::<T>(&bytes);
    assert_eq!(back.as_ref(), Ok(value), "{bytes:02x?}");
    for len in 0..bytes.len() {
        assert!(
            from_slice::<T>(&bytes[..len]).is_err(),
            "{len} of {bytes:02x?}"
        );
    }
    assert!(from_slice::<T>(&[bytes.as_slice(), &[0]].concat()).is_err());
}

/// Checks the value as it is, and where serde reads it into a buffer of its own first.
#[track_caller]
fn round_trip_buffered<T>(value: T)
where
    T: Serialize + DeserializeOwned + PartialEq + Debug + Clone,
{
    round_trip(&value);
    round_trip(&Untagged::Field {
        value: value.clone(),
    });
    round_trip(&Untagged::Newtype(value.clone()));
    round_trip(&Tagged::Field {
        value: value.clone(),
    });
    round_trip(&Flat {
        first: Some(None),
        inner: Field { value },
        last: None,
    });
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Untagged<T> {
    Field { value: T },
    Newtype(T),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged<T> {
    Field { value: T },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Field<T> {
    value: T,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Flat<T> {
    first: Option<Option<u8>>,
    #[serde(flatten)]
    inner: Field<T>,
    last: Option<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct UnitStruct;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Newtype<T>(T);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Kinds<T> {
    Unit,
    Newtype(T),
    Tuple(T, T),
    Struct { a: T, b: T },
}

/// Bytes as `serde_bytes` has them.
#[derive(Clone, Debug, PartialEq)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Take;
        impl<'de> Visitor<'de> for Take {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Take)
    }
}

/// Floats that are equal if all their bits are.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Floats(f32, f64);

impl PartialEq for Floats {
    fn eq(&self, other: &Self) -> bool {
        (self.0.to_bits(), self.1.to_bits()) == (other.0.to_bits(), other.1.to_bits())
    }
}
