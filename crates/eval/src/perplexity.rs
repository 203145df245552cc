//! Perplexity as it is usually reported.
//!
//! The text is tokenized once and cut into windows that do not overlap; a last partial one is dropped. Each window is evaluated from its
//! own first token. The result is `exp` of the mean over windows of each window's mean next-token cross-entropy.

use oq_models::{Head, Model, ModelError};
use tch::{Device, Tensor};

use crate::error::EvalError;
use crate::forward::{Progress, STATES_BYTES, embed, nll, run_blocks};
use crate::statistics::{mean, standard_error};
use crate::windows::windows_of;

/// Makes the numbers of all processes out of those of this one, in the order of the text.
pub type Gather<'a, E> = dyn FnMut(&[f64]) -> Result<Vec<f64>, E> + 'a;

/// A measured perplexity.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Perplexity {
    /// Mean next-token cross-entropy of each window, in nats.
    pub window_nll: Vec<f64>,
    /// Tokens per window.
    pub seqlen: usize,
}

impl Perplexity {
    /// The same with the windows of other processes too: see [`Gather`].
    ///
    /// # Errors
    /// Those of `gather`.
    pub fn joined<E>(self, gather: &mut Gather<'_, E>) -> Result<Self, E> {
        Ok(Self { window_nll: gather(&self.window_nll)?, ..self })
    }

    /// `exp` of the mean over all windows.
    pub fn value(&self) -> f64 {
        self.after(self.window_nll.len())
    }

    /// The perplexity of the first `windows` windows.
    pub fn after(&self, windows: usize) -> f64 {
        mean(&self.window_nll[..windows]).exp()
    }

    /// Mean next-token cross-entropy, in nats.
    pub fn nll(&self) -> f64 {
        mean(&self.window_nll)
    }

    /// Standard error of [`Self::nll`]. Its unit is the window, since tokens of one window depend on each other. Windows of one document do
    /// so too, but less. None for a single window.
    pub fn nll_error(&self) -> Option<f64> {
        standard_error(&self.window_nll)
    }

    /// Standard error of [`Self::value`], to first order: the perplexity times [`Self::nll_error`].
    pub fn error(&self) -> Option<f64> {
        Some(self.value() * self.nll_error()?)
    }
}

/// Measures `model` on the first `max_windows` (or all) windows of `seqlen` tokens of `ids`.
pub fn perplexity(
    model: &Model,
    ids: &[u32],
    seqlen: usize,
    max_windows: Option<usize>,
    device: Device,
    progress: &mut dyn FnMut(Progress),
) -> Result<Perplexity, EvalError> {
    let _no_grad = tch::no_grad_guard();
    let windows = windows_of(ids, seqlen, max_windows)?;
    let dims = model.decoder().dims();
    let together = (STATES_BYTES / (seqlen * dims.hidden * 4)).max(1);
    let (mut done, total) = (0, windows.len().div_ceil(together) * dims.n_layers);
    let mut window_nll = Vec::with_capacity(windows.len());
    for chunk in windows.chunks(together) {
        let mut states = embed(model, chunk, device)?;
        run_blocks(model, &mut states, device, &mut || {
            done += 1;
            progress(Progress { done, total });
        })?;
        let head = model.head(device)?;
        for (ids, x) in chunk.iter().zip(&states) {
            let value = mean_nll(model, x, &head, &ids.to_device(device), device)?;
            if !value.is_finite() {
                return Err(EvalError::NotFinite { window: window_nll.len(), value });
            }
            window_nll.push(value);
        }
    }
    Ok(Perplexity { window_nll, seqlen })
}

/// Mean next-token cross-entropy: `x [1, t, hidden]`, `ids [1, t]`.
fn mean_nll(model: &Model, x: &Tensor, head: &Head, ids: &Tensor, device: Device) -> Result<f64, ModelError> {
    let x = model.decoder().finish(&model.outer(device), x)?.squeeze_dim(0); // [t, hidden]
    let ids = ids.squeeze_dim(0);
    let predicted = x.size()[0] - 1;
    Ok(nll(head, &x.narrow(0, 0, predicted), &ids.narrow(0, 1, predicted)) / predicted as f64)
}
