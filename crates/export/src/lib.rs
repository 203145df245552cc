//! Writes packed models in the formats that other programs load.
//!
//! [`FORMATS`] is the table of formats. [`check`] says whether one holds a model, and else which scheme would do; [`programs`] says which
//! programs open it, and how they compute. [`export`] writes a directory, one linear in memory at a time.
//!
//! Weights stay what they are: each format but `dense` and `dense-bf16`, which round, stands for `scale * (code - zero_point)` exactly.
//!
//! ```
//! use oq_export::{check, find};
//! use oq_quant_core::QuantSpec;
//!
//! let spec: QuantSpec = "w3a16g64".parse()?;
//! let gptq = find("gptq").expect("a format of this name");
//! assert!(check(gptq, &spec.into()).is_ok());
//!
//! let awq = find("awq").expect("a format of this name");
//! let refusal = check(awq, &spec.into()).expect_err("AWQ has 4 bits only");
//! assert_eq!(refusal.instead.as_deref(), Some("w4a16g64"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod codes;
mod error;
mod format;
mod layout;
mod limits;
mod own;
mod programs;
mod refusal;
mod subject;
mod table;
mod write;

pub use error::ExportError;
pub use format::Format;
pub use programs::{Evidence, Limit, Program, limits_of_programs, programs};
pub use refusal::{Refusal, check};
pub use subject::{Subject, Tensor};
pub use table::{FORMATS, find};
pub use write::{Exported, Options, Progress, check_directory, export};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
