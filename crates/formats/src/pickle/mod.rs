//! Reads `pytorch_model.bin`, as written by `torch.save`: since PyTorch 1.6 a zip archive of a pickled state dict and its storages.
//!
//! Entries are stored, not compressed, so tensors are mapped like those of safetensors. The pickle is read by [`machine`], which supports
//! tensors, dictionaries and plain values. No code in a file is ever executed.

mod fault;
mod machine;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

pub use fault::PickleFault;
use machine::PickledTensor;

use crate::FormatError;
use crate::header::{Entry, byte_len};

/// Longest pickle that is accepted; that of a model with a hundred blocks is smaller than a megabyte.
const MAX_PICKLE: usize = 16 << 20;
/// The first bytes of a zip archive.
const ZIP: &[u8] = b"PK";

/// Reads and validates the archive with the content `file`.
pub(crate) fn parse(path: &Path, file: &[u8]) -> Result<Vec<Entry>, FormatError> {
    entries(file).map_err(|fault| FormatError::Pickle { path: path.to_owned(), fault })
}

fn entries(file: &[u8]) -> Result<Vec<Entry>, PickleFault> {
    if !file.starts_with(ZIP) {
        return Err(PickleFault::NotZip);
    }
    let places = stored_entries(file)?;
    // All are in one folder, which has the file's name at the time of writing.
    let mut pickles = places.keys().filter_map(|name| name.strip_suffix("data.pkl"));
    let folder = match (pickles.next(), pickles.next()) {
        (Some(folder), None) => folder,
        (first, _) => return Err(PickleFault::Pickles { found: if first.is_some() { "several" } else { "none" } }),
    };
    let bytes = |name: &str| Some(&file[places.get(&format!("{folder}{name}"))?.clone()]);
    if bytes("byteorder").is_some_and(|order| order != b"little") {
        return Err(PickleFault::BigEndian);
    }
    let pickle = bytes("data.pkl").expect("the folder was found by it");
    if pickle.len() > MAX_PICKLE {
        return Err(PickleFault::TooLong { len: pickle.len(), limit: MAX_PICKLE });
    }
    machine::state_dict(pickle)?
        .into_iter()
        .map(|(name, tensor)| {
            let storage = places.get(&format!("{folder}data/{}", tensor.key));
            let place = place_of(&name, &tensor, storage)?;
            Ok(Entry { name, dtype: tensor.dtype, shape: tensor.shape, place })
        })
        .collect()
}

/// Positions of the archive's entries, by name.
fn stored_entries(file: &[u8]) -> Result<BTreeMap<String, Range<usize>>, PickleFault> {
    let broken = |why: String| PickleFault::Archive { why };
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(|error| broken(error.to_string()))?;
    let mut places = BTreeMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| broken(error.to_string()))?;
        let name = entry.name().map_err(|error| broken(error.to_string()))?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(PickleFault::Compressed { entry: name });
        }
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let end = start.and_then(|start| start.checked_add(usize::try_from(entry.size()).ok()?));
        match (start, end) {
            (Some(start), Some(end)) if end <= file.len() => {
                if places.insert(name.clone(), start..end).is_some() {
                    return Err(broken(format!("two entries are named {name}")));
                }
            }
            _ => return Err(broken(format!("{name} reaches beyond the end of the file"))),
        }
    }
    Ok(places)
}

/// Range of a tensor's elements, which must be contiguous and within its storage.
fn place_of(
    name: &str,
    tensor: &PickledTensor<'_>,
    storage: Option<&Range<usize>>,
) -> Result<(usize, usize), PickleFault> {
    let named = || name.to_owned();
    let storage = storage.ok_or_else(|| PickleFault::NoStorage { tensor: named(), key: tensor.key.to_owned() })?;
    let mut stride = 1usize;
    for (&n, &got) in tensor.shape.iter().zip(&tensor.strides).rev() {
        if n > 1 && got != stride {
            let (shape, strides) = (tensor.shape.clone(), tensor.strides.clone());
            return Err(PickleFault::NotContiguous { tensor: named(), shape, strides });
        }
        stride = stride.saturating_mul(n);
    }
    let from = byte_len(tensor.dtype, &[tensor.offset]);
    let end = byte_len(tensor.dtype, &tensor.shape).and_then(|len| from?.checked_add(len));
    match (from, end) {
        (Some(from), Some(end)) if end <= storage.len() => Ok((storage.start + from, storage.start + end)),
        _ => Err(PickleFault::Bounds {
            tensor: named(),
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
            offset: tensor.offset,
            storage: storage.len(),
        }),
    }
}
