//! Rotated models: orthogonal matrices are merged into the tensors of a full-precision model, and the model computes the same function
//! (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456; SpinQuant, Liu et al. 2024, arXiv 2405.16406).
//!
//! The residual stream `h` becomes `h R1`. Tensors that write to it are rotated, and linears that read it contain the inverse rotation.
//! Between them are norms, which commute with the rotation, `norm(h R1) = norm(h) R1`, only without weights. So their weights are folded
//! into the linears that read them. A norm that subtracts the mean also needs an `R1` that preserves the mean. Each value head is rotated
//! by `R2`, and the output projection contains the inverse. [`Online`] rotations are applied to activations.

use oq_let::{Action, Site};
use oq_quant_core::{RotateKind, SiteKind};
use oq_rotation::Rotation;
use tch::{Device, Tensor};

use crate::block::BlockWeights;
use crate::decoder::Decoder;
use crate::error::RotateError;
use crate::online::Online;
use crate::structure::{LayerResidual, LinearName, Residual};

/// The tensors of a layer that are rotated.
#[derive(Debug)]
struct Places {
    stream: LayerResidual,
    /// Channels of the value heads.
    values: Vec<Site>,
}

/// Rotates a model's tensors.
#[derive(Debug)]
pub struct Rotator {
    residual: Residual,
    /// Name of the head's matrix in the checkpoint. For a tied model it is the embedding.
    pub(crate) stored_head: &'static str,
    stream: Rotation,
    values: Rotation,
    head_dim: i64,
    layers: Vec<Places>,
    online: Option<Online>,
}

impl Rotator {
    /// With matrices that `seed` determines. `None` for [`RotateKind::None`].
    ///
    /// # Errors
    /// When the model's architecture cannot be rotated, or online rotations have no Hadamard matrix.
    pub fn new(decoder: &dyn Decoder, kind: RotateKind, seed: u64) -> Result<Option<Self>, RotateError> {
        let Some(residual) = Self::checked(decoder, kind)? else { return Ok(None) };
        let dims = decoder.dims();
        let online = (kind == RotateKind::Online).then(|| Online::new(dims)).transpose()?;
        let places = |layer| {
            let values = decoder.sites(layer, SiteKind::Vo).map_err(|reason| RotateError::Residual { reason })?;
            Ok(Places { stream: decoder.residual_of(layer), values })
        };
        Ok(Some(Self {
            stream: Rotation::new(dims.hidden, seed, residual.centred),
            values: Rotation::new(dims.head_dim, seed ^ (1 << 63), false),
            layers: (0..dims.n_layers).map(places).collect::<Result<_, _>>()?,
            stored_head: decoder.head(),
            head_dim: dims.head_dim as i64,
            residual,
            online,
        }))
    }

    /// Checks that [`Self::new`] would succeed, without computing matrices. So it is safe for a config whose sizes were not checked against
    /// tensors.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn check(decoder: &dyn Decoder, kind: RotateKind) -> Result<(), RotateError> {
        Self::checked(decoder, kind).map(drop)
    }

    /// The checks of [`Self::new`]; returns the decoder's residual stream, or `None` for [`RotateKind::None`].
    fn checked(decoder: &dyn Decoder, kind: RotateKind) -> Result<Option<Residual>, RotateError> {
        if kind == RotateKind::None {
            return Ok(None);
        }
        let dims = decoder.dims();
        let reasoned = |reason| RotateError::Residual { reason };
        let residual = decoder.residual().map_err(reasoned)?;
        if kind == RotateKind::Online {
            Online::check(dims)?;
        }
        let differs = |layer_idx| {
            let (layer, inner) = (decoder.layer(layer_idx), decoder.residual_of(layer_idx).inner);
            let widths = layer.linears.iter().filter(|linear| inner.contains(&linear.name)).map(|l| l.in_features);
            layer.attention.head_dim != dims.head_dim
                || (kind == RotateKind::Online && widths.into_iter().any(|width| width != dims.intermediate))
        };
        if (0..dims.n_layers).any(differs) {
            return Err(reasoned("its layers differ in the size of heads or in the width of MLPs"));
        }
        for layer in 0..dims.n_layers {
            decoder.sites(layer, SiteKind::Vo).map_err(reasoned)?;
        }
        Ok(Some(residual))
    }

    /// Whether the head has to be untied from the embedding.
    pub(crate) fn unties(&self) -> bool {
        self.residual.tables.contains(&self.stored_head)
    }

    /// The rotation of the residual stream.
    pub fn stream(&self) -> &Rotation {
        &self.stream
    }

    /// The online rotations, if there are any.
    pub fn online(&self) -> Option<&Online> {
        self.online.as_ref()
    }

    /// Rotates a layer's tensors. Computes in f64; tensors keep their kind.
    ///
    /// # Errors
    /// When a norm's bias cannot be rotated.
    pub fn block(&self, layer: usize, block: BlockWeights) -> Result<BlockWeights, RotateError> {
        let device = block.tensors().values().next().map_or(Device::Cpu, Tensor::device);
        let mut block = block.with_online(self.online.as_ref().map(|online| online.to_device(device)));
        let Places { stream, values } = &self.layers[layer];
        for (norm, readers) in &stream.readers {
            self.fold(&mut block, norm, readers)?;
        }
        for &writer in &stream.writers {
            let weight = self.stream.apply_to_rows(block.weight(writer));
            let bias = block.bias(writer).map(|bias| self.stream.apply(bias));
            put(&mut block, writer.0, Some(weight), bias);
        }
        for port in values.iter().flat_map(|site| &site.ports) {
            // The channels of a head are consecutive.
            let channels = Tensor::from_slice(&port.channels);
            let weight = block.get(&format!("{}.weight", port.module)).shallow_clone();
            let channels = channels.to_device(weight.device());
            let rotate_heads = |x: &Tensor, dim: i64| {
                let heads = x.index_select(dim, &channels).transpose(dim, -1); // [.., heads * d]
                let rotated = self.values.apply(&heads.reshape([-1, self.head_dim])).view_as(&heads);
                x.index_copy(dim, &channels, &rotated.transpose(dim, -1))
            };
            let reads = port.action == Action::MultiplyInput;
            let bias = block.bias(LinearName(port.module)).filter(|_| !reads).map(|bias| rotate_heads(bias, 0));
            put(&mut block, port.module, Some(rotate_heads(&weight, if reads { 1 } else { 0 })), bias);
        }
        if let Some(online) = &self.online {
            for inner in &stream.inner {
                let rotated = online.inner().apply_in_f64(block.weight(*inner));
                put(&mut block, inner.0, Some(rotated), None);
            }
        }
        Ok(block)
    }

    /// Folds a norm's weight, and if possible its bias, into the linears that read it, and applies the inverse rotation to these.
    fn fold(&self, block: &mut BlockWeights, norm: &str, readers: &[LinearName]) -> Result<(), RotateError> {
        let [gamma, beta] =
            ["weight", "bias"].map(|part| block.find(&format!("{norm}.{part}")).map(Tensor::shallow_clone));
        let take_bias = readers.iter().all(|&reader| block.bias(reader).is_some());
        for &reader in readers {
            let weight = block.weight(reader).shallow_clone();
            let bias = beta.as_ref().filter(|_| take_bias).zip(block.bias(reader));
            let bias = bias.map(|(beta, bias)| bias + weight.mv(beta));
            let folded = gamma.as_ref().map_or(weight.shallow_clone(), |gamma| &weight * gamma);
            put(block, reader.0, Some(self.stream.apply(&folded)), bias);
        }
        let bias = match beta {
            Some(beta) if take_bias => Some(beta.zeros_like()),
            Some(beta) => Some(self.norm_bias(norm, gamma.as_ref(), &beta)?),
            None => None,
        };
        put(block, norm, gamma.as_ref().map(Tensor::ones_like), bias);
        Ok(())
    }

    /// The rotated bias of a norm whose weight was folded into the linears that read it.
    fn norm_bias(&self, norm: &str, gamma: Option<&Tensor>, beta: &Tensor) -> Result<Tensor, RotateError> {
        let beta = match gamma {
            Some(gamma) if gamma.eq(0.0).any().int64_value(&[]) != 0 => {
                return Err(RotateError::Norm { norm: norm.to_owned() });
            }
            Some(gamma) => beta / gamma,
            None => beta.shallow_clone(),
        };
        Ok(self.stream.apply(&beta))
    }

    /// Rotates stored rows of a matrix outside the blocks; may overwrite `rows`. `head` is the name of the model's head, and `load` returns
    /// whole stored tensors.
    pub(crate) fn rows<E: From<RotateError>>(
        &self,
        head: &str,
        name: &str,
        rows: Tensor,
        load: impl Fn(&str) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        if name != head {
            return Ok(self.of_table(name, rows));
        }
        // The last norm's weight is folded into the head.
        let gamma = self.residual.last_norm.map(|norm| load(&format!("{norm}.weight"))).transpose()?;
        // In place, because the whole head is as large as a block.
        let mut rows = rows;
        if let Some(gamma) = gamma {
            let _ = rows.g_mul_(&gamma.to_device(rows.device()));
        }
        Ok(self.stream.apply(&rows))
    }

    fn of_table(&self, name: &str, rows: Tensor) -> Tensor {
        if self.residual.tables.contains(&name) { self.stream.apply(&rows) } else { rows }
    }

    /// A rotated tensor outside the blocks. `head` is the name of the model's head, and `load` returns whole stored tensors.
    pub(crate) fn outer<E: From<RotateError>>(
        &self,
        head: &str,
        name: &str,
        load: impl Fn(&str) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        if name == head {
            return self.rows(head, name, load(self.stored_head)?, load);
        }
        let stored = load(name)?;
        match self.residual.last_norm.and_then(|norm| Some((norm, name.strip_prefix(norm)?))) {
            Some((_, ".weight")) => Ok(stored.ones_like()),
            Some((norm, ".bias")) => Ok(self.norm_bias(norm, Some(&load(&format!("{norm}.weight"))?), &stored)?),
            _ => Ok(self.of_table(name, stored)),
        }
    }
}

/// Replaces those of a module's tensors that are given.
fn put(block: &mut BlockWeights, module: &str, weight: Option<Tensor>, bias: Option<Tensor>) {
    for (part, tensor) in [("weight", weight), ("bias", bias)] {
        if let Some(tensor) = tensor {
            block.set(format!("{module}.{part}"), tensor);
        }
    }
}
