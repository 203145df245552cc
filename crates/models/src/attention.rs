//! Attention over whole sequences: libtorch's, and our own where that is the faster one, in bf16 on a CPU.

use oq_attention::{Kept, Shape};
use tch::{Device, Kind, Tensor};

/// Query head `i` reads key/value head `i / (n_heads / n_kv_heads)`. Scores are multiplied by `d^-0.5`. Each position sees itself and
/// those before, or what `mask` says, which is added to scores; a single query without a mask sees all keys.
///
/// `q [b, n_heads, t, d]`, `k`, `v` `[b, n_kv_heads, end, d]`, `mask [n_heads or 1, t, end]` -> `[b, t, n_heads * d]`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let learns = [q, k, v].into_iter().any(Tensor::requires_grad);
    if let Some(mixed) = (!learns).then(|| Mixed::new(q, k, v, mask)).flatten() {
        return mixed.out;
    }
    let (b, n_heads, t, d) = q.size4().expect("queries are [b, n_heads, t, d]");
    let kv_heads = k.size()[1];
    let share = n_heads / kv_heads;
    if t == 1 {
        // Heads that share keys are to these as many queries.
        let q = q.reshape([b, kv_heads, share, d]);
        let of_heads =
            |mask: &Tensor| if mask.size()[0] == 1 { mask.unsqueeze(0) } else { mask.view([1, kv_heads, share, -1]) };
        let mask = mask.map(|mask| of_heads(mask).to_kind(q.kind()));
        let mixed = Tensor::scaled_dot_product_attention(&q, k, v, mask, 0.0, false, None, false);
        return mixed.reshape([b, 1, n_heads * d]);
    }
    let (k, v) = (repeat_heads(k, share), repeat_heads(v, share));
    let mask = mask.map(|mask| mask.unsqueeze(0).to_kind(q.kind()));
    let is_causal = mask.is_none() && k.size()[2] == t;
    let mixed = Tensor::scaled_dot_product_attention(q, &k, &v, mask, 0.0, is_causal, None, false);
    mixed.transpose(1, 2).reshape([b, t, n_heads * d])
}

/// `[b, h, t, d]` -> `[b, h * share, t, d]`, each head `share` times in a row.
fn repeat_heads(x: &Tensor, share: i64) -> Tensor {
    if share == 1 {
        return x.shallow_clone();
    }
    let (b, h, t, d) = x.size4().expect("heads are [b, h, t, d]");
    x.unsqueeze(2).expand([b, h, share, t, d], false).reshape([b, h * share, t, d])
}

/// Whether attention without a mask is our own on this device in this kind: in bf16 on a processor that multiplies it.
pub fn has_own_attention(device: Device, kind: Kind) -> bool {
    device == Device::Cpu && kind == Kind::BFloat16 && oq_attention::is_fast()
}

/// Our own attention: what it gave, and what its gradients need. Unknown to autograd.
#[derive(Debug)]
pub struct Mixed {
    /// `[b, t, n_heads * d]`, without a graph.
    pub out: Tensor,
    shape: Shape,
    /// Queries, keys and values, contiguous.
    inputs: [Tensor; 3],
    kept: Kept,
}

#[allow(unsafe_code, reason = "the loops are our own, which read heads where they lie")]
impl Mixed {
    /// [`attention`] by our own loops; none where libtorch's are to be used: with a mask, and where [`has_own_attention`] says so.
    pub fn new(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Option<Self> {
        if mask.is_some() || ![q, k, v].into_iter().all(|x| has_own_attention(x.device(), x.kind())) {
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
        // SAFETY: nothing is written before the last use, in the next line.
        let [q, k, v] = inputs.each_ref().map(|x| unsafe { oq_slices::of(x) });
        let kept = oq_attention::forward(shape, q, k, v);
        let out = oq_slices::tensor(&kept.out, &inputs[0].size()).transpose(1, 2);
        Some(Self { out: out.reshape([b, t, -1]), shape, inputs, kept })
    }

    /// Gradients of queries, keys and values, in their shapes, from that of the output, `[b, t, n_heads * d]`.
    pub fn grads(&self, d_out: &Tensor) -> [Tensor; 3] {
        let Shape { batch, heads, tokens, head_dim, .. } = self.shape;
        let by_tokens = [batch, tokens, heads, head_dim].map(|n| n as i64);
        let d_out = d_out.detach().view(by_tokens).transpose(1, 2).contiguous();
        let [q, k, v] = self.inputs.each_ref();
        // SAFETY: nothing is written before the last use, in the next line.
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

    /// Largest difference as a share of the largest number.
    fn difference(a: &Tensor, b: &Tensor) -> f64 {
        ((a - b).abs().max() / b.abs().max()).double_value(&[])
    }

    #[test]
    fn ours_equals_libtorchs_and_so_do_gradients() {
        // libtorch computes on the same numbers in f32; ours rounds probabilities, their gradients and results to bf16, 2^-9 each.
        const TOLERANCE: f64 = 0.02;
        tch::manual_seed(5);
        for (n, kv, t, d) in [(4, 4, 70, 32), (6, 2, 33, 16), (3, 1, 130, 64)] {
            let inputs = [heads(n, t, d), heads(kv, t, d), heads(kv, t, d)];
            let Some(mixed) = Mixed::new(&inputs[0], &inputs[1], &inputs[2], None) else {
                assert!(!oq_attention::is_fast());
                println!("skipped: no AVX-512 BF16");
                return;
            };
            let exact = inputs.each_ref().map(|x| x.to_kind(Kind::Float).set_requires_grad(true));
            let out = attention(&exact[0], &exact[1], &exact[2], None);
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
    fn masks_and_other_kinds_are_left_to_libtorch() {
        let q = heads(2, 5, 8);
        let mask = Tensor::zeros([1, 5, 5], (Kind::Float, Device::Cpu));
        assert!(Mixed::new(&q, &q, &q, Some(&mask)).is_none());
        let q = q.to_kind(Kind::Float);
        assert!(Mixed::new(&q, &q, &q, None).is_none());
        assert_eq!(attention(&q, &q, &q, None).size(), [2, 5, 16]);
    }
}
