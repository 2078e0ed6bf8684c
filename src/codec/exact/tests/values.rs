//! Values come back: all values of a type that has a part of every kind.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A value of any kind, with options inside options.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Value {
    Unit,
    UnitStruct(UnitStruct),
    Bool(bool),
    Integers(i8, u16, i64, u64),
    Floats(Floats),
    Char(Option<char>),
    Text(String),
    Bytes(Option<Bytes>),
    Option(Option<Option<Box<Value>>>),
    Options {
        a: Option<Option<Option<()>>>,
        b: Option<UnitStruct>,
        c: Option<Newtype<Option<i16>>>,
    },
    Seq(Vec<Value>),
    Optionals(Vec<Option<Value>>),
    Pair(Box<(Value, Option<Value>)>),
    Map(BTreeMap<i32, Value>),
    Named(BTreeMap<String, Option<Value>>),
    Flat(Box<Flat<Option<Value>>>),
    Untagged(Box<Untagged<Value>>),
    Tagged(Box<Tagged<Option<Value>>>),
}

pub(super) fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Unit),
        Just(Value::UnitStruct(UnitStruct)),
        any::<bool>().prop_map(Value::Bool),
        any::<(i8, u16, i64, u64)>().prop_map(|(a, b, c, d)| Value::Integers(a, b, c, d)),
        any::<(u32, u64)>()
            .prop_map(|(a, b)| Value::Floats(Floats(f32::from_bits(a), f64::from_bits(b)))),
        any::<Option<char>>().prop_map(Value::Char),
        any::<String>().prop_map(Value::Text),
        any::<Option<Vec<u8>>>().prop_map(|bytes| Value::Bytes(bytes.map(Bytes))),
        (
            any::<Option<Option<Option<()>>>>(),
            any::<Option<()>>(),
            any::<Option<Option<i16>>>()
        )
            .prop_map(|(a, b, c)| Value::Options {
                a,
                b: b.map(|()| UnitStruct),
                c: c.map(Newtype)
            }),
    ];
    leaf.prop_recursive(4, 32, 4, |value| {
        let optional = proptest::option::of(value.clone()).boxed();
        let seq = |value| proptest::collection::vec(value, 0..4);
        prop_oneof![
            proptest::option::of(optional.clone())
                .prop_map(|v| Value::Option(v.map(|v| v.map(Box::new)))),
            seq(value.clone().boxed()).prop_map(Value::Seq),
            proptest::collection::vec(optional.clone(), 0..4).prop_map(Value::Optionals),
            (value.clone(), optional.clone()).prop_map(|pair| Value::Pair(Box::new(pair))),
            proptest::collection::btree_map(any::<i32>(), value.clone(), 0..4).prop_map(Value::Map),
            proptest::collection::btree_map(any::<String>(), optional.clone(), 0..4)
                .prop_map(Value::Named),
            (
                any::<Option<Option<u8>>>(),
                optional.clone(),
                any::<Option<()>>()
            )
                .prop_map(|(first, value, last)| Value::Flat(Box::new(Flat {
                    first,
                    inner: Field { value },
                    last
                }))),
            value
                .clone()
                .prop_map(|value| Value::Untagged(Box::new(Untagged::Field { value }))),
            optional.prop_map(|value| Value::Tagged(Box::new(Tagged::Field { value }))),
        ]
    })
}

proptest! {
    #[test]
    fn any_value_comes_back(value in values()) {
        let bytes = to_vec(&value);
        prop_assert_eq!(from_slice::<Value>(&bytes), Ok(value));
        prop_assert!(from_slice::<Value>(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn any_value_comes_back_through_serdes_buffer(value in values()) {
        let value = Untagged::Newtype(Some(value));
        prop_assert_eq!(from_slice(&to_vec(&value)), Ok(value));
    }
}
