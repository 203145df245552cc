//! The header of a safetensors file: validated on reading, written in a fixed order.
//!
//! A file consists of an eight-byte header length, a JSON object with the type, shape and offsets of each tensor, and the data. The offsets
//! must tile the data: no gap, no overlap, nothing left over (<https://github.com/huggingface/safetensors#format>).

use std::fmt;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{FormatError, HeaderFault};

/// Size of the header's length field.
const PREFIX: usize = 8;
/// Longest header that is accepted, as in the reference implementation. Real ones are smaller than a megabyte.
const MAX_HEADER: u64 = 100_000_000;

/// A tensor's name, type, shape and position in its file.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// First byte and one past the last, from the start of the file.
    pub(crate) place: (usize, usize),
}

/// Reads and validates the header of the file with the content `file`. Entries come in the order of their data.
pub(crate) fn parse(path: &Path, file: &[u8]) -> Result<Vec<Entry>, FormatError> {
    let bad = |fault| FormatError::Header { path: path.to_owned(), fault };
    let truncated = |needed| FormatError::Truncated { path: path.to_owned(), needed, found: file.len() as u64 };

    let prefix = file.first_chunk::<PREFIX>().ok_or_else(|| truncated(PREFIX as u64))?;
    let len = u64::from_le_bytes(*prefix);
    if len > MAX_HEADER {
        return Err(bad(HeaderFault::TooLong { len, limit: MAX_HEADER }));
    }
    let data_at = PREFIX + len as usize;
    let header = file.get(PREFIX..data_at).ok_or_else(|| truncated(data_at as u64))?;
    let UniqueMap(fields) =
        serde_json::from_slice::<UniqueMap<&RawValue>>(header).map_err(|error| bad(json_fault(&error)))?;

    let mut infos = Vec::with_capacity(fields.len());
    for (name, field) in fields {
        if name == "__metadata__" {
            continue;
        }
        match serde_json::from_str::<TensorInfo>(field.get()) {
            Ok(info) => infos.push((name, info)),
            Err(error) => return Err(bad(HeaderFault::Entry { tensor: name, why: error.to_string() })),
        }
    }
    infos.sort_by_key(|(_, info)| info.data_offsets);

    let mut expected = 0;
    for (name, info) in &infos {
        expected = check_entry(name, info, expected).map_err(bad)?;
    }
    // Ends are added to `data_at` only after they were checked against the file, because a header can contain any number.
    let found = file.len() - data_at;
    if found < expected {
        return Err(truncated((data_at as u64).saturating_add(expected as u64)));
    }
    if found > expected {
        return Err(bad(HeaderFault::Trailing { extra: (found - expected) as u64 }));
    }
    let entry = |(name, info): (String, TensorInfo)| {
        let (start, end) = info.data_offsets;
        Entry { name, dtype: info.dtype, shape: info.shape, place: (data_at + start, data_at + end) }
    };
    Ok(infos.into_iter().map(entry).collect())
}

/// Checks that a tensor starts where the previous one ends and is as long as its shape requires. Returns its end.
fn check_entry(name: &str, info: &TensorInfo, expected: usize) -> Result<usize, HeaderFault> {
    let (start, end) = info.data_offsets;
    let tensor = || name.to_owned();
    if start != expected || end < start {
        return Err(HeaderFault::Offsets { tensor: tensor(), start, end, expected });
    }
    let bits = bit_len(info.dtype, &info.shape)
        .ok_or_else(|| HeaderFault::Overflow { tensor: tensor(), shape: info.shape.clone() })?;
    if !bits.is_multiple_of(8) {
        return Err(HeaderFault::PartialByte { tensor: tensor(), shape: info.shape.clone(), dtype: info.dtype });
    }
    let needed = bits / 8;
    let got = end - start;
    if got != needed {
        let shape = info.shape.clone();
        return Err(HeaderFault::Size { tensor: tensor(), shape, dtype: info.dtype, needed, got });
    }
    Ok(end)
}

/// Size of a tensor in bytes, rounded up, unless it overflows.
pub(crate) fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    Some(bit_len(dtype, shape)?.div_ceil(8))
}

fn bit_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
    elements.checked_mul(dtype.bitsize())
}

/// Header bytes, length included, of tensors that follow each other in the given order.
pub(crate) fn encode(
    tensors: impl Iterator<Item = (String, Dtype, Vec<usize>, usize)>,
) -> Result<Vec<u8>, HeaderFault> {
    let mut at = 0;
    let entries: Vec<_> = tensors
        .map(|(name, dtype, shape, len)| {
            let data_offsets = (at, at + len);
            at += len;
            (name, TensorInfo { dtype, shape, data_offsets })
        })
        .collect();
    // PyTorch-based loaders look for this entry.
    let format = [("format".to_owned(), "pt".to_owned())].into();
    let json = Metadata::new(Some(format), entries)
        .and_then(|metadata| Ok(serde_json::to_vec(&metadata)?))
        .map_err(|error| HeaderFault::Json { why: error.to_string() })?;
    // Padded with spaces to a multiple of eight, so that the data is aligned.
    let len = json.len().next_multiple_of(PREFIX);
    let mut bytes = (len as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    bytes.resize(PREFIX + len, b' ');
    Ok(bytes)
}

fn json_fault(error: &serde_json::Error) -> HeaderFault {
    HeaderFault::Json { why: error.to_string() }
}

/// A JSON object, in order, without duplicate keys.
#[derive(Debug)]
pub(crate) struct UniqueMap<V>(pub(crate) Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(std::marker::PhantomData))
    }
}

struct UniqueVisitor<V>(std::marker::PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some((name, value)) = map.next_entry::<String, V>()? {
            if !seen.insert(name.clone()) {
                return Err(serde::de::Error::custom(format_args!("`{name}` occurs twice")));
            }
            fields.push((name, value));
        }
        Ok(UniqueMap(fields))
    }
}
