//! Reads one column from a dataset's parquet file: a top-level column of strings.
//!
//! The `parquet` library decodes it, but only after the sizes and offsets in the file have been checked. Otherwise the library would skip
//! as many zero-byte values as the file claims, follow nested groups without end, and allocate whatever a header asks for. So the footer is
//! parsed here and passed to the library. Page headers are read by the library itself, after they have been checked here.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::page_index::RowGroupPageIndex;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::properties::ReaderProperties;
use parquet::file::serialized_reader::SerializedRowGroupReader;
use parquet::record::Field;
use parquet::record::reader::RowIter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{SchemaDescPtr, SchemaDescriptor};

use crate::error::DataError;
use crate::guard::guarded;
use crate::thrift::{Struct, Value};

/// Constants of the format (<https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>).
const BYTE_ARRAY: i64 = 6;
/// PLAIN, PLAIN_DICTIONARY and RLE_DICTIONARY.
const ENCODINGS: [i64; 3] = [0, 2, 8];
/// Snappy compresses 64 bytes to 3 at best.
const SNAPPY_RATIO: i64 = 22;
/// How much larger than the file its strings may become in memory: one dictionary entry can occur in millions of rows.
const TEXT_RATIO: usize = 256;

/// The strings of a column, in order, of the file with the content `bytes`; a null is an empty string. `path` is used in messages.
pub(crate) fn read_rows(path: &Path, bytes: Vec<u8>, name: &str) -> Result<Vec<String>, DataError> {
    // The library panics at inconsistent levels and dictionaries, among others.
    let rows = guarded(|| try_read_rows(Bytes::from(bytes), name)).unwrap_or_else(|panic| Err(Error(panic)));
    rows.map_err(|Error(reason)| DataError::corrupt(path, format!("not readable as parquet: {reason}")))
}

struct Error(String);

impl From<&str> for Error {
    fn from(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

impl From<ParquetError> for Error {
    fn from(error: ParquetError) -> Self {
        Self(error.to_string())
    }
}

fn try_read_rows(bytes: Bytes, name: &str) -> Result<Vec<String>, Error> {
    let file = Arc::new(bytes.clone());
    let footer = read_footer(&bytes).ok_or("it does not end in a footer")?;
    let (column, schema) = find_column(&footer, name)?;
    let mut rows = Vec::new();
    let mut held = 0;
    let mut left = bytes.len();
    for group in footer.structs(4).ok_or("the footer names no row groups")? {
        let group = row_group(group, column, &schema, &bytes, &mut left)?;
        let properties = Arc::new(ReaderProperties::builder().build());
        let reader = SerializedRowGroupReader::new(file.clone(), &group, RowGroupPageIndex::new(0, None), properties)?;
        for row in RowIter::from_row_group(None, &reader)? {
            let text = match row?.into_columns().pop() {
                Some((_, Field::Str(text))) => text,
                _ => String::new(),
            };
            held += size_of::<String>() + text.len();
            if held / TEXT_RATIO > bytes.len() {
                return Err(Error(format!("its text is more than {TEXT_RATIO} times as large as the file")));
            }
            rows.push(text);
        }
    }
    Ok(rows)
}

fn read_footer(bytes: &[u8]) -> Option<Struct<'_>> {
    let (rest, &[a, b, c, d, b'P', b'A', b'R', b'1']) = bytes.split_last_chunk()? else { return None };
    let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
    Struct::read(&mut &rest[rest.len().checked_sub(len)?..])
}

/// The index of column `name` among the leaf columns, and a schema of it alone.
fn find_column(footer: &Struct<'_>, name: &str) -> Result<(usize, SchemaDescPtr), Error> {
    let elements = footer.structs(2).ok_or("the footer has no schema")?;
    // The first element is the root. Groups have children, which follow them; leaves hold values.
    let mut elements = elements.get(1..).unwrap_or_default().iter();
    let (mut at, mut there) = (0, Vec::new());
    let found = loop {
        let Some(element) = elements.next() else { break None };
        let its_name = match element.get(4) {
            Some(Value::Binary(name)) => String::from_utf8_lossy(name).into_owned(),
            _ => return Err("a column has no name".into()),
        };
        let children = element.int(5).unwrap_or(0);
        if its_name == name && children == 0 {
            break Some(element);
        }
        there.push(its_name);
        let mut left = children;
        at += usize::from(children == 0);
        while left > 0 {
            let below = elements.next().ok_or("it has columns in columns that do not end")?;
            let children = below.int(5).unwrap_or(0).max(0);
            at += usize::from(children == 0);
            left = (left - 1).saturating_add(children);
        }
    };
    let Some(found) = found else {
        let there = there.join(", ");
        return Err(Error(format!("it has no column \"{name}\" of texts, only {there}: name one by --text-field")));
    };
    let repetition = match (found.int(1), found.int(3)) {
        (Some(BYTE_ARRAY), Some(0)) => "REQUIRED",
        (Some(BYTE_ARRAY), Some(1)) => "OPTIONAL",
        _ => return Err(Error(format!("its column \"{name}\" does not hold one string per row"))),
    };
    // The name does not matter for reading.
    let schema = parse_message_type(&format!("message schema {{ {repetition} BYTE_ARRAY text (UTF8); }}"))?;
    Ok((at, Arc::new(SchemaDescriptor::new(Arc::new(schema)))))
}

/// What the library needs to know about a row group with the one column. Its pages have been checked, and are subtracted from `left`, the
/// bytes that belong to no row group yet.
fn row_group(
    group: &Struct<'_>,
    column: usize,
    schema: &SchemaDescPtr,
    bytes: &[u8],
    left: &mut usize,
) -> Result<RowGroupMetaData, Error> {
    let chunks = group.structs(1).ok_or("a row group has no columns")?;
    let Some(Value::Struct(chunk)) = chunks.get(column).and_then(|chunk| chunk.get(3)) else {
        return Err("a row group lacks the column".into());
    };
    let compression = match chunk.int(4) {
        Some(0) => Compression::UNCOMPRESSED,
        Some(1) => Compression::SNAPPY,
        _ => return Err("its text is compressed, and not by Snappy: save it again with compression=\"snappy\"".into()),
    };
    let (Some(rows), Some(len), Some(data)) = (group.int(3), chunk.int(7), chunk.int(9)) else {
        return Err("a row group does not say where it is".into());
    };
    let dictionary = chunk.int(11);
    let start = usize::try_from(dictionary.unwrap_or(data)).ok();
    let pages = start.zip(usize::try_from(len).ok()).and_then(|(start, len)| bytes.get(start..)?.get(..len));
    let pages = pages.ok_or("a row group is not inside the file")?;
    *left = left.checked_sub(pages.len()).ok_or("row groups lie in each other")?;
    check_pages(pages).ok_or("a page does not fit its header")?;
    let chunk = ColumnChunkMetaData::builder(schema.column(0))
        .set_compression(compression)
        .set_total_compressed_size(len)
        .set_data_page_offset(data)
        .set_dictionary_page_offset(dictionary)
        .build()?;
    Ok(RowGroupMetaData::builder(schema.clone()).set_num_rows(rows).add_column_metadata(chunk).build()?)
}

/// Whether the library reads each page header the same way as [`Struct`] does, and each asks for no more than there is.
fn check_pages(mut rest: &[u8]) -> Option<()> {
    while !rest.is_empty() {
        let header = Struct::read(&mut rest)?;
        let known = has_known_types(&header, 4, 0)
            && header.0.iter().all(|(id, value)| match (id, value) {
                (5, Value::Struct(data)) => has_known_types(data, 4, 0),
                (6, Value::Struct(_)) => true,
                (7, Value::Struct(dictionary)) => has_known_types(dictionary, 2, 1),
                (8, Value::Struct(data)) => has_known_types(data, 6, 1),
                (id, _) => !(5..=8).contains(id),
            });
        let (uncompressed, compressed) = (header.int(2)?, header.int(3)?);
        rest.split_off(..usize::try_from(compressed).ok()?)?;
        let fits = |(id, value): &(i16, Value<'_>)| match (id, value) {
            (5, Value::Struct(data)) => data.int(2).is_some_and(|encoding| ENCODINGS.contains(&encoding)),
            // A string takes at least four bytes, for its length.
            (7, Value::Struct(dictionary)) => {
                dictionary.int(1).is_some_and(|len| (0..=uncompressed / 4).contains(&len))
            }
            (8, Value::Struct(data)) => data.int(4).is_some_and(|encoding| ENCODINGS.contains(&encoding)),
            _ => true,
        };
        if !known || uncompressed > compressed * SNAPPY_RATIO || !header.0.iter().all(fits) {
            return None;
        }
    }
    Some(())
}

/// Whether the fields that the library knows have the expected types: the first `numbers` by id, then `flags`.
fn has_known_types(header: &Struct<'_>, numbers: i16, flags: i16) -> bool {
    header.0.iter().all(|(id, value)| match value {
        Value::Int(number) => i32::try_from(*number).is_ok() && !(numbers + 1..=numbers + flags).contains(id),
        Value::Flag => *id > numbers,
        _ => *id > numbers + flags,
    })
}
