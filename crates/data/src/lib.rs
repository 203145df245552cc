//! Text in, token ids out: tokenizers ([`Tokenizer`]), evaluation and calibration texts ([`load_text`]), segments and windows of ids
//! ([`segments`], [`segments_and_new`], [`windows`]), zero-shot tasks ([`Task`]), and the model hub ([`Hub`]), from which models and texts
//! can come.
//!
//! Features, both on by default: `hub` (fetching from the model hub) and `parquet` (rows of parquet). What is left out is refused, and the
//! error names the feature.
//!
//! No tensors and no libtorch: ids are `u32`, texts are `String`.
//!
//! ```no_run
//! use oq_data::{AddSpecial, Hub, Rows, Split, Tokenizer, load_text, segments};
//!
//! let hub = Hub::from_env();
//! let model = hub.fetch_model("HuggingFaceTB/SmolLM2-135M", None, &mut |_event| {})?;
//! let text = load_text("wikitext2", Split::Train, None, &hub, Rows::default())?;
//! let ids = Tokenizer::open(&model)?.encode(&text.text, AddSpecial::Yes)?;
//! let calibration = segments(&ids, 128, 2048, 2)?; // 128 x [2048]
//! # Ok::<(), oq_data::DataError>(())
//! ```

mod chat;
mod dataset;
mod error;
mod generation;
mod guard;
mod hub;
#[cfg_attr(not(feature = "parquet"), path = "parquet_left_out.rs")]
mod parquet_text;
mod sample;
mod split;
mod tasks;
mod text_file;
#[cfg(feature = "parquet")]
mod thrift;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use dataset::{DATASETS, Text, load_text};
pub use error::{DataError, ErrorKind};
pub use generation::Generation;
pub use hub::event::HubEvent;
pub use hub::settings::{DEFAULT_ENDPOINT, Hub};
pub use sample::{segments, segments_and_new, windows};
pub use split::Split;
pub use tasks::{Choice, Item, Task};
pub use text_file::Rows;
pub use tokenizer::stream::DecodeStream;
pub use tokenizer::{AddSpecial, Tokenizer};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
