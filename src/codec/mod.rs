//! A value → bytes, and back.
//!
//! Numbers are sent as they are, and vectors of numbers by one copy. Everything else goes through
//! serde in the format of [`exact`], which takes every kind of derive and mistakes no value for
//! another. What that costs, and what it was compared with, is in `docs/design/0004-codec.md`.
//!
//! Values of one type are written one after the other. A number is just its bytes. Any other value
//! is a record: its length in 8 bytes, then that many bytes.

pub(crate) mod exact;

use std::any::Any;
use std::mem::size_of;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of the length before a record.
pub(crate) const LENGTH_BYTES: usize = size_of::<u64>();

/// Calls `$then` with each type of number.
macro_rules! for_each_number {
    ($then:ident) => {
        $then!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64)
    };
}

/// Returns the bytes that each value of the type takes, if all take the same.
pub(crate) fn fixed_size<T: 'static>() -> Option<usize> {
    fn is<T: 'static, N: 'static>() -> bool {
        std::any::TypeId::of::<T>() == std::any::TypeId::of::<N>()
    }
    macro_rules! look {
        ($($number:ty)*) => { if $(is::<T, $number>())||* { return Some(size_of::<T>()) } };
    }
    for_each_number!(look);
    None
}

/// Appends a value.
///
/// # Errors
///
/// What the value's `Serialize` said; then `out` is as it was.
#[inline]
pub(crate) fn append<T: Serialize + 'static>(out: &mut Vec<u8>, value: &T) -> Result<(), String> {
    macro_rules! number {
        ($($number:ty)*) => {$(
            if let Some(number) = (value as &dyn Any).downcast_ref::<$number>() {
                out.extend_from_slice(&number.to_ne_bytes());
                return Ok(());
            }
        )*};
    }
    for_each_number!(number);
    append_record(out, value)
}

/// Writes a value of a type with a [`fixed_size`] over the whole of `out`, which has that size.
#[inline]
pub(crate) fn put_fixed<T: 'static>(out: &mut [u8], value: &T) {
    macro_rules! number {
        ($($number:ty)*) => {$(
            if let Some(number) = (value as &dyn Any).downcast_ref::<$number>() {
                out.copy_from_slice(&number.to_ne_bytes());
            }
        )*};
    }
    for_each_number!(number);
}

fn append_record<T: Serialize + 'static>(out: &mut Vec<u8>, value: &T) -> Result<(), String> {
    macro_rules! numbers {
        ($($number:ty)*) => {$(
            if let Some(numbers) = (value as &dyn Any).downcast_ref::<Vec<$number>>() {
                let bytes: &[u8] = bytemuck::cast_slice(numbers);
                out.reserve(LENGTH_BYTES + bytes.len());
                out.extend_from_slice(&(bytes.len() as u64).to_ne_bytes());
                out.extend_from_slice(bytes);
                return Ok(());
            }
        )*};
    }
    for_each_number!(numbers);
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    if let Err(error) = exact::to_vec_append(out, value) {
        out.truncate(start);
        return Err(error);
    }
    let len = (out.len() - start - LENGTH_BYTES) as u64;
    out[start..start + LENGTH_BYTES].copy_from_slice(&len.to_ne_bytes());
    Ok(())
}

/// What is set up around the reading of each record, for values that must know where they are read.
pub(crate) trait Reading {
    fn of_record<R>(read: impl FnOnce() -> R) -> R;
}

/// Takes the next value off the front of `input`. After an error of the value itself, the input
/// stands at the next one.
///
/// # Errors
///
/// What the type's `Deserialize` said, or that the bytes end too early; in the second case the
/// input is empty.
#[inline]
pub(crate) fn take<T, W>(input: &mut &[u8]) -> Result<T, String>
where
    T: DeserializeOwned + 'static,
    W: Reading,
{
    let mut value: Option<T> = None;
    macro_rules! number {
        ($($number:ty)*) => {$(
            if let Some(number) = (&mut value as &mut dyn Any).downcast_mut::<Option<$number>>() {
                let Some((bytes, rest)) = input.split_first_chunk() else { return Err(ends_early(input)) };
                *number = Some(<$number>::from_ne_bytes(*bytes));
                *input = rest;
            } else
        )* { return take_record::<T, W>(input) }};
    }
    for_each_number!(number);
    value.ok_or_else(|| ends_early(input))
}

fn take_record<T, W>(input: &mut &[u8]) -> Result<T, String>
where
    T: DeserializeOwned + 'static,
    W: Reading,
{
    let Some(record) = split_record(input) else {
        return Err(ends_early(input));
    };
    let mut value: Option<T> = None;
    macro_rules! numbers {
        ($($number:ty)*) => {$(
            if let Some(numbers) = (&mut value as &mut dyn Any).downcast_mut::<Option<Vec<$number>>>() {
                if record.len() % size_of::<$number>() != 0 {
                    return Err(format!("{} bytes are no whole number of {}", record.len(), stringify!($number)));
                }
                *numbers = Some(bytemuck::allocation::pod_collect_to_vec(record));
            } else
        )* { value = Some(W::of_record(|| exact::from_slice(record))?) }};
    }
    for_each_number!(numbers);
    value.ok_or_else(|| "no value".to_owned())
}

/// Takes the next record, without its length.
fn split_record<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = input.split_first_chunk::<LENGTH_BYTES>()?;
    let len = usize::try_from(u64::from_ne_bytes(*len)).ok()?;
    let (record, rest) = rest.split_at_checked(len)?;
    *input = rest;
    Some(record)
}

fn ends_early(input: &mut &[u8]) -> String {
    let left = input.len();
    *input = &[];
    format!("the bytes end too early ({left} left)")
}

/// Takes all values of `input` and appends them to `out`. Returns how many there were.
///
/// # Errors
///
/// Which value, from 0, could not be made, and why; those before it have been appended.
pub(crate) fn take_all<T, W>(mut input: &[u8], out: &mut Vec<T>) -> Result<usize, (usize, String)>
where
    T: DeserializeOwned + 'static,
    W: Reading,
{
    macro_rules! numbers {
        ($($number:ty)*) => {$(
            if let Some(out) = (out as &mut dyn Any).downcast_mut::<Vec<$number>>() {
                let (values, mut rest) = input.as_chunks();
                out.extend(values.iter().map(|&bytes| <$number>::from_ne_bytes(bytes)));
                return if rest.is_empty() { Ok(values.len()) } else { Err((values.len(), ends_early(&mut rest))) };
            }
        )*};
    }
    for_each_number!(numbers);
    let mut count = 0;
    while !input.is_empty() {
        out.push(take::<T, W>(&mut input).map_err(|reason| (count, reason))?);
        count += 1;
    }
    Ok(count)
}

/// Returns how many bytes the first `count` records of `input` take; `None` if there are fewer
/// records.
pub(crate) fn records_len(input: &[u8], count: usize) -> Option<usize> {
    let mut rest = input;
    for _ in 0..count {
        split_record(&mut rest)?;
    }
    Some(input.len() - rest.len())
}

/// Returns whether the first record of `input`, of which the value must be a `Result`, is an `Err`.
#[inline]
pub(crate) fn is_err(input: &[u8]) -> bool {
    input.get(LENGTH_BYTES..).is_some_and(exact::is_err)
}

/// Finds the first record that is an `Err` among records of `Result`s. Returns how many records
/// come before it, and at which byte it ends.
pub(crate) fn first_err(input: &[u8]) -> Option<(usize, usize)> {
    let mut rest = input;
    for nth in 0.. {
        let record = split_record(&mut rest)?;
        if exact::is_err(record) {
            return Some((nth, input.len() - rest.len()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reading with nothing set up around it.
    struct Plain;

    impl Reading for Plain {
        fn of_record<R>(read: impl FnOnce() -> R) -> R {
            read()
        }
    }

    fn take<T: DeserializeOwned + 'static>(input: &mut &[u8]) -> Result<T, String> {
        super::take::<T, Plain>(input)
    }

    fn take_all<T: DeserializeOwned + 'static>(
        input: &[u8],
        out: &mut Vec<T>,
    ) -> Result<usize, (usize, String)> {
        super::take_all::<T, Plain>(input, out)
    }

    use std::collections::BTreeMap;
    use std::fmt::Debug;

    fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug + 'static>(values: &[T]) {
        let mut bytes = Vec::new();
        for value in values {
            append(&mut bytes, value).unwrap();
        }
        if let Some(size) = fixed_size::<T>() {
            assert_eq!(bytes.len(), size * values.len());
        } else {
            assert_eq!(records_len(&bytes, values.len()), Some(bytes.len()));
        }
        let mut input = bytes.as_slice();
        for value in values {
            assert_eq!(&take::<T>(&mut input).unwrap(), value);
        }
        assert!(input.is_empty());
        assert!(take::<T>(&mut input).is_err());
    }

    #[test]
    fn numbers_and_vectors_of_them() {
        round_trip(&[0u8, 255]);
        round_trip(&[u64::MAX, 1]);
        round_trip(&[i128::MIN, 5]);
        round_trip(&[1.5f64, f64::NEG_INFINITY]);
        round_trip(&[vec![1.5f64, -0.0], vec![]]);
        round_trip(&[vec![1u8; 70_000]]);
        assert_eq!(fixed_size::<u64>(), Some(8));
        assert_eq!(fixed_size::<bool>(), None);
    }

    #[test]
    fn what_serde_takes() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Inner {
            x: u32,
            #[serde(skip_serializing_if = "Option::is_none", default)]
            y: Option<String>,
        }
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Text(String),
        }
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Outer {
            #[serde(flatten)]
            inner: Inner,
            either: Either,
            map: BTreeMap<String, (u8, char)>,
            unit: (),
        }
        let outer = |y: Option<&str>, either| Outer {
            inner: Inner {
                x: 3,
                y: y.map(str::to_owned),
            },
            either,
            map: BTreeMap::from([("k".to_owned(), (1, 'ß'))]),
            unit: (),
        };
        round_trip(&[
            outer(None, Either::Number(-1)),
            outer(Some("y"), Either::Text("t".into())),
        ]);
        round_trip(&[(true, 'x', Some(())), (false, '\u{1F600}', None)]);
        round_trip(&[None, Some(None), Some(Some(5u8))]);
        round_trip(&[String::new(), "many hands".to_owned()]);
    }

    #[test]
    fn a_value_that_does_not_decode_leaves_the_next_one_readable() {
        let mut bytes = Vec::new();
        append(&mut bytes, &"text".to_owned()).unwrap();
        append(&mut bytes, &true).unwrap();
        let mut input = bytes.as_slice();
        assert!(take::<bool>(&mut input).is_err());
        assert_eq!(take::<bool>(&mut input), Ok(true));
    }

    #[test]
    fn a_value_that_does_not_encode_leaves_nothing_behind() {
        struct Never;
        impl Serialize for Never {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("not today"))
            }
        }
        let mut bytes = vec![1, 2];
        assert!(
            append(&mut bytes, &Never)
                .unwrap_err()
                .contains("not today")
        );
        assert_eq!(bytes, [1, 2]);
    }

    #[test]
    fn all_values_are_taken_up_to_the_first_that_is_corrupted() {
        // The corrupted bytes, of which none is taken, since the value does not come to its end.
        fn check<T>(values: &[T], corrupted: &[u8])
        where
            T: Serialize + DeserializeOwned + PartialEq + Debug + Clone + 'static,
        {
            let mut bytes = Vec::new();
            for value in values {
                append(&mut bytes, value).unwrap();
            }
            // Behind what is there already.
            let mut out = vec![values[0].clone()];
            assert_eq!(take_all(&bytes, &mut out), Ok(values.len()));
            assert_eq!((&out[0], &out[1..]), (&values[0], values));
            bytes.extend_from_slice(corrupted);
            let mut out = Vec::<T>::new();
            let (count, reason) = take_all(&bytes, &mut out).unwrap_err();
            assert_eq!((count, out.as_slice()), (values.len(), values), "{reason}");
            let left = format!("({} left)", corrupted.len());
            assert!(reason.contains(&left), "{reason}");
        }
        check(&[1_u32, u32::MAX], &[0; 3]);
        check(&[-1.5_f64], &[0; 7]);
        check(&["a".to_owned(), String::new()], &[9, 0, 0]);
        check(&[vec![1_u16], vec![]], &9_u64.to_ne_bytes());
        assert_eq!(take_all::<String>(&[], &mut Vec::new()), Ok(0));
        // The record is whole, and what is in it is of another type.
        let mut bytes = Vec::new();
        append(&mut bytes, &true).unwrap();
        append(&mut bytes, &"text".to_owned()).unwrap();
        let mut out = Vec::<bool>::new();
        assert_eq!(take_all(&bytes, &mut out).unwrap_err().0, 1);
        assert_eq!(out, [true]);
    }

    #[test]
    fn numbers_have_one_form_and_records_are_counted() {
        macro_rules! check {
            ($($number:ty)*) => {$(
                let number = <$number>::MAX;
                let (mut bytes, mut slot) = (Vec::new(), [0; size_of::<$number>()]);
                append(&mut bytes, &number).unwrap();
                put_fixed(&mut slot, &number);
                assert_eq!(bytes, slot);
                assert_eq!(bytes, number.to_ne_bytes());
                assert_eq!(fixed_size::<$number>(), Some(slot.len()));
                round_trip(&[vec![number, 0 as $number], vec![]]);
            )*};
        }
        for_each_number!(check);
        let mut bytes = Vec::new();
        for text in ["one", "", "three"] {
            append(&mut bytes, &text.to_owned()).unwrap();
        }
        let ends = [0, 1, 2, 3, 4].map(|count| records_len(&bytes, count));
        assert_eq!(ends[0], Some(0));
        assert_eq!(ends[3..], [Some(bytes.len()), None]);
        let mut rest = &bytes[ends[1].unwrap()..];
        assert_eq!(take::<String>(&mut rest), Ok(String::new()));
        assert_eq!(take::<String>(&mut rest), Ok("three".to_owned()));
    }

    #[test]
    fn the_first_err_among_results_is_found_whatever_is_in_them() {
        type Nested = Result<Result<String, ()>, Result<u8, Option<u64>>>;
        let oks: [Nested; 3] = [Ok(Ok("Err".to_owned())), Ok(Err(())), Ok(Ok(String::new()))];
        let errs: [Nested; 3] = [Err(Ok(1)), Err(Err(None)), Err(Err(Some(u64::MAX)))];
        let mut bytes = Vec::new();
        for ok in &oks {
            let start = bytes.len();
            append(&mut bytes, ok).unwrap();
            assert!(!is_err(&bytes[start..]), "{ok:?}");
        }
        assert_eq!(first_err(&bytes), None);
        let before = bytes.len();
        for err in &errs {
            bytes.truncate(before);
            append(&mut bytes, err).unwrap();
            assert!(is_err(&bytes[before..]), "{err:?}");
            let end = bytes.len();
            append(&mut bytes, &oks[0]).unwrap();
            assert_eq!(first_err(&bytes), Some((3, end)));
            assert_eq!(
                first_err(&bytes[..end - 1]),
                None,
                "the record is not whole"
            );
        }
        assert!(!is_err(&[]) && first_err(&[]).is_none());
        let (mut unit, mut number) = (Vec::new(), Vec::new());
        append(&mut unit, &Err::<(), ()>(())).unwrap();
        append(&mut number, &Ok::<u64, ()>(7)).unwrap();
        assert!(is_err(&unit) && !is_err(&number));
    }

    #[test]
    fn a_length_beyond_the_bytes_is_an_error() {
        let bytes = u64::MAX.to_ne_bytes();
        assert!(take::<String>(&mut bytes.as_slice()).is_err());
        assert_eq!(records_len(&bytes, 1), None);
        assert!(
            take::<Vec<u32>>(&mut [3u64.to_ne_bytes().as_slice(), &[0; 3]].concat().as_slice())
                .is_err()
        );
    }
}
