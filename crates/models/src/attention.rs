//! Attention over whole sequences. It uses libtorch, or the kernels of `oq-attention` where these are faster: in bf16 on the CPU.

use oq_attention::{Kept, Shape};
use tch::{Device, Kind, Tensor};

use crate::mask::causal;

/// Scale, softcap and mask of attention scores, applied in this order before the softmax.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scores<'a> {
    /// Added to the scores, `[n_heads or 1, t, end]`, in place of the causal mask.
    pub mask: Option<&'a Tensor>,
    /// Factor of the scores; `None` means `d^-0.5`.
    pub scale: Option<f64>,
    /// Bound of the scores, which become `softcap * tanh(score / softcap)` before the mask is added.
    pub softcap: Option<f64>,
    /// Scores beside those of the keys, one for each query head, `[n_heads]`. Each takes its share of the softmax and adds nothing.
    pub sinks: Option<&'a Tensor>,
}

impl<'a> Scores<'a> {
    /// The default scale, no softcap, and this mask.
    pub fn masked(mask: Option<&'a Tensor>) -> Self {
        Self { mask, ..Self::default() }
    }

    /// Whether there is nothing but the causal mask and the default scale.
    fn are_plain(&self) -> bool {
        self.mask.is_none() && self.scale.is_none() && self.softcap.is_none() && self.sinks.is_none()
    }
}

/// Grouped-query attention: query head `i` reads key/value head `i / (n_heads / n_kv_heads)`. Without a mask it is causal: the `t` queries
/// are the last of `end` positions, and each one attends to itself and all earlier positions.
///
/// `q [b, n_heads, t, d]`, `k`, `v` `[b, n_kv_heads, end, d]` -> `[b, t, n_heads * d]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Tensor {
    if let Some(sinks) = scores.sinks {
        return with_sinks(q, k, v, scores, sinks);
    }
    let (t, end) = (q.size()[2], k.size()[2]);
    // libtorch's causal mask assumes as many queries as keys, which is not so when positions follow others.
    let causal_mask = (scores.mask.is_none() && (2..end).contains(&t))
        .then(|| causal((end - t) as usize..end as usize, q.device()).unsqueeze(0));
    let scores = &Scores { mask: scores.mask.or(causal_mask.as_ref()), ..*scores };
    let needs_grad = [q, k, v].into_iter().any(Tensor::requires_grad);
    if let Some(mixed) = (!needs_grad).then(|| Mixed::new(q, k, v, scores)).flatten() {
        return mixed.out;
    }
    let (b, n_heads, t, d) = q.size4().expect("queries are [b, n_heads, t, d]");
    let kv_heads = k.size()[1];
    let heads_per_kv = n_heads / kv_heads;
    let Scores { mask, scale, softcap, .. } = *scores;
    if let Some(cap) = softcap {
        return softcapped(q, &repeat_heads(k, heads_per_kv), &repeat_heads(v, heads_per_kv), scores, cap);
    }
    if t == 1 {
        // Query heads that share a key head are passed as so many queries of that head.
        let q = q.reshape([b, kv_heads, heads_per_kv, d]);
        let by_kv_head = |mask: &Tensor| {
            if mask.size()[0] == 1 { mask.unsqueeze(0) } else { mask.view([1, kv_heads, heads_per_kv, -1]) }
        };
        let mask = mask.map(|mask| by_kv_head(mask).to_kind(q.kind()));
        let mixed = Tensor::scaled_dot_product_attention(&q, k, v, mask, 0.0, false, scale, false);
        return mixed.reshape([b, 1, n_heads * d]);
    }
    let (k, v) = (repeat_heads(k, heads_per_kv), repeat_heads(v, heads_per_kv));
    let mask = mask.map(|mask| mask.unsqueeze(0).to_kind(q.kind()));
    let is_causal = mask.is_none();
    let mixed = Tensor::scaled_dot_product_attention(q, &k, &v, mask, 0.0, is_causal, scale, false);
    mixed.transpose(1, 2).reshape([b, t, n_heads * d])
}

/// [`attention`] with sinks: a key and a value of zeros are added, whose scores are the sinks.
fn with_sinks(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>, sinks: &Tensor) -> Tensor {
    let (t, end, n_heads) = (q.size()[2], k.size()[2], q.size()[1]);
    let causal_mask = causal((end - t) as usize..end as usize, q.device()).unsqueeze(0);
    let mask = scores.mask.unwrap_or(&causal_mask).expand([n_heads, t, end], false);
    let sinks = sinks.to_kind(mask.kind()).view([n_heads, 1, 1]).expand([n_heads, t, 1], false);
    let mask = Tensor::cat(&[mask, sinks], 2);
    let zero = |x: &Tensor| Tensor::cat(&[x, &x.narrow(2, 0, 1).zeros_like()], 2);
    attention(q, &zero(k), &zero(v), &Scores { mask: Some(&mask), sinks: None, ..*scores })
}

/// [`attention`] with a softcap, which libtorch's attention does not support: `k`, `v` `[b, n_heads, end, d]`. The softmax is f32.
fn softcapped(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>, cap: f64) -> Tensor {
    let (b, n_heads, t, d) = q.size4().expect("queries are [b, n_heads, t, d]");
    let scale = scores.scale.unwrap_or_else(|| (d as f64).powf(-0.5));
    let capped = (q.matmul(&k.transpose(2, 3)) * scale / cap).tanh() * cap; // [b, n_heads, t, end]
    let masked = match scores.mask {
        Some(mask) => capped + mask.unsqueeze(0).to_kind(q.kind()),
        None if t > 1 => {
            let later = Tensor::ones([t, t], (Kind::Bool, q.device())).triu(1);
            capped.masked_fill(&later, f64::NEG_INFINITY)
        }
        None => capped,
    };
    let mixed = masked.softmax(-1, Kind::Float).to_kind(v.kind()).matmul(v);
    mixed.transpose(1, 2).reshape([b, t, n_heads * d])
}

/// Repeats each head `heads_per_kv` times in a row: `[b, h, t, d]` -> `[b, h * heads_per_kv, t, d]`.
fn repeat_heads(x: &Tensor, heads_per_kv: i64) -> Tensor {
    if heads_per_kv == 1 {
        return x.shallow_clone();
    }
    let (b, h, t, d) = x.size4().expect("heads are [b, h, t, d]");
    x.unsqueeze(2).expand([b, h, heads_per_kv, t, d], false).reshape([b, h * heads_per_kv, t, d])
}

/// Whether attention with plain causal scores uses `oq-attention` for this device and kind: in bf16, on a CPU with bf16 instructions.
pub fn has_own_attention(device: Device, kind: Kind) -> bool {
    device == Device::Cpu && kind == Kind::BFloat16 && oq_attention::is_fast()
}

/// Output of the attention of `oq-attention`, with what its backward pass needs. Autograd does not see it.
#[derive(Debug)]
pub struct Mixed {
    /// `[b, t, n_heads * d]`, without a graph.
    pub out: Tensor,
    shape: Shape,
    /// Queries, keys and values, each contiguous.
    inputs: [Tensor; 3],
    kept: Kept,
}

#[allow(unsafe_code, reason = "the loops of oq-attention read the tensors' memory")]
impl Mixed {
    /// [`attention`] by `oq-attention`. `None` where libtorch has to be used: if scores have a mask, scale or softcap, if there are more
    /// keys than queries, or if [`has_own_attention`] is false.
    pub fn new(q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Option<Self> {
        if !scores.are_plain() || ![q, k, v].into_iter().all(|x| has_own_attention(x.device(), x.kind())) {
            return None;
        }
        let (b, heads, t, d) = q.size4().ok()?;
        let kv_heads = k.size()[1];
        if k.size()[2] != t {
            return None;
        }
        let [batch, heads, kv_heads, tokens, head_dim] = [b, heads, kv_heads, t, d].map(|n| n as usize);
        let shape = Shape { batch, heads, kv_heads, tokens, head_dim };
        let inputs = [q, k, v].map(|x| x.detach().contiguous());
        // SAFETY: no tensor is written to before the last use of the slices, in the next line.
        let [q, k, v] = inputs.each_ref().map(|x| unsafe { oq_slices::of(x) });
        let kept = oq_attention::forward(shape, q, k, v);
        let out = oq_slices::tensor(&kept.out, &inputs[0].size()).transpose(1, 2);
        Some(Self { out: out.reshape([b, t, -1]), shape, inputs, kept })
    }

    /// Gradients with respect to queries, keys and values, in their shapes, from the gradient of the output, `[b, t, n_heads * d]`.
    pub fn grads(&self, d_out: &Tensor) -> [Tensor; 3] {
        let Shape { batch, heads, tokens, head_dim, .. } = self.shape;
        let by_tokens = [batch, tokens, heads, head_dim].map(|n| n as i64);
        let d_out = d_out.detach().view(by_tokens).transpose(1, 2).contiguous();
        let [q, k, v] = self.inputs.each_ref();
        // SAFETY: no tensor is written to before the last use of the slices, in the next line.
        let [q, k, v, d_out] = [q, k, v, &d_out].map(|x| unsafe { oq_slices::of(x) });
        let grads = oq_attention::backward(self.shape, q, k, v, &self.kept, d_out);
        let [of_q, of_k, of_v] = self.inputs.each_ref().map(Tensor::size);
        [(grads.q, of_q), (grads.k, of_k), (grads.v, of_v)].map(|(grad, size)| oq_slices::tensor(&grad, &size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(n: i64, t: i64, d: i64) -> Tensor {
        let by_tokens = Tensor::randn([2, t, n, d], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        by_tokens.transpose(1, 2)
    }

    /// The largest difference, relative to the largest magnitude in `b`.
    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        ((a - b).abs().max() / b.abs().max()).double_value(&[])
    }

    #[test]
    fn outputs_and_gradients_match_libtorch() {
        // libtorch computes with the same numbers in f32. Ours rounds probabilities, their gradients and results to bf16, by 2^-9 each.
        const TOLERANCE: f64 = 0.02;
        tch::manual_seed(5);
        for (n, kv, t, d) in [(4, 4, 70, 32), (6, 2, 33, 16), (3, 1, 130, 64)] {
            let inputs = [heads(n, t, d), heads(kv, t, d), heads(kv, t, d)];
            let Some(mixed) = Mixed::new(&inputs[0], &inputs[1], &inputs[2], &Scores::default()) else {
                assert!(!oq_attention::is_fast());
                println!("skipped: no AVX-512 BF16");
                return;
            };
            let exact = inputs.each_ref().map(|x| x.to_kind(Kind::Float).set_requires_grad(true));
            let out = attention(&exact[0], &exact[1], &exact[2], &Scores::default());
            assert!(difference(&mixed.out, &out) < TOLERANCE, "{n} heads of {kv}, {t} x {d}: output");
            let d_out = out.randn_like().to_kind(Kind::BFloat16);
            let exact_grads = Tensor::run_backward(&[(&out * &d_out).sum(Kind::Float)], &exact, false, false);
            for (which, (ours, exact)) in mixed.grads(&d_out).iter().zip(&exact_grads).enumerate() {
                assert_eq!(ours.size(), exact.size());
                assert!(difference(ours, exact) < TOLERANCE, "{n} heads of {kv}, {t} x {d}: gradient {which}");
            }
        }
    }

    #[test]
    fn scale_and_softcap_match_the_definition() {
        // For products, exponentials and sums of a few hundred numbers in f64.
        const EXACT: f64 = 1e-12;
        tch::manual_seed(6);
        let random = |n: i64, t: i64| Tensor::randn([2, n, t, 8], (Kind::Double, Device::Cpu)) * 3.0;
        for (queries, end) in [(5, 5), (1, 7), (3, 7)] {
            let (q, k, v) = (random(4, queries), random(2, end), random(2, end));
            let mask = Tensor::ones([queries, end], (Kind::Double, Device::Cpu)).triu(end - queries + 1) * -1e9;
            let mask = mask.unsqueeze(0);
            for (scale, softcap) in [(None, None), (Some(0.3), None), (None, Some(2.0)), (Some(0.3), Some(5.0))] {
                // A whole sequence and a single query need no mask.
                let needs_mask = queries != end && queries != 1;
                let scores = Scores { mask: needs_mask.then_some(&mask), scale, softcap, sinks: None };
                let (wide_k, wide_v) = (repeat_heads(&k, 2), repeat_heads(&v, 2));
                let plain = q.matmul(&wide_k.transpose(2, 3)) * scale.unwrap_or(8f64.powf(-0.5));
                let plain = softcap.map_or(plain.shallow_clone(), |cap| (plain / cap).tanh() * cap);
                let expected = (plain + &mask).softmax(-1, Kind::Double).matmul(&wide_v);
                let expected = expected.transpose(1, 2).reshape([2, queries, 32]);
                // The softmax of softcapped scores is f32.
                let tolerance = if softcap.is_some() { 1e-6 } else { EXACT };
                let off = difference(&attention(&q, &k, &v, &scores), &expected);
                assert!(off < tolerance, "{queries} of {end}, {scale:?} {softcap:?}: {off:e}");
            }
        }
    }

    #[test]
    fn masks_and_other_kinds_use_libtorch() {
        let q = heads(2, 5, 8);
        let mask = Tensor::zeros([1, 5, 5], (Kind::Float, Device::Cpu));
        assert!(Mixed::new(&q, &q, &q, &Scores::masked(Some(&mask))).is_none());
        let q = q.to_kind(Kind::Float);
        assert!(Mixed::new(&q, &q, &q, &Scores::default()).is_none());
        assert_eq!(attention(&q, &q, &q, &Scores::default()).size(), [2, 5, 16]);
    }
}
