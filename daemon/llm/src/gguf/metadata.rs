//! Typed metadata values, decoded on demand from the mapped file, so that a vocabulary of 100,000 strings costs nothing.

use std::ops::Range;

/// The type of a metadata value as GGUF numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    pub(super) fn from_id(id: u32) -> Option<ValueType> {
        use ValueType as T;
        const TYPES: [ValueType; 13] =
            [T::U8, T::I8, T::U16, T::I16, T::U32, T::I32, T::F32, T::Bool, T::Text, T::Array, T::U64, T::I64, T::F64];
        TYPES.get(id as usize).copied()
    }

    /// Bytes of one value; `None` for strings and arrays, whose length is stored with them.
    pub(super) fn size(self) -> Option<u64> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::Text | ValueType::Array => None,
        }
    }
}

/// A metadata value; integers are widened.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// An unsigned integer.
    Unsigned(u64),
    /// A signed integer.
    Signed(i64),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Text(&'a str),
    /// An array of values of one type.
    Array(Array<'a>),
}

/// An array of metadata values of one type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Array<'a> {
    item: ValueType,
    len: u64,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Type of the elements.
    pub fn item_type(&self) -> ValueType {
        self.item
    }

    /// The elements. Strings that are not UTF-8 come as empty ones.
    pub fn values(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let (item, mut rest) = (self.item, self.bytes);
        (0..self.len).map_while(move |_| {
            let size = match item {
                ValueType::Text => 8 + read_u64(rest)?,
                other => other.size()?,
            };
            let (value, after) = rest.split_at_checked(usize::try_from(size).ok()?)?;
            rest = after;
            decode(item, value)
        })
    }

    /// The elements that are integers and not negative.
    pub fn unsigned(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.values().filter_map(|value| match value {
            Value::Unsigned(n) => Some(n),
            Value::Signed(n) => u64::try_from(n).ok(),
            _ => None,
        })
    }

    /// The elements that are strings.
    pub fn texts(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.values().filter_map(|value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        })
    }
}

/// The place of a value in the file. The parser has checked that the value lies inside the file.
#[derive(Debug, Clone)]
pub(super) struct MetadataEntry {
    pub(super) key: String,
    pub(super) value_type: ValueType,
    /// Element type and count, for arrays.
    pub(super) array: Option<(ValueType, u64)>,
    /// The value without the type; for arrays the elements only.
    pub(super) range: Range<usize>,
}

impl MetadataEntry {
    pub(super) fn decode<'a>(&self, file: &'a [u8]) -> Option<Value<'a>> {
        let bytes = file.get(self.range.clone())?;
        match self.array {
            Some((item, len)) => Some(Value::Array(Array { item, len, bytes })),
            None => decode(self.value_type, bytes),
        }
    }
}

fn decode(value_type: ValueType, bytes: &[u8]) -> Option<Value<'_>> {
    Some(match value_type {
        ValueType::U8 => Value::Unsigned(u64::from(*bytes.first()?)),
        ValueType::I8 => Value::Signed(i64::from(i8::from_le_bytes(array(bytes)?))),
        ValueType::U16 => Value::Unsigned(u64::from(u16::from_le_bytes(array(bytes)?))),
        ValueType::I16 => Value::Signed(i64::from(i16::from_le_bytes(array(bytes)?))),
        ValueType::U32 => Value::Unsigned(u64::from(u32::from_le_bytes(array(bytes)?))),
        ValueType::I32 => Value::Signed(i64::from(i32::from_le_bytes(array(bytes)?))),
        ValueType::U64 => Value::Unsigned(read_u64(bytes)?),
        ValueType::I64 => Value::Signed(i64::from_le_bytes(array(bytes)?)),
        ValueType::F32 => Value::Float(f64::from(f32::from_le_bytes(array(bytes)?))),
        ValueType::F64 => Value::Float(f64::from_le_bytes(array(bytes)?)),
        ValueType::Bool => Value::Bool(*bytes.first()? != 0),
        ValueType::Text => Value::Text(std::str::from_utf8(bytes.get(8..)?).unwrap_or_default()),
        ValueType::Array => return None,
    })
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk::<N>().copied()
}

fn read_u64(bytes: &[u8]) -> Option<u64> {
    array(bytes).map(u64::from_le_bytes)
}
