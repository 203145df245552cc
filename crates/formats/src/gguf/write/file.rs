//! A GGUF file from metadata, descriptions of tensors, and their data as a stream.

use std::io::{self, Write};
use std::path::Path;

use super::pairs::{self, Pairs};
use crate::atomic::write_sized;
use crate::gguf::{GgufError, TensorKind};

/// Alignment of tensors, the format's default.
const ALIGNMENT: u64 = 32;
const VERSION: u32 = 3;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Info {
    pub(super) name: String,
    /// Outermost dimension first; rows are whole blocks of `kind`.
    pub(super) shape: Vec<usize>,
    pub(super) kind: TensorKind,
}

impl Info {
    /// Size of its data.
    pub(super) fn bytes(&self) -> u64 {
        let values: usize = self.shape.iter().product();
        (values / self.kind.block_values() * self.kind.block_bytes()) as u64
    }
}

/// Why a tensor's data was not written.
pub(super) enum Fault {
    /// The file does not take it.
    Io(io::Error),
    /// The data is not there, or not as it must be.
    Refused(GgufError),
}

impl From<GgufError> for Fault {
    fn from(error: GgufError) -> Self {
        Self::Refused(error)
    }
}

/// Writes a file atomically and returns its size. `fill` gets the index of each tensor in turn, and writes its data to the stream.
pub(super) fn write(
    path: &Path,
    pairs: &Pairs,
    infos: &[Info],
    mut fill: impl FnMut(usize, &mut dyn Write) -> Result<(), Fault>,
) -> Result<u64, GgufError> {
    let header = header(pairs, infos);
    let size = infos.iter().fold(header.len() as u64, |sum, info| sum + info.bytes().next_multiple_of(ALIGNMENT));
    // The stream's errors are io::Error; others are passed beside them.
    let mut refused = None;
    let written = write_sized(path, Some(size), |out| {
        out.write_all(&header)?;
        for (idx, info) in infos.iter().enumerate() {
            let mut counted = Counted { out, bytes: 0 };
            match fill(idx, &mut counted) {
                Ok(()) => {}
                Err(Fault::Io(error)) => return Err(error),
                Err(Fault::Refused(error)) => {
                    refused = Some(error);
                    return Err(io::Error::other("a tensor was refused"));
                }
            }
            assert_eq!(counted.bytes, info.bytes(), "`{}`: bytes written and announced", info.name);
            pad(out, info.bytes())?;
        }
        Ok(())
    });
    match refused {
        Some(error) => Err(error),
        None => written.map(|()| size).map_err(GgufError::from),
    }
}

/// A stream that counts.
struct Counted<'a, W> {
    out: &'a mut W,
    bytes: u64,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Everything before the data, padded to the alignment.
fn header(pairs: &Pairs, infos: &[Info]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((infos.len() as u64).to_le_bytes());
    out.extend((pairs.len() as u64).to_le_bytes());
    pairs.encode(&mut out);
    let mut offset = 0u64;
    for info in infos {
        pairs::text(&info.name, &mut out);
        out.extend((info.shape.len() as u32).to_le_bytes());
        out.extend(info.shape.iter().rev().flat_map(|&dim| (dim as u64).to_le_bytes()));
        out.extend(info.kind.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += info.bytes().next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

/// Zeros after `bytes` bytes.
fn pad(out: &mut impl Write, bytes: u64) -> io::Result<()> {
    let missing = bytes.next_multiple_of(ALIGNMENT) - bytes;
    out.write_all(&[0; ALIGNMENT as usize][..missing as usize])
}
