//! The key-value metadata of a GGUF file.

use std::collections::BTreeMap;
use std::fmt;

use super::GgufError;
use super::cursor::Cursor;

/// Maximum nesting of arrays. The specification sets no limit, and no model nests arrays at all.
const MAX_NESTING: usize = 4;

/// A value. Integers of all widths are one type per sign, floats of both widths one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// u8, u16, u32 and u64.
    Unsigned(u64),
    /// i8, i16, i32 and i64.
    Signed(i64),
    /// f32 and f64.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    String(String),
    /// An array.
    Array(Array),
}

/// An array of values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// u8, u16, u32 and u64.
    Unsigned(Vec<u64>),
    /// i8, i16, i32 and i64.
    Signed(Vec<i64>),
    /// f32 and f64.
    Float(Vec<f64>),
    /// Booleans.
    Bool(Vec<bool>),
    /// Strings.
    String(Vec<String>),
    /// Arrays.
    Array(Vec<Array>),
}

/// A scalar in the file.
#[derive(Clone, Copy)]
enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

/// Value types, with their numbers in the file.
enum ValueType {
    Scalar(Scalar),
    String,
    Array,
}

impl ValueType {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, GgufError> {
        let at = cursor.at();
        Ok(match cursor.u32("type of a metadata value")? {
            0 => Self::Scalar(Scalar::U8),
            1 => Self::Scalar(Scalar::I8),
            2 => Self::Scalar(Scalar::U16),
            3 => Self::Scalar(Scalar::I16),
            4 => Self::Scalar(Scalar::U32),
            5 => Self::Scalar(Scalar::I32),
            6 => Self::Scalar(Scalar::F32),
            7 => Self::Scalar(Scalar::Bool),
            8 => Self::String,
            9 => Self::Array,
            10 => Self::Scalar(Scalar::U64),
            11 => Self::Scalar(Scalar::I64),
            12 => Self::Scalar(Scalar::F64),
            id => return Err(GgufError::ValueType { at, id }),
        })
    }
}

impl Scalar {
    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn read(self, cursor: &mut Cursor<'_>) -> Result<Value, GgufError> {
        const WHAT: &str = "metadata value";
        Ok(match self {
            Self::U8 => Value::Unsigned(u8::from_le_bytes(cursor.array(WHAT)?).into()),
            Self::U16 => Value::Unsigned(u16::from_le_bytes(cursor.array(WHAT)?).into()),
            Self::U32 => Value::Unsigned(cursor.u32(WHAT)?.into()),
            Self::U64 => Value::Unsigned(cursor.u64(WHAT)?),
            Self::I8 => Value::Signed(i8::from_le_bytes(cursor.array(WHAT)?).into()),
            Self::I16 => Value::Signed(i16::from_le_bytes(cursor.array(WHAT)?).into()),
            Self::I32 => Value::Signed(i32::from_le_bytes(cursor.array(WHAT)?).into()),
            Self::I64 => Value::Signed(i64::from_le_bytes(cursor.array(WHAT)?)),
            Self::F32 => Value::Float(f32::from_le_bytes(cursor.array(WHAT)?).into()),
            Self::F64 => Value::Float(f64::from_le_bytes(cursor.array(WHAT)?)),
            Self::Bool => {
                let at = cursor.at();
                match cursor.array(WHAT)? {
                    [0] => Value::Bool(false),
                    [1] => Value::Bool(true),
                    [value] => return Err(GgufError::Flag { at, value }),
                }
            }
        })
    }

    fn read_array(self, cursor: &mut Cursor<'_>) -> Result<Array, GgufError> {
        let n = cursor.count("metadata array", self.bytes())?;
        Ok(match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => {
                Array::Unsigned(self.collect(cursor, n, |value| value.as_unsigned())?)
            }
            Self::I8 | Self::I16 | Self::I32 | Self::I64 => {
                Array::Signed(self.collect(cursor, n, |value| value.as_signed())?)
            }
            Self::F32 | Self::F64 => Array::Float(self.collect(cursor, n, |value| value.as_float())?),
            Self::Bool => Array::Bool(self.collect(cursor, n, |value| value.as_bool())?),
        })
    }

    fn collect<T>(self, cursor: &mut Cursor<'_>, n: usize, get: fn(&Value) -> Option<T>) -> Result<Vec<T>, GgufError> {
        (0..n).map(|_| Ok(get(&self.read(cursor)?).expect("a scalar reads as the variant of its own type"))).collect()
    }
}

fn read_value(cursor: &mut Cursor<'_>) -> Result<Value, GgufError> {
    match ValueType::read(cursor)? {
        ValueType::Scalar(scalar) => scalar.read(cursor),
        ValueType::String => Ok(Value::String(cursor.text("metadata text")?.to_owned())),
        ValueType::Array => read_array(cursor, 1).map(Value::Array),
    }
}

fn read_array(cursor: &mut Cursor<'_>, depth: usize) -> Result<Array, GgufError> {
    const WHAT: &str = "metadata array";
    if depth > MAX_NESTING {
        return Err(GgufError::Nesting { at: cursor.at(), limit: MAX_NESTING });
    }
    match ValueType::read(cursor)? {
        ValueType::Scalar(scalar) => scalar.read_array(cursor),
        ValueType::String => {
            let n = cursor.count(WHAT, 8)?; // 8: the length of an empty text
            (0..n).map(|_| cursor.text("metadata text").map(str::to_owned)).collect::<Result<_, _>>().map(Array::String)
        }
        ValueType::Array => {
            let n = cursor.count(WHAT, 12)?; // 12: type and count of an empty array
            (0..n).map(|_| read_array(cursor, depth + 1)).collect::<Result<_, _>>().map(Array::Array)
        }
    }
}

impl Value {
    /// The value, if it is an integer that is not negative.
    pub fn as_unsigned(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value, if it is an integer.
    pub fn as_signed(&self) -> Option<i64> {
        match *self {
            Self::Signed(value) => Some(value),
            Self::Unsigned(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value, if it is a float.
    pub fn as_float(&self) -> Option<f64> {
        if let Self::Float(value) = *self { Some(value) } else { None }
    }

    /// The value, if it is a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = *self { Some(value) } else { None }
    }

    /// The value, if it is a string.
    pub fn as_text(&self) -> Option<&str> {
        if let Self::String(value) = self { Some(value) } else { None }
    }
}

/// Short enough for an error message: arrays print only their type.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned(value) => value.fmt(f),
            Self::Signed(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
            Self::String(value) => write!(f, "\"{}\"", value.escape_debug()),
            Self::Array(Array::Unsigned(_) | Array::Signed(_)) => f.write_str("an array of integers"),
            Self::Array(Array::Float(_)) => f.write_str("an array of floats"),
            Self::Array(Array::Bool(_)) => f.write_str("an array of booleans"),
            Self::Array(Array::String(_)) => f.write_str("an array of texts"),
            Self::Array(Array::Array(_)) => f.write_str("an array of arrays"),
        }
    }
}

/// All keys of a file with their values, in alphabetical order. The getters return `None` for a missing key and [`GgufError::WrongValue`]
/// for one of another type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    /// Reads `n` pairs.
    pub(super) fn read(cursor: &mut Cursor<'_>, n: usize) -> Result<Self, GgufError> {
        let mut map = BTreeMap::new();
        for _ in 0..n {
            let key = cursor.text("metadata key")?.to_owned();
            let value = read_value(cursor)?;
            if map.insert(key.clone(), value).is_some() {
                return Err(GgufError::DuplicateKey { key });
            }
        }
        Ok(Self(map))
    }

    /// All pairs.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`, of any type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// An integer that is not negative.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an unsigned integer", Value::as_unsigned)
    }

    /// A float.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a float", Value::as_float)
    }

    /// A boolean.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a text", Value::as_text)
    }

    /// An array of strings.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.typed(key, "an array of texts", |value| match value {
            Value::Array(Array::String(texts)) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// An array of floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f64]>, GgufError> {
        self.typed(key, "an array of floats", |value| match value {
            Value::Array(Array::Float(floats)) => Some(floats.as_slice()),
            _ => None,
        })
    }

    /// An array of signed integers; token types are stored this way.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, GgufError> {
        self.typed(key, "an array of signed integers", |value| match value {
            Value::Array(Array::Signed(integers)) => Some(integers.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        get: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        self.get(key).map(|value| get(value).ok_or_else(|| GgufError::wrong(key, value, expected))).transpose()
    }
}

/// A required key.
pub(super) fn required<T>(key: &str, value: Option<T>) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
}
