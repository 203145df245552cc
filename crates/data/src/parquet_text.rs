//! The one column of a dataset's parquet file that is read: `text`.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use crate::error::DataError;
use crate::guard::guarded;

/// The strings of column `text`, in order; a null is an empty string.
pub(crate) fn read_rows(path: &Path) -> Result<Vec<String>, DataError> {
    // The library panics at places before the file's start, among others.
    guarded(|| try_read_rows(path))
        .unwrap_or_else(|panic| Err(DataError::corrupt(path, format!("not readable as parquet: {panic}"))))
}

fn try_read_rows(path: &Path) -> Result<Vec<String>, DataError> {
    let bad = |e: parquet::errors::ParquetError| DataError::corrupt(path, format!("not readable as parquet: {e}"));
    let file = File::open(path).map_err(|e| DataError::io(path, "read", e))?;
    let reader = SerializedFileReader::new(file).map_err(bad)?;
    let schema = reader.metadata().file_metadata().schema();
    let text = schema
        .get_fields()
        .iter()
        .find(|field| field.name() == "text")
        .ok_or_else(|| DataError::corrupt(path, "the parquet file has no column \"text\""))?;
    let only_text = Type::group_type_builder(schema.name()).with_fields(vec![text.clone()]).build().map_err(bad)?;
    let mut rows = Vec::new();
    for row in reader.get_row_iter(Some(only_text)).map_err(bad)? {
        match row.map_err(bad)?.into_columns().pop() {
            Some((_, Field::Str(text))) => rows.push(text),
            Some((_, Field::Null)) => rows.push(String::new()),
            other => return Err(DataError::corrupt(path, format!("column \"text\" holds {other:?}, not a string"))),
        }
    }
    Ok(rows)
}
