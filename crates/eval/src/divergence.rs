//! How far a quantized model's predictions are from those of the model in full precision: Kullback-Leibler divergence and agreement of the
//! likeliest tokens.
//!
//! Both models read the same windows, one block of one model at a time. Compared are the predictions that a perplexity scores, those of a
//! window's second token to its last.

use oq_models::{Head, Model};
use tch::{Device, Kind, Tensor};

use crate::error::EvalError;
use crate::forward::{Progress, STATES_BYTES, embed, logit_rows, run_blocks};
use crate::perplexity::Perplexity;
use crate::statistics::{mean, quantile, standard_error};
use crate::windows::windows_of;

/// Predictions of two models, compared.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Divergence {
    /// Perplexity of the model in full precision on the same windows.
    pub full: Perplexity,
    /// That of the quantized model.
    pub quantized: Perplexity,
    /// Mean divergence `D(full || quantized)` of each window, in nats.
    pub window_divergence: Vec<f64>,
    /// Share of each window's positions where both find the same token the likeliest.
    pub window_agreement: Vec<f64>,
    /// Divergence of each position, in ascending order.
    sorted: Vec<f32>,
}

impl Divergence {
    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.sorted.len()
    }

    /// Mean divergence, in nats.
    pub fn mean(&self) -> f64 {
        mean(&self.window_divergence)
    }

    /// Standard error of [`Self::mean`], with windows as the unit as in [`Perplexity::nll_error`].
    pub fn mean_error(&self) -> Option<f64> {
        standard_error(&self.window_divergence)
    }

    /// The divergence that a share `q` of the positions stay below: 0.5 for the median, 1 for the largest.
    ///
    /// # Panics
    /// When `q` is not from 0 to 1.
    pub fn quantile(&self, q: f64) -> f64 {
        quantile(&self.sorted, q)
    }

    /// Share of the positions where both find the same token the likeliest.
    pub fn agreement(&self) -> f64 {
        mean(&self.window_agreement)
    }

    /// Standard error of [`Self::agreement`], with windows as the unit.
    pub fn agreement_error(&self) -> Option<f64> {
        standard_error(&self.window_agreement)
    }

    /// By how much the mean cross-entropy of the quantized model is larger, in nats: the logarithm of the ratio of perplexities.
    pub fn nll_increase(&self) -> f64 {
        mean(&self.increases())
    }

    /// Standard error of [`Self::nll_increase`]. It is far smaller than those of the two perplexities, because both models find the same
    /// windows hard.
    pub fn nll_increase_error(&self) -> Option<f64> {
        standard_error(&self.increases())
    }

    fn increases(&self) -> Vec<f64> {
        self.quantized.window_nll.iter().zip(&self.full.window_nll).map(|(quantized, full)| quantized - full).collect()
    }
}

/// Compares `quantized` with `full` on the first `max_windows` (or all) windows of `seqlen` tokens of `ids`.
///
/// # Errors
/// When the vocabularies differ in size, and as [`perplexity`](crate::perplexity()).
pub fn divergence(
    full: &Model,
    quantized: &Model,
    ids: &[u32],
    seqlen: usize,
    max_windows: Option<usize>,
    device: Device,
    progress: &mut dyn FnMut(Progress),
) -> Result<Divergence, EvalError> {
    let _no_grad = tch::no_grad_guard();
    let models = [full, quantized];
    let [vocab, other] = models.map(|model| model.decoder().dims().vocab);
    if vocab != other {
        return Err(EvalError::Vocabulary { full: vocab, quantized: other });
    }
    let windows = windows_of(ids, seqlen, max_windows)?;
    let token_bytes: usize = models.iter().map(|model| model.decoder().dims().hidden * 4).sum();
    let together = (STATES_BYTES / (seqlen * token_bytes)).max(1);
    let layers: usize = models.iter().map(|model| model.decoder().dims().n_layers).sum();
    let (mut done, total) = (0, windows.len().div_ceil(together) * layers);
    let mut nll = [Vec::new(), Vec::new()];
    let (mut window_divergence, mut window_agreement, mut sorted) = (Vec::new(), Vec::new(), Vec::new());
    let rows = logit_rows(vocab);
    for chunk in windows.chunks(together) {
        let mut finished = |model: &Model| -> Result<Vec<Tensor>, EvalError> {
            let mut states = embed(model, chunk, device)?;
            run_blocks(model, &mut states, device, &mut || {
                done += 1;
                progress(Progress { done, total });
            })?;
            let outer = model.outer(device);
            let finish = |x: &Tensor| Ok(model.decoder().finish(&outer, x)?.squeeze_dim(0)); // [t, hidden]
            states.iter().map(finish).collect()
        };
        let states = [finished(full)?, finished(quantized)?];
        let heads = [full.head(device)?, quantized.head(device)?];
        for (idx, ids) in chunk.iter().enumerate() {
            let targets = ids.to_device(device).squeeze_dim(0).narrow(0, 1, seqlen as i64 - 1);
            let window = Window::new(states.each_ref().map(|states| &states[idx]), &heads, &targets, rows);
            let n = window.divergences.len() as f64;
            for (nll, sum) in nll.iter_mut().zip(window.nll) {
                nll.push(finite(sum / n, window_divergence.len())?);
            }
            let sum: f64 = window.divergences.iter().copied().map(f64::from).sum();
            window_divergence.push(finite(sum / n, window_divergence.len())?);
            window_agreement.push(window.agreed as f64 / n);
            sorted.extend(window.divergences);
        }
    }
    sorted.sort_by(f32::total_cmp);
    let [full, quantized] = nll.map(|window_nll| Perplexity { window_nll, seqlen });
    Ok(Divergence { full, quantized, window_divergence, window_agreement, sorted })
}

fn finite(value: f64, window: usize) -> Result<f64, EvalError> {
    if value.is_finite() { Ok(value) } else { Err(EvalError::NotFinite { window, value }) }
}

/// One window's predictions.
struct Window {
    /// Sums of the negative log-likelihoods of its tokens.
    nll: [f64; 2],
    /// By position.
    divergences: Vec<f32>,
    /// Number of positions where the likeliest tokens agree.
    agreed: i64,
}

impl Window {
    /// From normed hidden states `[t, hidden]` of both models, `rows` positions at a time; `targets [t - 1]`.
    fn new(states: [&Tensor; 2], heads: &[Head; 2], targets: &Tensor, rows: i64) -> Self {
        let predicted = targets.size()[0];
        // Read at the end: reading waits for the device.
        let (mut nll, mut agreed, mut divergences) = ([const { Vec::new() }; 2], Vec::new(), Vec::new());
        for start in (0..predicted).step_by(rows as usize) {
            let n = rows.min(predicted - start);
            let targets = targets.narrow(0, start, n).unsqueeze(1);
            let [full, quantized] = [0, 1].map(|i| {
                let logits = heads[i].logits(&states[i].narrow(0, start, n));
                let log_p = logits.log_softmax(-1, Kind::Float); // [n, vocab]
                nll[i].push(log_p.gather(1, &targets, false).sum(Kind::Double));
                log_p
            });
            agreed.push(full.argmax(1, false).eq_tensor(&quantized.argmax(1, false)).sum(Kind::Int64));
            // The largest terms have few significant digits in common, so that f32 suffices for them, but not for their sum.
            let terms = full.exp() * (&full - &quantized);
            let sums = terms.sum_dim_intlist([1].as_slice(), false, Kind::Double);
            // Equal predictions may be a rounding error below 0.
            divergences.push(sums.clamp_min(0.0).to_kind(Kind::Float));
        }
        let sum = |parts: &[Tensor]| Tensor::stack(parts, 0).sum(None::<Kind>);
        Self {
            nll: nll.map(|parts| -sum(&parts).double_value(&[])),
            divergences: Vec::try_from(Tensor::cat(&divergences, 0)).expect("a vector of f32"),
            agreed: sum(&agreed).int64_value(&[]),
        }
    }
}
