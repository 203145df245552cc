//! The user's own texts: plain text, or rows of JSON or parquet with a text or a conversation each. Pipes can be read. Rows may be gzipped,
//! as datasets are published; plain text may not.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use crate::chat::{ChatTemplate, Message};
use crate::error::{DataError, text_of};
use crate::parquet_text;

/// How to read a file of rows.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Rows<'a> {
    /// The column or field with the text; by default `text`, else `messages` or `conversations`.
    pub field: Option<&'a str>,
    /// The directory of the model whose chat template renders conversations.
    pub model: Option<&'a Path>,
}

impl<'a> Rows<'a> {
    /// The same, of this column or field.
    pub fn with_field(self, field: &'a str) -> Self {
        Self { field: Some(field), ..self }
    }

    /// The same, with conversations as this model writes them.
    pub fn with_model(self, model: &'a Path) -> Self {
        Self { model: Some(model), ..self }
    }
}

/// Fields that are tried, in this order.
const FIELDS: [&str; 3] = ["text", "messages", "conversations"];
/// Separator between the texts of different rows.
const BETWEEN: &str = "\n\n";
/// Maximum size of a decompressed file: far more than any run reads.
const MOST_BYTES: u64 = 8 << 30;

/// A file's text, and the format of the file if it is not plain text. `-` is standard input.
pub(crate) fn load(path: &Path, rows: Rows<'_>) -> Result<(String, Option<String>), DataError> {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let bytes = read(path)?;
    let is_gzip = bytes.starts_with(&[0x1f, 0x8b]);
    let (bytes, name) = match is_gzip {
        true => (gunzip(path, &bytes)?, name.strip_suffix(".gz").unwrap_or(&name).to_owned()),
        false => (bytes, name),
    };
    if bytes.starts_with(b"PAR1") {
        let field = rows.field.unwrap_or(FIELDS[0]);
        let texts = parquet_text::read_rows(path, bytes, field)?;
        let about = format!("{} rows of parquet, column `{field}`", texts.len());
        return Ok((join(texts), Some(about)));
    }
    let text = text_of(path, bytes)?;
    let is_named_json = [".json", ".jsonl", ".ndjson"].iter().any(|end| name.ends_with(end));
    match json_rows(&text, path, is_named_json)? {
        Some(json) => {
            let (texts, field) = texts_of(path, &json, rows)?;
            let about = format!("{} rows of JSON, field `{field}`", json.len());
            Ok((join(texts), Some(about)))
        }
        None if is_gzip => {
            let reason = "a gzipped text, of which rows of JSON or parquet are read: decompress it first (`gunzip -k`)";
            Err(DataError::corrupt(path, reason))
        }
        None => Ok((text.strip_suffix('\n').map(str::to_owned).unwrap_or(text), None)),
    }
}

/// The field `text` of the first `most` rows of a file with a row of JSON per line, which may be gzipped.
pub(crate) fn first_texts(path: &Path, most: usize) -> Result<Vec<String>, DataError> {
    let bytes = read(path)?;
    let bytes = if bytes.starts_with(&[0x1f, 0x8b]) { gunzip(path, &bytes)? } else { bytes };
    let text = text_of(path, bytes)?;
    let of_line = |(i, line): (usize, &str)| match serde_json::from_str::<Value>(line) {
        Ok(row) => row[FIELDS[0]].as_str().map(str::to_owned).ok_or_else(|| {
            DataError::corrupt(path, format!("line {} has no field `{}` with a text", i + 1, FIELDS[0]))
        }),
        Err(e) => Err(DataError::corrupt(path, format!("line {} is not JSON: {e}", i + 1))),
    };
    text.lines().enumerate().take(most).map(of_line).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => io::stdin().lock().read_to_end(&mut bytes),
        false => File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map(|_| bytes).map_err(|e| DataError::io(path, "read", e))
}

fn gunzip(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, DataError> {
    let mut text = Vec::new();
    let read = MultiGzDecoder::new(bytes).take(MOST_BYTES + 1).read_to_end(&mut text);
    read.map_err(|e| DataError::corrupt(path, format!("not readable as gzip: {e}")))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(DataError::corrupt(path, format!("more than {MOST_BYTES} bytes when decompressed")));
    }
    Ok(text)
}

fn join(texts: Vec<String>) -> String {
    let texts: Vec<String> = texts.into_iter().filter(|text| !text.trim().is_empty()).collect();
    texts.join(BETWEEN)
}

/// The rows of a JSON file: of an array, or one per line. None if the file is plain text, neither named as JSON nor valid JSON.
fn json_rows(text: &str, path: &Path, is_named: bool) -> Result<Option<Vec<Value>>, DataError> {
    let text = text.trim();
    let may_be = is_named || text.starts_with("{\"") || text.starts_with("[{");
    if !may_be {
        return Ok(None);
    }
    let whole = serde_json::from_str::<Value>(text);
    let rows = match whole {
        Ok(Value::Array(rows)) => rows,
        Ok(row @ Value::Object(_)) => vec![row],
        _ => {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let rows = lines.map(|(i, line)| {
                serde_json::from_str::<Value>(line)
                    .map_err(|e| DataError::corrupt(path, format!("line {} is not JSON: {e}", i + 1)))
            });
            match rows.collect::<Result<Vec<_>, _>>() {
                Ok(rows) => rows,
                Err(error) if is_named => return Err(error),
                Err(_) => return Ok(None),
            }
        }
    };
    let are_rows = rows.iter().all(|row| row.is_object() || row.is_string()) && !rows.is_empty();
    match (are_rows, is_named) {
        (true, _) => Ok(Some(rows)),
        (false, true) => {
            let expected = "rows are needed: objects with a text each, or texts, in an array or one a line";
            Err(DataError::corrupt(path, expected))
        }
        (false, false) => Ok(None),
    }
}

/// The texts of rows, and the field that holds them.
fn texts_of(path: &Path, rows: &[Value], how: Rows<'_>) -> Result<(Vec<String>, String), DataError> {
    let first = rows.iter().find_map(Value::as_object);
    let field = match (how.field, first) {
        (Some(field), _) => field,
        (None, None) => FIELDS[0],
        (None, Some(first)) => FIELDS
            .into_iter()
            .find(|field| first.contains_key(*field))
            .ok_or_else(|| no_field(path, 0, FIELDS[0], first))?,
    };
    let mut template = None;
    let text = |(i, row): (usize, &Value)| -> Result<String, DataError> {
        let row = match row {
            Value::String(text) => return Ok(text.clone()),
            Value::Object(row) => row,
            _ => unreachable!("rows are objects or texts"),
        };
        match row.get(field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Null) => Ok(String::new()),
            Some(Value::Array(turns)) => {
                let messages = messages(turns).ok_or_else(|| {
                    let expected = "its turns are not objects with a `role` and a `content`";
                    DataError::corrupt(path, format!("row {}, field `{field}`: {expected}", i + 1))
                })?;
                if template.is_none() {
                    let model = how.model.ok_or_else(|| {
                        DataError::corrupt(
                            path,
                            format!("field `{field}` holds conversations, and no model is named to write them"),
                        )
                    })?;
                    template = Some(ChatTemplate::open(model)?);
                }
                template.as_ref().expect("it was opened above").render(&messages, false)
            }
            Some(_) => Err(DataError::corrupt(path, format!("row {}: field `{field}` is not a text", i + 1))),
            None => Err(no_field(path, i, field, row)),
        }
    };
    let texts = rows.iter().enumerate().map(text).collect::<Result<_, _>>()?;
    Ok((texts, field.to_owned()))
}

fn no_field(path: &Path, row: usize, field: &str, fields: &Map<String, Value>) -> DataError {
    let there: Vec<&str> = fields.keys().map(String::as_str).collect();
    let there = there.join(", ");
    let reason =
        format!("row {} has no field `{field}`, only {there}: name the one with the text by --text-field", row + 1);
    DataError::corrupt(path, reason)
}

/// The messages of a conversation, with `role` and `content` or with `from` and `value`.
fn messages(turns: &[Value]) -> Option<Vec<Message>> {
    let message = |turn: &Value| {
        let role = turn["role"].as_str().or_else(|| turn["from"].as_str())?;
        let role = match role {
            "human" => "user",
            "gpt" => "assistant",
            role => role,
        };
        let written = turn.get("content").or_else(|| turn.get("value"))?;
        let content = match written {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
            _ => return None,
        };
        Some(Message { role: role.to_owned(), content })
    };
    turns.iter().map(message).collect()
}
