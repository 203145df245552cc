//! A block's operations over a sequence whose beginning was processed before.

use std::cell::RefCell;

use half::bf16;
use oq_models::{ActPoint, Attention, BlockOps, LinearName, Model, Scores, has_own_attention};
use oq_slices::Number;
use tch::{Device, Kind, Tensor};

/// Keys and values of one block.
pub(crate) enum Cache {
    /// In the layout that our own attention reads: bf16, on a CPU that multiplies bf16, for plain causal masks.
    Own(oq_attention::Cache),
    /// As tensors, for libtorch.
    Tensors(Tensors),
}

/// Keys and values `[1, kv_heads, room, d]`, of which the first `len` positions are filled.
pub(crate) struct Tensors {
    kind: Kind,
    len: i64,
    held: Option<[Tensor; 2]>,
}

/// Number of positions that memory is reserved for at first.
const ROOM: i64 = 64;

impl Cache {
    /// Of a layer of `model`, which runs on `device`.
    pub(crate) fn new(model: &Model, device: Device, layer: usize) -> Self {
        let decoder = model.decoder();
        let compute = model.form().compute;
        let is_plain = decoder.has_plain_scores(layer, decoder.dims().max_positions);
        if is_plain && has_own_attention(device, compute.kind()) {
            let Attention { n_kv_heads, head_dim, .. } = decoder.layer(layer).attention;
            Self::Own(oq_attention::Cache::new(n_kv_heads, head_dim))
        } else {
            Self::Tensors(Tensors { kind: compute.kind(), len: 0, held: None })
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Own(cache) => cache.bytes(),
            Self::Tensors(tensors) => {
                let bytes = |x: &Tensor| x.numel() * x.kind().elt_size_in_bytes();
                tensors.held.iter().flatten().map(bytes).sum()
            }
        }
    }
}

impl Tensors {
    /// Appends positions and returns all of them: `[1, kv_heads, n, d]` -> `[1, kv_heads, len, d]`.
    fn push(&mut self, new: [&Tensor; 2]) -> [Tensor; 2] {
        let n = new[0].size()[2];
        let room = self.held.as_ref().map_or(0, |[k, _]| k.size()[2]);
        if self.len + n > room {
            let room = (self.len + n).max(2 * room).max(ROOM);
            let grown = new.map(|x| {
                let (b, heads, _, d) = x.size4().expect("keys are [b, heads, t, d]");
                Tensor::zeros([b, heads, room, d], (self.kind, x.device()))
            });
            if let Some(old) = &self.held {
                grown
                    .iter()
                    .zip(old)
                    .for_each(|(new, old)| new.narrow(2, 0, self.len).copy_(&old.narrow(2, 0, self.len)));
            }
            self.held = Some(grown);
        }
        let held = self.held.as_ref().expect("there is room for a position at least");
        held.iter().zip(new).for_each(|(held, new)| held.narrow(2, self.len, n).copy_(new));
        self.len += n;
        held.each_ref().map(|x| x.narrow(2, 0, self.len))
    }
}

/// Operations whose attention sees the cached keys and values.
pub(crate) struct CachedOps<'a> {
    pub(crate) ops: &'a dyn BlockOps,
    pub(crate) cache: &'a RefCell<Cache>,
}

impl BlockOps for CachedOps<'_> {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        self.ops.linear(name, x)
    }

    fn linears(&self, names: &[LinearName], x: &Tensor) -> Vec<Tensor> {
        self.ops.linears(names, x)
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        self.ops.act(point, x)
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Tensor {
        match &mut *self.cache.borrow_mut() {
            Cache::Tensors(tensors) => {
                let [k, v] = tensors.push([k, v]);
                self.ops.attention(q, &k, &v, scores)
            }
            Cache::Own(cache) => {
                let is_start = cache.is_empty();
                let [k, v] = [k, v].map(Tensor::contiguous);
                match k.kind() {
                    Kind::BFloat16 => push::<bf16>(cache, &k, &v),
                    _ => push::<f32>(cache, &k, &v),
                }
                // A whole sequence has a separate attention, made for many rows.
                if is_start { self.ops.attention(q, &k, &v, scores) } else { attend(cache, q) }
            }
        }
    }

    fn param(&self, name: &str) -> Tensor {
        self.ops.param(name)
    }
}

/// Appends positions, `[1, kv_heads, n, d]`, contiguous.
#[allow(unsafe_code, reason = "the cache is our own, and reads keys and values where they lie")]
fn push<T: Number + Into<f32> + Sync>(cache: &mut oq_attention::Cache, k: &Tensor, v: &Tensor) {
    // SAFETY: only the cache, which is no tensor, is written meanwhile.
    let [k, v] = [k, v].map(|x| unsafe { oq_slices::of::<T>(x) });
    cache.push(k, v);
}

/// `q [1, heads, n, d]` -> `[1, n, heads * d]` f32.
fn attend(cache: &oq_attention::Cache, q: &Tensor) -> Tensor {
    let q = q.contiguous();
    match q.kind() {
        Kind::BFloat16 => attend_as::<bf16>(cache, &q),
        _ => attend_as::<f32>(cache, &q),
    }
}

#[allow(unsafe_code, reason = "the loop is our own, which reads queries where they lie")]
fn attend_as<T: Number + Into<f32> + Sync>(cache: &oq_attention::Cache, q: &Tensor) -> Tensor {
    let (b, heads, n, d) = q.size4().expect("queries are [b, heads, t, d]");
    // SAFETY: only a tensor that is made here is written meanwhile.
    let q = unsafe { oq_slices::of::<T>(q) };
    let [out] = oq_slices::filled([&[b, heads, n, d]], |[out]| cache.attend(heads as usize, q, out));
    out.transpose(1, 2).reshape([b, n, heads * d])
}
