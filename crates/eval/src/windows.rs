//! A text cut into windows.

use tch::Tensor;

use crate::error::EvalError;

/// The first `max_windows` (or all) windows of `seqlen` ids, `[1, seqlen]` each. They do not overlap, and a last partial one is dropped.
///
/// # Errors
/// When a window has nothing to predict, or the text is shorter than one.
pub(crate) fn windows_of(ids: &[u32], seqlen: usize, max_windows: Option<usize>) -> Result<Vec<Tensor>, EvalError> {
    if seqlen < 2 {
        return Err(EvalError::NothingToPredict { seqlen });
    }
    let windows: Vec<Tensor> = oq_data::windows(ids, seqlen)
        .take(max_windows.unwrap_or(usize::MAX))
        .map(|w| Tensor::from_slice(&w.iter().map(|&id| i64::from(id)).collect::<Vec<_>>()).unsqueeze(0))
        .collect();
    if windows.is_empty() {
        return Err(EvalError::TooShort { tokens: ids.len(), seqlen });
    }
    Ok(windows)
}
