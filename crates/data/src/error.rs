//! Errors on the way from a name to token ids, and their kinds.

use std::io;
use std::path::{Path, PathBuf};

use oq_formats::{FormatError, LFS_POINTER, is_lfs_pointer, without_mark};

use crate::split::Split;

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A directory has no tokenizer, or one of an unsupported class.
    #[error("{}: {}", dir.display(), no_tokenizer(there, class.as_deref()))]
    MissingTokenizer {
        /// The model's directory.
        dir: PathBuf,
        /// The tokenizer files that exist.
        there: String,
        /// The class, if known.
        class: Option<String>,
    },
    /// A `tokenizer.model` cannot be read.
    #[error(transparent)]
    TokenizerModel(Box<FormatError>),
    /// A directory has no chat template.
    #[error(
        "{}: no chat template here (chat_template.jinja, or in tokenizer_config.json or chat_template.json): a model that was not trained to chat can \
         continue a text, `omniquant generate`",
        dir.display()
    )]
    NoChatTemplate {
        /// The model's directory.
        dir: PathBuf,
    },
    /// A chat template cannot be run.
    #[error("{}: the chat template: {reason}", path.display())]
    ChatTemplate {
        /// The file that holds it.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Neither a file nor a known dataset.
    #[error("{name}: no such file, and not a dataset: known datasets are {known}; give a text file for anything else")]
    UnknownDataset {
        /// The requested name.
        name: String,
        /// The known names.
        known: String,
    },
    /// A folder instead of a text.
    #[error("{}: a folder, not a text: give a file in it (text, .json, .jsonl, .json.gz, .parquet)", path.display())]
    TextIsFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A dataset is neither in the data directory nor available from the hub.
    #[error("{name}:{split} is not here ({looked}), and cannot be fetched from the hub ({hub}); {mend}")]
    MissingSplit {
        /// The dataset.
        name: &'static str,
        /// The requested split.
        split: Split,
        /// Where it was searched on disk.
        looked: String,
        /// Why the hub did not help.
        hub: Box<DataError>,
        /// What would help.
        mend: String,
    },
    /// A dataset is not in the data directory, and the hub does not have it.
    #[error("{name} is not here ({looked}): {mend}")]
    MissingText {
        /// The dataset and its split.
        name: String,
        /// Where it was searched on disk.
        looked: String,
        /// What would help.
        mend: String,
    },
    /// A zero-shot task is not in the data directory.
    #[error("{name} is not here: {file} is expected in the folder tasks of {}", looked_in(data_dir.as_deref()))]
    MissingTask {
        /// The task.
        name: &'static str,
        /// Its file.
        file: &'static str,
        /// The folder of datasets, if set.
        data_dir: Option<PathBuf>,
    },
    /// The text is shorter than one segment.
    #[error("the text has {tokens} tokens, one segment needs {seqlen}: give a longer text or a smaller --seqlen")]
    TextTooShort {
        /// Tokens in the text.
        tokens: usize,
        /// Tokens per segment.
        seqlen: usize,
    },
    /// Segments of zero tokens were requested.
    #[error("a segment of 0 tokens has nothing to learn from: --seqlen must be at least 1")]
    EmptySegment,
    /// The tokenizer rejected a text or ids.
    #[error("{}: cannot {action}: {reason}", path.display())]
    Tokenize {
        /// The tokenizer's file.
        path: PathBuf,
        /// `encode the text` or `decode the ids`.
        action: &'static str,
        /// The tokenizer's own error message.
        reason: String,
    },
    /// A file exists but its content is wrong.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong, and the fix if there is one.
        reason: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The verb: `read`, `write`, ...
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The disk filled up during a download.
    #[error(
        "disk full at {}: {needed} more bytes are needed; free them and run again (the download continues where it \
         stopped), or move the cache with HF_HOME",
        path.display()
    )]
    DiskFull {
        /// The partial download.
        path: PathBuf,
        /// Bytes of this file still missing.
        needed: u64,
    },
    /// What would read or fetch it was left out.
    #[error("{what}: this program was built without the feature {feature} of oq-data, which reads or fetches it")]
    NotBuilt {
        /// A file, or a place on the hub.
        what: String,
        /// The feature.
        feature: &'static str,
    },
    /// An invalid hub id (`name` or `owner/name`) or revision.
    #[error("{what} {value:?} is not valid: write {expected}")]
    BadHubName {
        /// `hub id` or `revision`.
        what: &'static str,
        /// The given value.
        value: String,
        /// The expected form.
        expected: &'static str,
    },
    /// No home directory for the cache.
    #[error("no place for downloads: HOME is not set; set HF_HOME to a folder")]
    NoCache,
    /// The hub does not respond.
    #[error(
        "cannot reach {endpoint} for {repo}: {reason}; download it on a machine that can and give the directory, or \
         put it into the cache {} and set HF_HUB_OFFLINE=1, or set HF_ENDPOINT to a mirror", cache.display()
    )]
    Unreachable {
        /// The repository.
        repo: String,
        /// The hub's URL.
        endpoint: String,
        /// The network's reason.
        reason: String,
        /// The folder of downloads.
        cache: PathBuf,
    },
    /// The hub requires authentication (401) or denies access (403).
    #[error("{endpoint} refuses {repo} (HTTP {status}): {mend}")]
    Refused {
        /// The repository.
        repo: String,
        /// The hub's URL.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// What would help, given whether a token was sent.
        mend: String,
    },
    /// The hub has no such repository, revision or file (404).
    #[error("{endpoint} has no {what} (HTTP 404): check its spelling")]
    NotOnHub {
        /// The hub's URL.
        endpoint: String,
        /// What was requested.
        what: String,
    },
    /// The hub responded with an error.
    #[error("{url}: HTTP {status} {after}; try again later, or set HF_ENDPOINT to a mirror")]
    HubStatus {
        /// The URL.
        url: String,
        /// The status.
        status: u16,
        /// How often it was tried.
        after: String,
    },
    /// The hub's response makes no sense.
    #[error("{url}: {reason}; is HF_ENDPOINT a model hub?")]
    HubAnswer {
        /// The URL.
        url: String,
        /// What is missing or wrong in the response.
        reason: String,
    },
    /// A repository lacks a file that a model needs.
    #[error("{repo} has no {file}: not a model that can be read here")]
    IncompleteRepo {
        /// The repository.
        repo: String,
        /// The file, or the alternatives.
        file: String,
    },
    /// Offline, and not in the cache.
    #[error("HF_HUB_OFFLINE is set and {} lacks {what}: unset it, or fill the cache", cache.display())]
    NotCached {
        /// The folder of the cache.
        cache: PathBuf,
        /// Repository, revision or file.
        what: String,
    },
}

/// The kind of a failure; a program's exit code depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// An input is missing or access to it is denied.
    MissingInput,
    /// The hub did not respond, or not properly.
    Unreachable,
    /// An input exists but is broken.
    Corrupt,
    /// The request cannot be fulfilled with this input.
    Usage,
    /// File system or disk.
    Machine,
}

impl DataError {
    /// The kind of this failure.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::MissingTokenizer { .. }
            | Self::NoChatTemplate { .. }
            | Self::UnknownDataset { .. }
            | Self::MissingSplit { .. }
            | Self::MissingText { .. }
            | Self::MissingTask { .. }
            | Self::Refused { .. }
            | Self::NotOnHub { .. }
            | Self::IncompleteRepo { .. }
            | Self::NotCached { .. } => ErrorKind::MissingInput,
            Self::Unreachable { .. } | Self::HubStatus { .. } | Self::HubAnswer { .. } => ErrorKind::Unreachable,
            Self::Corrupt { .. } | Self::Tokenize { .. } | Self::ChatTemplate { .. } | Self::TokenizerModel(_) => {
                ErrorKind::Corrupt
            }
            Self::NotBuilt { .. }
            | Self::TextTooShort { .. }
            | Self::EmptySegment
            | Self::TextIsFolder { .. }
            | Self::BadHubName { .. } => ErrorKind::Usage,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::MissingInput,
            Self::Io { .. } | Self::DiskFull { .. } | Self::NoCache => ErrorKind::Machine,
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), action, source }
    }

    pub(crate) fn corrupt(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Corrupt { path: path.to_path_buf(), reason: reason.to_string() }
    }
}

/// Where datasets are expected.
fn looked_in(data_dir: Option<&Path>) -> String {
    let none = "the folder of datasets, which is not set: name it with --data-dir";
    data_dir
        .map_or_else(|| none.to_owned(), |dir| format!("{}: put it there, or name another --data-dir", dir.display()))
}

/// Why there is no tokenizer, and what to do.
fn no_tokenizer(there: &str, class: Option<&str>) -> String {
    let mend = "save it as tokenizer.json by transformers (`AutoTokenizer.from_pretrained(..).save_pretrained(..)`)";
    match (there, class) {
        ("", _) => {
            "no tokenizer here: looked for tokenizer.json, or vocab.json with merges.txt, or tokenizer.model".to_owned()
        }
        (there, None) => format!(
            "no tokenizer here: looked for tokenizer.json, or vocab.json with merges.txt, or tokenizer.model, and found {there} alone"
        ),
        (there, Some(class)) => {
            format!("no tokenizer.json here, and {class} is not read from {there}: {mend}")
        }
    }
}

/// A file's text, without a byte-order mark. Invalid UTF-8 is `Corrupt`, everything else `Io`.
pub(crate) fn read_text(path: &Path) -> Result<String, DataError> {
    text_of(path, std::fs::read(path).map_err(|e| DataError::io(path, "read", e))?)
}

/// Decodes a file's bytes as text.
pub(crate) fn text_of(path: &Path, bytes: Vec<u8>) -> Result<String, DataError> {
    if is_lfs_pointer(&bytes) {
        return Err(DataError::corrupt(path, LFS_POINTER));
    }
    let mark = bytes.len() - without_mark(&bytes).len();
    let mut text = String::from_utf8(bytes).map_err(|e| {
        let (at, bytes) = (e.utf8_error().valid_up_to(), e.as_bytes());
        let is_utf16 = bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]);
        let mend = if is_utf16 { ": it is UTF-16, save it as UTF-8" } else { "" };
        DataError::corrupt(path, format!("not UTF-8 at byte {at}{mend}"))
    })?;
    text.drain(..mark);
    Ok(text)
}

/// A file's JSON.
pub(crate) fn read_json(path: &Path) -> Result<serde_json::Value, DataError> {
    serde_json::from_str(&read_text(path)?).map_err(|e| DataError::corrupt(path, format!("not valid JSON: {e}")))
}

/// A file's JSON; `null` if there is no file.
pub(crate) fn read_optional_json(path: &Path) -> Result<serde_json::Value, DataError> {
    if path.is_file() { read_json(path) } else { Ok(serde_json::Value::Null) }
}
