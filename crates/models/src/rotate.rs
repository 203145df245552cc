//! Rotated models: a full-precision model with orthogonal matrices merged into its tensors, which computes what the original does (QuaRot,
//! Ashkboos et al. 2024, arXiv 2404.00456; SpinQuant, Liu et al. 2024, arXiv 2405.16406).
//!
//! The residual stream `h` becomes `h R1`: what is added to it is written rotated, and what reads it undoes the rotation. Norms stand
//! between, and their weights move into the linears that read them, as `norm(h R1) = norm(h) R1` without weights; where a norm subtracts
//! the mean, for an `R1` that leaves the mean in place. Each value head is rotated by `R2`, which the output projection undoes. What is
//! [`Online`] is no part of the weights.

use oq_let::{Action, Site};
use oq_quant_core::{RotateKind, SiteKind};
use oq_rotation::Rotation;
use tch::Tensor;

use crate::block::BlockWeights;
use crate::decoder::Decoder;
use crate::error::RotateError;
use crate::online::Online;
use crate::structure::{Layer, LayerResidual, LinearName, Residual};

/// Where matrices stand in a layer.
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
    /// The head's matrix as it is stored, which may be a table too.
    pub(crate) stored_head: &'static str,
    stream: Rotation,
    values: Rotation,
    head_dim: i64,
    layers: Vec<Places>,
    online: Option<Online>,
}

impl Rotator {
    /// Of matrices that `seed` decides; none for [`RotateKind::None`].
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

    /// Whether [`Self::new`] would do, without its matrices: sizes may be those of a config that no tensor has vouched for.
    pub fn check(decoder: &dyn Decoder, kind: RotateKind) -> Result<(), RotateError> {
        Self::checked(decoder, kind).map(drop)
    }

    /// What stands on the residual stream; none for [`RotateKind::None`].
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
        let differs = |layer| {
            let Layer { attention, intermediate, .. } = decoder.layer(layer);
            (attention.head_dim, intermediate) != (dims.head_dim, dims.intermediate)
        };
        if (0..dims.n_layers).any(differs) {
            return Err(reasoned("its layers differ in the size of heads or in the width of the MLP"));
        }
        for layer in 0..dims.n_layers {
            decoder.sites(layer, SiteKind::Vo).map_err(reasoned)?;
        }
        Ok(Some(residual))
    }

    /// Whether the head's matrix has to part from the embedding's.
    pub(crate) fn unties(&self) -> bool {
        self.residual.tables.contains(&self.stored_head)
    }

    /// The rotation of the residual stream.
    pub fn stream(&self) -> &Rotation {
        &self.stream
    }

    /// What is rotated while the model runs.
    pub fn online(&self) -> Option<&Online> {
        self.online.as_ref()
    }

    /// Rotates a layer's tensors, computing in f64; they stay in the kind that they are in.
    pub fn block(&self, layer: usize, block: BlockWeights) -> Result<BlockWeights, RotateError> {
        let mut block = block.with_online(self.online.clone());
        let Places { stream, values } = &self.layers[layer];
        for (norm, readers) in &stream.readers {
            self.fold(&mut block, norm, readers)?;
        }
        for &writer in &stream.writers {
            let weight = self.stream.turn_rows(block.weight(writer));
            let bias = block.bias(writer).map(|bias| self.stream.turn(bias));
            put(&mut block, writer.0, Some(weight), bias);
        }
        for port in values.iter().flat_map(|site| &site.ports) {
            // Each head's channels follow each other.
            let channels = Tensor::from_slice(&port.channels);
            let weight = block.get(&format!("{}.weight", port.module)).shallow_clone();
            let channels = channels.to_device(weight.device());
            let turned = |x: &Tensor, dim: i64| {
                let heads = x.index_select(dim, &channels).transpose(dim, -1); // [.., heads * d]
                let turned = self.values.turn(&heads.reshape([-1, self.head_dim])).view_as(&heads);
                x.index_copy(dim, &channels, &turned.transpose(dim, -1))
            };
            let reads = port.action == Action::MultiplyInput;
            let bias = block.bias(LinearName(port.module)).filter(|_| !reads).map(|bias| turned(bias, 0));
            put(&mut block, port.module, Some(turned(&weight, if reads { 1 } else { 0 })), bias);
        }
        if let Some(online) = &self.online {
            let weight = block.weight(stream.inner);
            let turned = online.inner().apply_in_f64(weight);
            put(&mut block, stream.inner.0, Some(turned), None);
        }
        Ok(block)
    }

    /// Moves a norm's weight, and where it can its bias, into the linears that read it, and undoes the rotation there.
    fn fold(&self, block: &mut BlockWeights, norm: &str, readers: &[LinearName]) -> Result<(), RotateError> {
        let [gamma, beta] =
            ["weight", "bias"].map(|part| block.find(&format!("{norm}.{part}")).map(Tensor::shallow_clone));
        let take_bias = readers.iter().all(|&reader| block.bias(reader).is_some());
        for &reader in readers {
            let weight = block.weight(reader).shallow_clone();
            let bias = beta.as_ref().filter(|_| take_bias).zip(block.bias(reader));
            let bias = bias.map(|(beta, bias)| bias + weight.mv(beta));
            let folded = gamma.as_ref().map_or(weight.shallow_clone(), |gamma| &weight * gamma);
            put(block, reader.0, Some(self.stream.turn(&folded)), bias);
        }
        let bias = match beta {
            Some(beta) if take_bias => Some(beta.zeros_like()),
            Some(beta) => Some(self.norm_bias(norm, gamma.as_ref(), &beta)?),
            None => None,
        };
        put(block, norm, gamma.as_ref().map(Tensor::ones_like), bias);
        Ok(())
    }

    /// The bias of a norm whose weight was folded into its readers.
    fn norm_bias(&self, norm: &str, gamma: Option<&Tensor>, beta: &Tensor) -> Result<Tensor, RotateError> {
        let beta = match gamma {
            Some(gamma) if gamma.eq(0.0).any().int64_value(&[]) != 0 => {
                return Err(RotateError::Norm { norm: norm.to_owned() });
            }
            Some(gamma) => beta / gamma,
            None => beta.shallow_clone(),
        };
        Ok(self.stream.turn(&beta))
    }

    /// Rows of a matrix outside the blocks, as they are stored and of no other use, of a model whose head is `head`; `load` gives whole
    /// tensors.
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
        // It reads the last norm.
        let gamma = self.residual.last_norm.map(|norm| load(&format!("{norm}.weight"))).transpose()?;
        // In place: all rows of the head are as large as a block.
        let mut rows = rows;
        if let Some(gamma) = gamma {
            let _ = rows.g_mul_(&gamma.to_device(rows.device()));
        }
        Ok(self.stream.turn(&rows))
    }

    fn of_table(&self, name: &str, rows: Tensor) -> Tensor {
        if self.residual.tables.contains(&name) { self.stream.turn(&rows) } else { rows }
    }

    /// A tensor outside the blocks, of a model whose head is `head`; `load` gives those that are stored.
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

/// Puts a module's tensors in the place of what it has.
fn put(block: &mut BlockWeights, module: &str, weight: Option<Tensor>, bias: Option<Tensor>) {
    for (part, tensor) in [("weight", weight), ("bias", bias)] {
        if let Some(tensor) = tensor {
            block.set(format!("{module}.{part}"), tensor);
        }
    }
}
