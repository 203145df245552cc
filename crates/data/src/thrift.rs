//! The compact protocol of Thrift, in which a parquet file describes its layout
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>).
//!
//! The input is not trusted: no value takes zero bytes, so parsing ends with the input. `None` means that the input ends within a value, or
//! has something that no parquet file contains: lists of flags, maps, UUIDs, decreasing field ids.

/// Maximum nesting of structs and lists; footers nest up to 8 deep.
const DEPTH: usize = 16;

/// One value.
pub(crate) enum Value<'a> {
    /// A boolean field.
    Flag,
    /// A number of 16, 32 or 64 bits.
    Int(i64),
    /// Bytes, or a string.
    Binary(&'a [u8]),
    /// A list or set.
    List(Vec<Value<'a>>),
    /// A struct.
    Struct(Struct<'a>),
    /// A byte or a floating-point number, which is never used.
    Other,
}

/// Fields by id, ascending.
pub(crate) struct Struct<'a>(pub(crate) Vec<(i16, Value<'a>)>);

impl<'a> Struct<'a> {
    /// Parses the struct at the beginning of `bytes` and advances `bytes` behind it.
    pub(crate) fn read(bytes: &mut &'a [u8]) -> Option<Self> {
        read_struct(bytes, DEPTH)
    }

    /// Field `id`.
    pub(crate) fn get(&self, id: i16) -> Option<&Value<'a>> {
        self.0.iter().find(|(other, _)| *other == id).map(|(_, value)| value)
    }

    /// Field `id`, if it is a number.
    pub(crate) fn int(&self, id: i16) -> Option<i64> {
        if let Some(Value::Int(number)) = self.get(id) { Some(*number) } else { None }
    }

    /// The structs in field `id`, if it is a list of nothing else.
    pub(crate) fn structs(&self, id: i16) -> Option<Vec<&Self>> {
        let Some(Value::List(items)) = self.get(id) else { return None };
        items.iter().map(|item| if let Value::Struct(item) = item { Some(item) } else { None }).collect()
    }
}

fn read_struct<'a>(bytes: &mut &'a [u8], depth: usize) -> Option<Struct<'a>> {
    let mut fields = Vec::new();
    let mut id = 0i16;
    loop {
        let head = read_byte(bytes)?;
        match (head >> 4, head & 15) {
            (_, 0) => return Some(Struct(fields)),
            // The full id, if it decreases or skips far ahead.
            (0, _) => return None,
            (step, kind) => {
                id = id.checked_add(i16::from(step))?;
                // The value of a flag is in its header.
                let value = if let 1 | 2 = kind { Value::Flag } else { read_value(bytes, kind, depth)? };
                fields.push((id, value));
            }
        }
    }
}

fn read_value<'a>(bytes: &mut &'a [u8], kind: u8, depth: usize) -> Option<Value<'a>> {
    Some(match kind {
        3 => read_byte(bytes).map(|_| Value::Other)?,
        4..=6 => {
            let number = read_number(bytes)?;
            Value::Int((number >> 1) as i64 ^ -((number & 1) as i64))
        }
        7 => take(bytes, 8).map(|_| Value::Other)?,
        8 => {
            let len = read_number(bytes)?;
            Value::Binary(take(bytes, len)?)
        }
        9 | 10 => {
            let head = read_byte(bytes)?;
            let len = if head >> 4 == 15 { read_number(bytes)? } else { u64::from(head >> 4) };
            let depth = depth.checked_sub(1)?;
            Value::List((0..len).map(|_| read_value(bytes, head & 15, depth)).collect::<Option<_>>()?)
        }
        12 => Value::Struct(read_struct(bytes, depth.checked_sub(1)?)?),
        _ => return None,
    })
}

/// Seven bits per byte, the lowest first.
fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = read_byte(bytes)?;
        number |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Some(number);
        }
    }
    None
}

fn read_byte(bytes: &mut &[u8]) -> Option<u8> {
    take(bytes, 1).map(|byte| byte[0])
}

fn take<'a>(bytes: &mut &'a [u8], len: u64) -> Option<&'a [u8]> {
    bytes.split_off(..usize::try_from(len).ok()?)
}
