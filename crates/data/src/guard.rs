//! Guards calls to libraries that trust their files more than we do: their panics become ordinary errors.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// The result of `work`, or the message that it panicked with. What it leaves half done must not matter.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_else(|| "no reason given".to_owned())
    })
}

/// Runs the tokenizers library and turns its panics into errors. It panics, for example, at merges shorter than their prefix and at pieces
/// of zero length. What is left half done is a tokenizer that is dropped, or the cache of one that is only read.
pub(crate) fn tokenizing<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    guarded(work).unwrap_or_else(|panic| Err(format!("its settings contradict each other ({panic})").into()))
}
