//! What several quantized models are compared with: the predictions of the model in full precision, computed once.

use std::io;
use std::path::{Path, PathBuf};

use oq_formats::Scratch;
use oq_models::Model;
use tch::{Device, Kind, Tensor};

use crate::divergence::{Comparison, Divergence, normed, together};
use crate::error::EvalError;
use crate::forward::Progress;
use crate::windows::windows_of;

/// The last hidden states of a model on the windows of a text. They lie in an unnamed file, which disappears with this value, however the
/// process ends.
pub struct Reference<'a> {
    full: &'a Model,
    device: Device,
    /// `[1, seqlen]` each.
    windows: Vec<Tensor>,
    seqlen: usize,
    /// Of a window's states: `[seqlen, width]`.
    shape: [i64; 2],
    /// Those of each window, in f32.
    states: Scratch,
}

impl<'a> Reference<'a> {
    /// Runs `full` on the first `max_windows` (or all) windows of `seqlen` tokens of `ids`. The file is on the disk of `dir`, and takes
    /// [`Self::bytes`].
    ///
    /// # Errors
    /// When the states cannot be stored, when they are not finite, and as [`perplexity`](crate::perplexity()).
    pub fn new(
        full: &'a Model,
        ids: &[u32],
        seqlen: usize,
        max_windows: Option<usize>,
        device: Device,
        dir: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, EvalError> {
        let _no_grad = tch::no_grad_guard();
        let windows = windows_of(ids, seqlen, max_windows)?;
        let together = together(&[full], seqlen);
        let (mut done, total) = (0, windows.len().div_ceil(together) * full.decoder().dims().n_layers);
        let mut after_block = || {
            done += 1;
            progress(Progress { done, total });
        };
        let (dir, bytes) = (PathBuf::from(dir), Self::bytes(full, windows.len(), seqlen));
        let unstored = |source: io::Error| EvalError::Reference { dir: dir.clone(), bytes, source };
        let mut states = Scratch::create(&dir, bytes).map_err(unstored)?;
        let (mut at, mut shape) = (0, [0; 2]);
        for (idx, chunk) in windows.chunks(together).enumerate() {
            let of_full = normed(full, chunk, device, &mut after_block)?;
            for (window, x) in of_full.iter().enumerate() {
                if x.isfinite().all().int64_value(&[]) == 0 {
                    return Err(EvalError::NotFinite { window: idx * together + window, value: f64::NAN });
                }
                shape = x.size2().map(|(seqlen, width)| [seqlen, width]).expect("a window's states are a matrix");
                let bytes = bytes_of(x);
                states.write(at, &bytes).map_err(unstored)?;
                at += bytes.len();
            }
        }
        Ok(Self { full, device, windows, seqlen, shape, states })
    }

    /// Bytes of the states of `windows` windows, at most: a model may narrow them before the head.
    pub fn bytes(full: &Model, windows: usize, seqlen: usize) -> u64 {
        (windows * seqlen * full.decoder().dims().hidden * size_of::<f32>()) as u64
    }

    /// Compares `quantized` with the model, as [`divergence`](crate::divergence()) does, with the same result.
    ///
    /// # Errors
    /// As [`divergence`](crate::divergence()).
    pub fn divergence(&self, quantized: &Model, progress: &mut dyn FnMut(Progress)) -> Result<Divergence, EvalError> {
        let _no_grad = tch::no_grad_guard();
        let together = together(&[self.full, quantized], self.seqlen);
        let layers = quantized.decoder().dims().n_layers;
        let (mut done, total) = (0, self.windows.len().div_ceil(together) * layers);
        let mut after_block = || {
            done += 1;
            progress(Progress { done, total });
        };
        let mut comparison = Comparison::new(self.full, quantized, self.device)?;
        for (idx, chunk) in self.windows.chunks(together).enumerate() {
            let first = idx * together;
            let of_full: Vec<Tensor> = (first..first + chunk.len()).map(|window| self.window(window)).collect();
            comparison.add(chunk, &of_full, &mut after_block)?;
        }
        Ok(comparison.finish(self.seqlen))
    }

    /// The states `[seqlen, width]` of a window.
    fn window(&self, window: usize) -> Tensor {
        let len = self.shape.iter().product::<i64>() as usize * size_of::<f32>();
        let tensor = |bytes: &[u8]| Tensor::from_data_size(bytes, &self.shape, Kind::Float);
        self.states.read(window * len..(window + 1) * len, tensor).to_device(self.device)
    }
}

fn bytes_of(x: &Tensor) -> Vec<u8> {
    let x = x.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let mut bytes = vec![0; x.numel() * size_of::<f32>()];
    x.copy_data_u8(&mut bytes, x.numel());
    bytes
}
