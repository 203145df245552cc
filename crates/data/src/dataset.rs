//! Texts by name: a file, or one of the datasets that perplexities are reported on, from a data directory or the hub.

use std::path::{Path, PathBuf};

use crate::error::{DataError, read_text};
use crate::hub::settings::Hub;
use crate::parquet_text;
use crate::split::Split;
use crate::text_file::{self, Rows};

/// Names that [`load_text`] accepts besides files, each also as `name:train`, `name:valid`, `name:test`.
pub const DATASETS: &[&str] = &[WIKITEXT2, C4, PTB];

const C4: &str = "c4";
const PTB: &str = "ptb";
const WIKITEXT2: &str = "wikitext2";
/// Folders of a data directory that may hold WikiText-2; the second is that of the published archive.
const WIKITEXT2_FOLDERS: [&str; 3] = ["wikitext2", "wikitext-2-raw", "."];
const WIKITEXT2_REPO: &str = "Salesforce/wikitext";
const C4_REPO: &str = "allenai/c4";
/// Documents that are read of the first file of a split, as in GPTQ's evaluation.
const C4_DOCUMENTS: usize = 1100;
const PTB_REPO: &str = "ptb-text-only/ptb_text_only";

/// A text and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Text {
    /// `wikitext2:test`, or the file name as given.
    pub name: String,
    /// The file that was read.
    pub path: PathBuf,
    /// The text, to be tokenized as a whole.
    pub text: String,
    /// The format of the file, if it is not plain text: ``300 rows of JSON, field `text` ``.
    pub about: Option<String>,
}

/// The text named `name_or_file`:
///
/// - an existing file, or `-` for standard input. It is plain text, read without its final newline, or rows of JSON (an array, or one row
///   per line) or parquet, which may be gzipped. `rows` says what to read of each row. Their texts are joined by an empty line;
/// - `wikitext2`: the rows of `split` joined by two newlines, where a row is a line of the raw file with its newline and a blank line is an
///   empty row. `wikitext2:train`, `:valid`, `:test` select a split regardless of `split`. It is searched under `data_dir` as
///   `wikitext2/wiki.{train,valid,test}.raw` (also `wikitext-2-raw/`, or directly), then in the hub's cache, then on the hub.
/// - `c4`: the first 1100 documents of the first file of a split, joined by a space, as in GPTQ's evaluation. `c4:valid` and `c4:test` are the
///   validation split. It is searched under `data_dir` as `c4/c4-{train.00000-of-01024,validation.00000-of-00008}.json.gz` (or not gzipped),
///   then as WikiText-2;
/// - `ptb`: the sentences of a split of the Penn Treebank, trimmed and joined by two newlines, from `ptb/ptb.{train,valid,test}.txt` under
///   `data_dir`. The hub has no file of it that can be read here.
///
/// A missing split is never replaced by another.
pub fn load_text(
    name_or_file: &str,
    split: Split,
    data_dir: Option<&Path>,
    hub: &Hub,
    rows: Rows<'_>,
) -> Result<Text, DataError> {
    let path = Path::new(name_or_file);
    if path.is_dir() {
        return Err(DataError::TextIsFolder { path: path.to_path_buf() });
    }
    // Of any kind: a pipe holds a text as well.
    if path.exists() || name_or_file == "-" {
        let (text, about) = text_file::load(path, rows)?;
        return Ok(Text { name: name_or_file.to_owned(), path: path.to_path_buf(), text, about });
    }
    let unknown = || DataError::UnknownDataset { name: name_or_file.to_owned(), known: known_names() };
    let (name, split) = match name_or_file.split_once(':') {
        None => (name_or_file, split),
        Some((name, suffix)) => (name, suffix.parse().map_err(|()| unknown())?),
    };
    match name {
        WIKITEXT2 => load_wikitext2(split, data_dir, hub),
        C4 => load_c4(split, data_dir, hub),
        PTB => load_ptb(split, data_dir),
        _ => Err(unknown()),
    }
}

fn known_names() -> String {
    DATASETS
        .iter()
        .map(|name| format!("{name}, {name}:train, {name}:valid, {name}:test"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn load_wikitext2(split: Split, data_dir: Option<&Path>, hub: &Hub) -> Result<Text, DataError> {
    let name = format!("{WIKITEXT2}:{split}");
    if let Some(path) = data_dir.and_then(|dir| wikitext2_file(dir, split)) {
        let raw = read_text(&path)?;
        return Ok(Text { name, path, text: join_rows(raw.split_inclusive('\n')), about: None });
    }
    let file = format!("wikitext-2-raw-v1/{}-00000-of-00001.parquet", split.parquet_name());
    let path = hub
        .fetch_dataset_file(WIKITEXT2_REPO, &file, &mut |event| tracing::debug!(?event, "fetching {WIKITEXT2_REPO}"))
        .map_err(|hub| missing_wikitext2(split, data_dir, hub))?;
    let bytes = std::fs::read(&path).map_err(|e| DataError::io(&path, "read", e))?;
    let rows = parquet_text::read_rows(&path, bytes, "text")?;
    Ok(Text { name, path, text: join_rows(rows.iter().map(String::as_str)), about: None })
}

fn wikitext2_file(data_dir: &Path, split: Split) -> Option<PathBuf> {
    let files = WIKITEXT2_FOLDERS.iter().map(|folder| data_dir.join(folder).join(format!("wiki.{split}.raw")));
    files.into_iter().find(|path| path.is_file())
}

fn missing_wikitext2(split: Split, data_dir: Option<&Path>, hub: DataError) -> DataError {
    let looked = looked_for(data_dir, &format!("{}/wiki.{split}.raw", WIKITEXT2_FOLDERS[0]));
    let present = Split::ALL.into_iter().filter(|&other| data_dir.and_then(|dir| wikitext2_file(dir, other)).is_some());
    // Never suggest learning from the test split.
    let usable: Vec<String> =
        present.filter(|&other| other != Split::Test).map(|other| format!("{WIKITEXT2}:{other}")).collect();
    let mend = match usable.is_empty() {
        true => "put the file there, or give a text file instead of the name".to_owned(),
        false => format!("{} is here: name it to use it, or give a text file", usable.join(", ")),
    };
    DataError::MissingSplit { name: WIKITEXT2, split, looked, hub: Box::new(hub), mend }
}

fn load_c4(split: Split, data_dir: Option<&Path>, hub: &Hub) -> Result<Text, DataError> {
    // There is no test split.
    let (split, file) = match split {
        Split::Train => (split, "c4-train.00000-of-01024.json.gz"),
        _ => (Split::Validation, "c4-validation.00000-of-00008.json.gz"),
    };
    let is_here =
        data_dir.into_iter().flat_map(|dir| [file, file.trim_end_matches(".gz")].map(|file| dir.join(C4).join(file)));
    let path = match is_here.into_iter().find(|path| path.is_file()) {
        Some(path) => path,
        None => hub
            .fetch_dataset_file(C4_REPO, &format!("en/{file}"), &mut |event| {
                tracing::debug!(?event, "fetching {C4_REPO}")
            })
            .map_err(|hub| DataError::MissingSplit {
                name: C4,
                split,
                looked: looked_for(data_dir, &format!("{C4}/{file}")),
                hub: Box::new(hub),
                mend: format!("put `en/{file}` of {C4_REPO} there, or give a text file instead of the name"),
            })?,
    };
    let texts = text_file::first_texts(&path, C4_DOCUMENTS)?;
    let about = format!("{} documents", texts.len());
    Ok(Text { name: format!("{C4}:{split}"), path, text: texts.join(" "), about: Some(about) })
}

fn load_ptb(split: Split, data_dir: Option<&Path>) -> Result<Text, DataError> {
    let file = format!("{PTB}/{PTB}.{split}.txt");
    let path = data_dir.map(|dir| dir.join(&file)).filter(|path| path.is_file());
    let path = path.ok_or_else(|| DataError::MissingText {
        name: format!("{PTB}:{split}"),
        looked: looked_for(data_dir, &file),
        mend: format!(
            "put the file there, a sentence a line as in {PTB_REPO} on the hub, or give a text file instead of the name"
        ),
    })?;
    let text = read_text(&path)?;
    let sentences: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Ok(Text { name: format!("{PTB}:{split}"), path, text: sentences.join("\n\n"), about: None })
}

/// Where a file was searched on disk.
fn looked_for(data_dir: Option<&Path>, file: &str) -> String {
    match data_dir {
        None => "no data directory: set --data-dir or OMNIQUANT_DATA".to_owned(),
        Some(dir) => format!("no {}", dir.join(file).display()),
    }
}

/// Joins rows the way perplexity is usually computed: with two newlines, blank rows empty.
fn join_rows<'a>(rows: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for (i, row) in rows.enumerate() {
        if i > 0 {
            text.push_str("\n\n");
        }
        if !row.trim().is_empty() {
            text.push_str(row);
        }
    }
    text
}
