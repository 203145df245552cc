//! One sequence: its ids, and the keys and values of its positions.

use std::cell::RefCell;

use tch::{Kind, Tensor};

use crate::cache::{Cache, CachedOps};
use crate::error::GenerateError;
use crate::loaded::Loaded;

/// Rows of logits that are computed at a time where all of them are wanted: 64 of a vocabulary of 128k are 32 MiB.
const ROWS: usize = 64;

/// A growing sequence.
pub struct Session<'a> {
    loaded: &'a Loaded,
    caches: Vec<RefCell<Cache>>,
    ids: Vec<u32>,
}

impl Loaded {
    /// A sequence of no tokens.
    pub fn session(&self) -> Session<'_> {
        let cache = |layer| RefCell::new(Cache::new(self.model(), self.device(), layer));
        Session { loaded: self, caches: (0..self.blocks().len()).map(cache).collect(), ids: Vec::new() }
    }
}

impl Session<'_> {
    /// Processes the next tokens in one pass and returns the logits of the token that follows them, `[vocab]`.
    ///
    /// # Errors
    /// When there are no tokens, more than the model has positions for, ids outside of its vocabulary, or a logit that is not finite. All
    /// errors but the last leave the session unchanged.
    pub fn extend(&mut self, ids: &[u32]) -> Result<Vec<f32>, GenerateError> {
        let _no_grad = tch::no_grad_guard();
        let x = self.forward(ids)?;
        self.logits(&x, ids.len() - 1, 1)
    }

    /// The same, and `each` gets the logits after every one of the tokens, `[vocab]`.
    ///
    /// # Errors
    /// As [`Self::extend`].
    pub fn extend_and_tell(&mut self, ids: &[u32], each: &mut dyn FnMut(&[f32])) -> Result<Vec<f32>, GenerateError> {
        let _no_grad = tch::no_grad_guard();
        let x = self.forward(ids)?;
        let mut last = Vec::new();
        for start in (0..ids.len()).step_by(ROWS) {
            let n = ROWS.min(ids.len() - start);
            let logits = self.logits(&x, start, n)?;
            let rows = logits.chunks_exact(logits.len() / n);
            rows.clone().for_each(&mut *each);
            last = rows.last().expect("there is a row at least").to_vec();
        }
        Ok(last)
    }

    /// Processes the next tokens: their hidden states `[1, n, width]` after the last block.
    fn forward(&mut self, ids: &[u32]) -> Result<Tensor, GenerateError> {
        let decoder = self.loaded.model().decoder();
        let (first, limit) = (self.ids.len(), self.limit());
        let positions = first..first + ids.len();
        if ids.is_empty() {
            return Err(GenerateError::Empty);
        }
        if positions.end > limit {
            return Err(GenerateError::ContextFull { tokens: ids.len(), before: first, limit });
        }
        let numbers: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let mut x = decoder.embed_at(self.loaded, &Tensor::from_slice(&numbers).unsqueeze(0), first)?;
        let ctx = decoder.context_at(positions, self.loaded.device());
        for (layer, (block, cache)) in self.loaded.blocks().iter().zip(&self.caches).enumerate() {
            x = block.with_ops(|ops| decoder.block(layer, &CachedOps { ops, cache }, &ctx, &x));
        }
        self.ids.extend(ids);
        Ok(x)
    }

    /// Logits of `n` of the last hidden states, from `start`: `x [1, t, width] -> [n * vocab]`.
    fn logits(&self, x: &Tensor, start: usize, n: usize) -> Result<Vec<f32>, GenerateError> {
        let position = self.ids.len() - x.size()[1] as usize + start;
        let rows = x.narrow(1, start as i64, n as i64);
        let finished = self.loaded.model().decoder().finish(self.loaded, &rows)?;
        let logits = self.loaded.head().logits(&finished).to_kind(Kind::Float);
        let logits = Vec::<f32>::try_from(logits.view(-1)).expect("logits are f32");
        match logits.iter().position(|logit| !logit.is_finite()) {
            Some(at) => {
                let position = position + at / (logits.len() / n);
                Err(GenerateError::NotFinite { position, value: logits[at] })
            }
            None => Ok(logits),
        }
    }

    /// All tokens so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Maximum number of tokens.
    pub fn limit(&self) -> usize {
        self.loaded.model().decoder().dims().max_positions
    }

    /// Bytes of keys and values.
    pub fn cache_bytes(&self) -> usize {
        self.caches.iter().map(|cache| cache.borrow().bytes()).sum()
    }
}
