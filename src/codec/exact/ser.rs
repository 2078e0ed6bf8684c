//! The writing half: it writes each kind of serde's data model as the table in [`super`] says.

use serde::Serialize;
use serde::ser::{
    SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::{Error, MAX_DEPTH, UNKNOWN_LENGTH, head, kind};

/// A writer that appends values to a vector.
pub(super) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    depth: u16,
}

impl<'a> Writer<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out, depth: 0 }
    }

    /// Writes a head with its number. A small number is in the head's lower five bits. A larger one
    /// is behind the head, in as few bytes as it takes; the lower bits say how many.
    #[inline]
    fn head(&mut self, kind: u8, number: u64) {
        let kind = kind << 5;
        if number < 0x18 {
            self.out.push(kind | number as u8);
        } else if let Ok(number) = u8::try_from(number) {
            self.out.extend_from_slice(&[kind | 0x18, number]);
        } else if let Ok(number) = u16::try_from(number) {
            self.payload(kind | 0x19, number.to_be_bytes());
        } else if let Ok(number) = u32::try_from(number) {
            self.payload(kind | 0x1a, number.to_be_bytes());
        } else {
            self.payload(kind | 0x1b, number.to_be_bytes());
        }
    }

    #[inline]
    fn payload<const N: usize>(&mut self, head: u8, bytes: [u8; N]) {
        self.out.push(head);
        self.out.extend_from_slice(&bytes);
    }

    #[inline]
    fn text(&mut self, text: &str) {
        self.head(kind::TEXT, text.len() as u64);
        self.out.extend_from_slice(text.as_bytes());
    }

    fn big(&mut self, head: u8, number: u128) {
        self.out.push(head);
        self.head(kind::BYTES, size_of::<u128>() as u64);
        self.out.extend_from_slice(&number.to_be_bytes());
    }

    #[inline]
    fn descend(&mut self) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::too_deep());
        }
        Ok(())
    }

    #[inline]
    fn inner<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.descend()?;
        value.serialize(&mut *self)?;
        self.depth -= 1;
        Ok(())
    }

    /// Opens a variant with content, which is a map of one: writes the name; the content comes
    /// next.
    fn variant(&mut self, name: &str) -> Result<(), Error> {
        self.descend()?;
        self.head(kind::MAP, 1);
        self.text(name);
        Ok(())
    }

    /// Opens an array or map that ends at `outer_depth`.
    #[inline]
    fn container(
        &mut self,
        kind: u8,
        len: Option<usize>,
        outer_depth: u16,
    ) -> Result<Container<'_, 'a>, Error> {
        self.descend()?;
        match len {
            Some(len) => self.head(kind, len as u64),
            None => self.out.push(kind << 5 | UNKNOWN_LENGTH),
        }
        Ok(Container {
            writer: self,
            left: len,
            outer_depth,
        })
    }
}

impl<'w, 'a> Serializer for &'w mut Writer<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Container<'w, 'a>;
    type SerializeTuple = Container<'w, 'a>;
    type SerializeTupleStruct = Container<'w, 'a>;
    type SerializeTupleVariant = Container<'w, 'a>;
    type SerializeMap = Container<'w, 'a>;
    type SerializeStruct = Container<'w, 'a>;
    type SerializeStructVariant = Container<'w, 'a>;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.out.push(if value { head::TRUE } else { head::FALSE });
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), Error> {
        self.serialize_i64(value.into())
    }

    #[inline]
    fn serialize_i64(self, value: i64) -> Result<(), Error> {
        // -1 - value is !value.
        match u64::try_from(value) {
            Ok(value) => self.head(kind::UNSIGNED, value),
            Err(_) => self.head(kind::NEGATIVE, (!value).cast_unsigned()),
        }
        Ok(())
    }

    fn serialize_i128(self, value: i128) -> Result<(), Error> {
        match u128::try_from(value) {
            Ok(value) => self.big(head::BIG, value),
            Err(_) => self.big(head::BIG_NEGATIVE, (!value).cast_unsigned()),
        }
        Ok(())
    }

    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), Error> {
        self.serialize_u64(value.into())
    }

    #[inline]
    fn serialize_u64(self, value: u64) -> Result<(), Error> {
        self.head(kind::UNSIGNED, value);
        Ok(())
    }

    fn serialize_u128(self, value: u128) -> Result<(), Error> {
        self.big(head::BIG, value);
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        self.payload(head::F32, value.to_bits().to_be_bytes());
        Ok(())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Error> {
        self.payload(head::F64, value.to_bits().to_be_bytes());
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.out.push(head::CHAR);
        self.text(value.encode_utf8(&mut [0; 4]));
        Ok(())
    }

    fn serialize_str(self, value: &str) -> Result<(), Error> {
        self.text(value);
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        self.head(kind::BYTES, value.len() as u64);
        self.out.extend_from_slice(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.out.push(head::NONE);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.out.push(head::SOME);
        self.inner(value)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.out.push(head::UNIT);
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<(), Error> {
        self.text(variant);
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.inner(value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.variant(variant)?;
        value.serialize(&mut *self)?;
        self.depth -= 1;
        Ok(())
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Container<'w, 'a>, Error> {
        let outer_depth = self.depth;
        self.container(kind::ARRAY, len, outer_depth)
    }

    fn serialize_tuple(self, len: usize) -> Result<Container<'w, 'a>, Error> {
        self.serialize_seq(Some(len))
    }

    fn serialize_tuple_struct(
        self,
        _: &'static str,
        len: usize,
    ) -> Result<Container<'w, 'a>, Error> {
        self.serialize_seq(Some(len))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Container<'w, 'a>, Error> {
        let outer_depth = self.depth;
        self.variant(variant)?;
        self.container(kind::ARRAY, Some(len), outer_depth)
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Container<'w, 'a>, Error> {
        let outer_depth = self.depth;
        self.container(kind::MAP, len, outer_depth)
    }

    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Container<'w, 'a>, Error> {
        self.serialize_map(Some(len))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Container<'w, 'a>, Error> {
        let outer_depth = self.depth;
        self.variant(variant)?;
        self.container(kind::MAP, Some(len), outer_depth)
    }
}

/// An array or map that is being written.
pub(super) struct Container<'w, 'a> {
    writer: &'w mut Writer<'a>,
    /// Elements or entries to come, if they were announced.
    left: Option<usize>,
    outer_depth: u16,
}

impl Container<'_, '_> {
    /// Counts an element or entry. Some `Serialize` announce another number than they write. The
    /// reader would then take the rest for something else.
    #[inline]
    fn count(&mut self) -> Result<(), Error> {
        match &mut self.left {
            None => {}
            Some(0) => {
                return Err(Error(
                    "its Serialize writes more elements than announced".into(),
                ));
            }
            Some(left) => *left -= 1,
        }
        Ok(())
    }

    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.count()?;
        value.serialize(&mut *self.writer)
    }

    #[inline]
    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Error> {
        self.count()?;
        self.writer.text(name);
        value.serialize(&mut *self.writer)
    }

    #[inline]
    fn close(self) -> Result<(), Error> {
        self.writer.depth = self.outer_depth;
        match self.left {
            Some(0) => {}
            None => self.writer.out.push(head::BREAK),
            Some(left) => {
                return Err(Error(format!(
                    "its Serialize writes {left} elements fewer than announced"
                )));
            }
        }
        Ok(())
    }
}

macro_rules! of_elements {
    ($($kind:ident $each:ident)*) => {$(
        impl $kind for Container<'_, '_> {
            type Ok = ();
            type Error = Error;

            #[inline]
            fn $each<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
                self.element(value)
            }

            #[inline]
            fn end(self) -> Result<(), Error> {
                self.close()
            }
        }
    )*};
}
of_elements!(
    SerializeSeq serialize_element
    SerializeTuple serialize_element
    SerializeTupleStruct serialize_field
    SerializeTupleVariant serialize_field
);

macro_rules! of_fields {
    ($($kind:ident)*) => {$(
        impl $kind for Container<'_, '_> {
            type Ok = ();
            type Error = Error;

            #[inline]
            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), Error> {
                self.field(name, value)
            }

            #[inline]
            fn end(self) -> Result<(), Error> {
                self.close()
            }
        }
    )*};
}
of_fields!(SerializeStruct SerializeStructVariant);

impl SerializeMap for Container<'_, '_> {
    type Ok = ();
    type Error = Error;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.element(key)
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(&mut *self.writer)
    }

    #[inline]
    fn end(self) -> Result<(), Error> {
        self.close()
    }
}
