//! Models and dataset files from a hub, stored in the cache that other programs share.
//!
//! The cache has the layout of `huggingface_hub`: `blobs/<etag>` hold the bytes, `snapshots/<commit>/<file>` link to them, and
//! `refs/<revision>` name commits. A snapshot's directory is a model directory.
//!
//! The HTTP client is our own, over `ureq`. A download must give up on a dead network, continue after an interruption, distinguish a gated
//! repository from a missing one, and be checked against its SHA-256.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
pub(crate) mod event;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(not(feature = "hub"))]
mod left_out;
#[cfg(feature = "hub")]
mod repo;
pub(crate) mod settings;
