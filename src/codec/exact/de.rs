//! The reading half. It takes what [`super::ser`] writes, and answers all other bytes with an
//! error.

use serde::de::value::{BorrowedStrDeserializer, MapAccessDeserializer, SeqDeserializer};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::{Error, MAX_DEPTH, UNKNOWN_LENGTH, head, kind};

/// A reader that takes values off the front of bytes.
pub(super) struct Reader<'de> {
    input: &'de [u8],
    depth: u16,
    /// Elements that the open arrays and maps have announced and that have not come yet. Each takes
    /// a byte at least. So if the bytes left cannot hold a new length beside these, the length is
    /// false, and nothing is allocated for it.
    owed: usize,
}

/// What a head announces, with what belongs to it unless that is values of their own.
#[derive(Clone, Copy)]
enum Item<'de> {
    Unsigned(u64),
    /// -1 - n.
    Negative(u64),
    Big(u128),
    /// -1 - n.
    BigNegative(u128),
    Bytes(&'de [u8]),
    Text(&'de str),
    Char(char),
    Array(Option<u64>),
    Map(Option<u64>),
    Bool(bool),
    F32(f32),
    F64(f64),
    None,
    Some,
    Unit,
}

impl<'de> Reader<'de> {
    pub(super) fn new(input: &'de [u8]) -> Self {
        Self {
            input,
            depth: 0,
            owed: 0,
        }
    }

    /// Checks that all bytes have been read.
    pub(super) fn end(&self) -> Result<(), Error> {
        match self.input.len() {
            0 => Ok(()),
            left => Err(Error(format!("{left} bytes follow the value"))),
        }
    }

    #[inline]
    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (chunk, rest) = self.input.split_first_chunk().ok_or_else(ends_early)?;
        self.input = rest;
        Ok(*chunk)
    }

    #[inline]
    fn bytes(&mut self, len: u64) -> Result<&'de [u8], Error> {
        let (bytes, rest) = usize::try_from(len)
            .ok()
            .and_then(|len| self.input.split_at_checked(len))
            .ok_or_else(ends_early)?;
        self.input = rest;
        Ok(bytes)
    }

    #[inline]
    fn text(&mut self, len: u64) -> Result<&'de str, Error> {
        str::from_utf8(self.bytes(len)?).map_err(|error| Error(format!("text is {error}")))
    }

    /// Takes the first byte of a head, and its number; the number is 0 for an unknown length.
    #[inline]
    fn head(&mut self) -> Result<(u8, u64), Error> {
        let [head] = self.chunk()?;
        let number = match head & 0x1f {
            small @ 0..0x18 => small.into(),
            0x18 => self.chunk::<1>()?[0].into(),
            0x19 => u16::from_be_bytes(self.chunk()?).into(),
            0x1a => u32::from_be_bytes(self.chunk()?).into(),
            0x1b => u64::from_be_bytes(self.chunk()?),
            UNKNOWN_LENGTH if matches!(head >> 5, kind::ARRAY | kind::MAP) => 0,
            _ => return Err(no_such(head)),
        };
        Ok((head, number))
    }

    fn item(&mut self) -> Result<Item<'de>, Error> {
        let (head, number) = self.head()?;
        let len = (head & 0x1f != UNKNOWN_LENGTH).then_some(number);
        Ok(match (head >> 5, head) {
            (kind::UNSIGNED, _) => Item::Unsigned(number),
            (kind::NEGATIVE, _) => Item::Negative(number),
            (kind::BYTES, _) => Item::Bytes(self.bytes(number)?),
            (kind::TEXT, _) => Item::Text(self.text(number)?),
            (kind::ARRAY, _) => Item::Array(len),
            (kind::MAP, _) => Item::Map(len),
            (kind::TAG, head::SOME) => Item::Some,
            (kind::TAG, head::CHAR) => Item::Char(self.char()?),
            (kind::TAG, head::BIG) => Item::Big(self.big()?),
            (kind::TAG, head::BIG_NEGATIVE) => Item::BigNegative(self.big()?),
            (kind::SIMPLE, head::FALSE) => Item::Bool(false),
            (kind::SIMPLE, head::TRUE) => Item::Bool(true),
            (kind::SIMPLE, head::NONE) => Item::None,
            (kind::SIMPLE, head::UNIT) => Item::Unit,
            (kind::SIMPLE, head::F32) => Item::F32(f32::from_bits(number as u32)),
            (kind::SIMPLE, head::F64) => Item::F64(f64::from_bits(number)),
            _ => return Err(no_such(head)),
        })
    }

    fn char(&mut self) -> Result<char, Error> {
        let (head, len) = self.head()?;
        if head >> 5 != kind::TEXT {
            return Err(no_such(head));
        }
        let mut chars = self.text(len)?.chars();
        match (chars.next(), chars.next()) {
            (Some(char), None) => Ok(char),
            _ => Err(Error("a char is not one character".into())),
        }
    }

    fn big(&mut self) -> Result<u128, Error> {
        let (head, len) = self.head()?;
        if head >> 5 != kind::BYTES || len != size_of::<u128>() as u64 {
            return Err(no_such(head));
        }
        Ok(u128::from_be_bytes(self.chunk()?))
    }

    /// Takes the next value if it is an integer that fits. Otherwise the input stays where it is.
    #[inline]
    fn integer<T: TryFrom<i128>>(&mut self) -> Option<T> {
        let before = self.input;
        let value = match self.head() {
            Ok((head, number)) if head >> 5 == kind::UNSIGNED => Some(i128::from(number)),
            Ok((head, number)) if head >> 5 == kind::NEGATIVE => Some(!i128::from(number)),
            _ => None,
        };
        let value = value.and_then(|value| T::try_from(value).ok());
        if value.is_none() {
            self.input = before;
        }
        value
    }

    /// Takes the next item, without any `Some` around it. Some types write an `Option` and read its
    /// content: a type that asks for anything but an `Option` gets what is in it.
    fn unwrapped(&mut self) -> Result<Item<'de>, Error> {
        while let [head::SOME, rest @ ..] = self.input {
            self.input = rest;
        }
        self.item()
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::too_deep());
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Reads all elements or entries of an array or map.
    fn elements<T>(
        &mut self,
        len: Option<u64>,
        read: impl FnOnce(&mut Elements<'_, 'de>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let left = len
            .map(|len| {
                let room = self.input.len().saturating_sub(self.owed);
                usize::try_from(len).ok().filter(|&len| len <= room)
            })
            .map(|len| len.ok_or_else(ends_early))
            .transpose()?;
        self.owed += left.unwrap_or(0);
        self.nested(|reader| {
            let mut elements = Elements { reader, left };
            let value = read(&mut elements)?;
            if elements.next()? {
                return Err(Error("there are more elements than the type takes".into()));
            }
            Ok(value)
        })
    }

    fn visit<V: Visitor<'de>>(&mut self, item: Item<'de>, visitor: V) -> Result<V::Value, Error> {
        match item {
            Item::Unsigned(number) => visitor.visit_u64(number),
            Item::Negative(number) => match i64::try_from(number) {
                Ok(number) => visitor.visit_i64(!number),
                Err(_) => visitor.visit_i128(!i128::from(number)),
            },
            Item::Big(number) => visitor.visit_u128(number),
            Item::BigNegative(number) => match i128::try_from(number) {
                Ok(number) => visitor.visit_i128(!number),
                Err(_) => Err(Error("a number is below that of an i128".into())),
            },
            Item::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
            Item::Text(text) => visitor.visit_borrowed_str(text),
            Item::Char(char) => visitor.visit_char(char),
            Item::Array(len) => self.elements(len, |elements| visitor.visit_seq(elements)),
            Item::Map(len) => self.elements(len, |elements| visitor.visit_map(elements)),
            Item::Bool(bool) => visitor.visit_bool(bool),
            Item::F32(number) => visitor.visit_f32(number),
            Item::F64(number) => visitor.visit_f64(number),
            Item::None => visitor.visit_none(),
            Item::Some => self.nested(|reader| visitor.visit_some(reader)),
            Item::Unit => visitor.visit_unit(),
        }
    }

    fn as_written<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        let item = self.unwrapped()?;
        self.visit(item, visitor)
    }
}

#[cold]
fn ends_early() -> Error {
    Error("the bytes end too early".into())
}

#[cold]
fn no_such(head: u8) -> Error {
    Error(format!("no value begins with the byte {head:#04x} here"))
}

/// Methods for types that say what they are: integers as wide as the type asks for, for visitors
/// that know no other width.
macro_rules! integers {
    ($($method:ident $visit:ident)*) => {$(
        #[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.integer() {
                Some(number) => visitor.$visit(number),
                None => self.as_written(visitor),
            }
        }
    )*};
}

/// Methods for types that say what they are where the bytes say it as well.
macro_rules! as_written {
    ($($method:ident($($argument:ty),*))*) => {$(
        fn $method<V: Visitor<'de>>(self, $(_: $argument,)* visitor: V) -> Result<V::Value, Error> {
            self.as_written(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Error;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let item = self.item()?;
        self.visit(item, visitor)
    }

    integers! {
        deserialize_i8 visit_i8
        deserialize_i16 visit_i16
        deserialize_i32 visit_i32
        deserialize_i64 visit_i64
        deserialize_u8 visit_u8
        deserialize_u16 visit_u16
        deserialize_u32 visit_u32
        deserialize_u64 visit_u64
    }

    as_written! {
        deserialize_bool()
        deserialize_u128()
        deserialize_f32()
        deserialize_f64()
        deserialize_char()
        deserialize_str()
        deserialize_string()
        deserialize_bytes()
        deserialize_byte_buf()
        deserialize_map()
        deserialize_struct(&'static str, &'static [&'static str])
        deserialize_identifier()
        deserialize_ignored_any()
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.unwrapped()? {
            Item::Big(number) if i128::try_from(number).is_ok() => {
                visitor.visit_i128(number.cast_signed())
            }
            item => self.visit(item, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.input {
            [head::NONE, rest @ ..] => {
                self.input = rest;
                visitor.visit_none()
            }
            // No `Option` is written like this. A type that writes `()` and reads an `Option` means
            // `None`, as in other formats.
            [head::UNIT, rest @ ..] => {
                self.input = rest;
                visitor.visit_unit()
            }
            [head::SOME, rest @ ..] => {
                self.input = rest;
                self.nested(|reader| visitor.visit_some(reader))
            }
            // No `Option` is written like this either, but some types write a value and read an
            // `Option` of it.
            _ => self.nested(|reader| visitor.visit_some(reader)),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.unwrapped()? {
            Item::None => visitor.visit_unit(),
            item => self.visit(item, visitor),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.nested(|reader| visitor.visit_newtype_struct(reader))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.unwrapped()? {
            Item::Bytes(bytes) => {
                let mut bytes = SeqDeserializer::new(bytes.iter().copied());
                let value = visitor.visit_seq(&mut bytes)?;
                bytes.end()?;
                Ok(value)
            }
            item => self.visit(item, visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.unwrapped()? {
            Item::Text(name) => visitor.visit_enum(BorrowedStrDeserializer::new(name)),
            Item::Map(len) => self.elements(len, |elements| {
                visitor.visit_enum(MapAccessDeserializer::new(elements))
            }),
            item => self.visit(item, visitor),
        }
    }
}

/// The elements of an array or the entries of a map, as they come.
struct Elements<'r, 'de> {
    reader: &'r mut Reader<'de>,
    left: Option<usize>,
}

impl Elements<'_, '_> {
    /// Returns whether there is another element. If so, the caller must read it next.
    #[inline]
    fn next(&mut self) -> Result<bool, Error> {
        match (&mut self.left, self.reader.input) {
            (Some(0), _) => Ok(false),
            (Some(left), _) => {
                *left -= 1;
                self.reader.owed -= 1;
                Ok(true)
            }
            (None, [head::BREAK, rest @ ..]) => {
                self.reader.input = rest;
                self.left = Some(0);
                Ok(false)
            }
            (None, []) => Err(ends_early()),
            (None, _) => Ok(true),
        }
    }
}

impl<'de> SeqAccess<'de> for Elements<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        if !self.next()? {
            return Ok(None);
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        self.left
    }
}

impl<'de> MapAccess<'de> for Elements<'_, 'de> {
    type Error = Error;

    #[inline]
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        self.next_element_seed(seed)
    }

    #[inline]
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        self.left
    }
}
