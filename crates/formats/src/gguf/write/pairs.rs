//! Metadata to be written: keys with typed values.

/// A value. Types are those that llama.cpp asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// Keys with their values, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pairs(Vec<(String, Value)>);

impl Pairs {
    pub(super) fn put(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        self.0.push((key.into(), value.into()));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// All pairs as bytes.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for (key, value) in &self.0 {
            text(key, out);
            out.extend(value.type_id().to_le_bytes());
            value.encode(out);
        }
    }
}

const ARRAY: u32 = 9;

impl Value {
    /// The type's number in the file; of an array, that of its elements follows.
    fn type_id(&self) -> u32 {
        match self {
            Self::Ints(_) | Self::Floats(_) | Self::Texts(_) => ARRAY,
            scalar => scalar.element_id(),
        }
    }

    fn element_id(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::Ints(_) => 5,
            Self::F32(_) | Self::Floats(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) | Self::Texts(_) => 8,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let array = |len: usize, out: &mut Vec<u8>| {
            out.extend(self.element_id().to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Text(value) => text(value, out),
            Self::Ints(values) => {
                array(values.len(), out);
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::Floats(values) => {
                array(values.len(), out);
                out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::Texts(values) => {
                array(values.len(), out);
                values.iter().for_each(|value| text(value, out));
            }
        }
    }
}

/// A length in bytes, then the bytes.
pub(super) fn text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::F32(value as f32)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}
