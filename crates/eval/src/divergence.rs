//! How far a quantized model's predictions are from those of the model in full precision: Kullback-Leibler divergence and agreement of the
//! likeliest tokens.
//!
//! Both models read the same windows, one block of one model at a time. Compared are the predictions that a perplexity scores, those of a
//! window's second token to its last.

use oq_models::{Head, Model};
use tch::{Device, Kind, Tensor};

use crate::error::EvalError;
use crate::forward::{Progress, STATES_BYTES, embed, logit_rows, run_blocks};
use crate::perplexity::{Gather, Perplexity};
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
    /// The same with the windows of other processes too: see [`Gather`].
    ///
    /// # Errors
    /// Those of `gather`.
    pub fn joined<E>(self, gather: &mut Gather<'_, E>) -> Result<Self, E> {
        let of_positions: Vec<f64> = self.sorted.iter().copied().map(f64::from).collect();
        let mut sorted: Vec<f32> = gather(&of_positions)?.into_iter().map(|divergence| divergence as f32).collect();
        sorted.sort_by(f32::total_cmp);
        Ok(Self {
            full: self.full.joined(gather)?,
            quantized: self.quantized.joined(gather)?,
            window_divergence: gather(&self.window_divergence)?,
            window_agreement: gather(&self.window_agreement)?,
            sorted,
        })
    }

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

/// Compares `quantized` with `full` on the first `max_windows` (or all) windows of `seqlen` tokens of `ids`. To compare several models with
/// the same one, use a [`Reference`](crate::Reference).
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
    let windows = windows_of(ids, seqlen, max_windows)?;
    let together = together(&[full, quantized], seqlen);
    let layers: usize = [full, quantized].iter().map(|model| model.decoder().dims().n_layers).sum();
    let (mut done, total) = (0, windows.len().div_ceil(together) * layers);
    let mut after_block = || {
        done += 1;
        progress(Progress { done, total });
    };
    let mut comparison = Comparison::new(full, quantized, device)?;
    for chunk in windows.chunks(together) {
        let of_full = normed(full, chunk, device, &mut after_block)?;
        comparison.add(chunk, &of_full, &mut after_block)?;
    }
    Ok(comparison.finish(seqlen))
}

/// Number of windows that go through the blocks of these models together.
pub(crate) fn together(models: &[&Model], seqlen: usize) -> usize {
    let token_bytes: usize = models.iter().map(|model| model.decoder().dims().hidden * 4).sum();
    (STATES_BYTES / (seqlen * token_bytes)).max(1)
}

/// Normed hidden states `[t, hidden]` of each window, as the head reads them.
pub(crate) fn normed(
    model: &Model,
    windows: &[Tensor],
    device: Device,
    after_block: &mut dyn FnMut(),
) -> Result<Vec<Tensor>, EvalError> {
    let mut states = embed(model, windows, device)?;
    run_blocks(model, &mut states, device, after_block)?;
    let outer = model.outer(device);
    states.iter().map(|x| Ok(model.decoder().finish(&outer, x)?.squeeze_dim(0))).collect()
}

/// A comparison of two models, window by window.
pub(crate) struct Comparison<'a> {
    quantized: &'a Model,
    heads: [Head; 2],
    device: Device,
    /// Positions whose logits are held at once.
    rows: i64,
    nll: [Vec<f64>; 2],
    window_divergence: Vec<f64>,
    window_agreement: Vec<f64>,
    divergences: Vec<f32>,
}

impl<'a> Comparison<'a> {
    /// Nothing yet.
    ///
    /// # Errors
    /// When the vocabularies differ in size.
    pub(crate) fn new(full: &Model, quantized: &'a Model, device: Device) -> Result<Self, EvalError> {
        let [vocab, other] = [full, quantized].map(|model| model.decoder().dims().vocab);
        if vocab != other {
            return Err(EvalError::Vocabulary { full: vocab, quantized: other });
        }
        Ok(Self {
            quantized,
            heads: [full.head(device)?, quantized.head(device)?],
            device,
            rows: logit_rows(vocab),
            nll: [Vec::new(), Vec::new()],
            window_divergence: Vec::new(),
            window_agreement: Vec::new(),
            divergences: Vec::new(),
        })
    }

    /// Compares the next windows: `windows [1, t]` each, and what [`normed`] says of the model in full precision.
    pub(crate) fn add(
        &mut self,
        windows: &[Tensor],
        of_full: &[Tensor],
        after_block: &mut dyn FnMut(),
    ) -> Result<(), EvalError> {
        let of_quantized = normed(self.quantized, windows, self.device, after_block)?;
        for (ids, states) in windows.iter().zip(of_full.iter().zip(&of_quantized)) {
            let predicted = ids.size()[1] - 1;
            let targets = ids.to_device(self.device).squeeze_dim(0).narrow(0, 1, predicted);
            let window = Window::new([states.0, states.1], &self.heads, &targets, self.rows);
            let (n, idx) = (window.divergences.len() as f64, self.window_divergence.len());
            for (nll, sum) in self.nll.iter_mut().zip(window.nll) {
                nll.push(finite(sum / n, idx)?);
            }
            let sum: f64 = window.divergences.iter().copied().map(f64::from).sum();
            self.window_divergence.push(finite(sum / n, idx)?);
            self.window_agreement.push(window.agreed as f64 / n);
            self.divergences.extend(window.divergences);
        }
        Ok(())
    }

    /// The result, on windows of `seqlen` tokens.
    pub(crate) fn finish(self, seqlen: usize) -> Divergence {
        let Self { nll, window_divergence, window_agreement, divergences: mut sorted, .. } = self;
        sorted.sort_by(f32::total_cmp);
        let [full, quantized] = nll.map(|window_nll| Perplexity { window_nll, seqlen });
        Divergence { full, quantized, window_divergence, window_agreement, sorted }
    }
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
