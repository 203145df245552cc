//! A model on disk: a family and a checkpoint, loaded one block at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oq_formats::{
    Checkpoint, Dtype, FormatError, Matrix, PackedCheckpoint, Quantization, TensorView, is_rotated_online, read_config,
    transposed,
};
use oq_quant_core::{ActSpec, QuantizedTensor, RotateKind, Scheme};
use serde_json::Value;
use tch::{Device, Tensor};

use crate::block::{BlockWeights, DenseOps};
use crate::decoder::{Decoder, OuterOps};
use crate::dequantized::of_matrix;
use crate::error::ModelError;
use crate::family::{decoder_of, text_config};
use crate::form::{Block, Form, Kernels};
use crate::head::{Head, HeadKind};
use crate::names::{has_other_head, refuse_prefix, split_fused, text_model, with_model_prefix};
use crate::online::Online;
use crate::packed::{PackedOps, Prefill, StoredLinear};
use crate::rotate::Rotator;
use crate::schemes::quantization_by;
use crate::structure::{Layer, Linear, Param};
use crate::tensors::{checked_ids, rows_of, tensor_of};

/// A model on disk, in full precision or packed.
pub struct Model {
    dir: PathBuf,
    config: Value,
    decoder: Box<dyn Decoder>,
    weights: Weights,
    /// Weights that are stored `[in, out]`.
    transposed: BTreeSet<String>,
    round_to_nearest: Option<Quantization>,
    form: Form,
    rotator: Option<Rotator>,
    online: Option<Online>,
    read: ReadDecoder,
}

/// A function that reads a `config.json`.
pub type ReadDecoder = fn(&Value) -> Result<Box<dyn Decoder>, ModelError>;

enum Weights {
    Dense(Checkpoint),
    Packed(Box<PackedCheckpoint>),
}

impl Weights {
    fn checkpoint(&self) -> &Checkpoint {
        match self {
            Self::Dense(checkpoint) => checkpoint,
            Self::Packed(packed) => packed.checkpoint(),
        }
    }

    /// The linear or embedding that a tensor is the weight of, if it is packed.
    fn packed<'a>(&self, tensor: &'a str) -> Option<(&PackedCheckpoint, &'a str)> {
        let Self::Packed(packed) = self else { return None };
        let linear = tensor.strip_suffix(".weight")?;
        packed.is_packed(linear).then_some((&**packed, linear))
    }
}

impl Model {
    /// Opens a Hugging Face directory, packed or not, and checks that every tensor exists with the shape that the config implies.
    ///
    /// # Errors
    /// When the config or the checkpoint is invalid, or a tensor is missing or has another shape or type.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Self::with_decoder(dir, decoder_of)
    }

    /// [`Self::open`] for a family of your own, which is not in [`crate::FAMILIES`]: `read` makes a [`Decoder`] from a `config.json`. Everything
    /// else works on such a model as on any other: quantization, packing, evaluation and generation.
    pub fn with_decoder(dir: &Path, read: ReadDecoder) -> Result<Self, ModelError> {
        let outer = read_config(dir)?;
        let mut config = text_config(outer.clone());
        let is_part = config != outer;
        let mut decoder = read(&config)?;
        let transposed;
        let weights = match PackedCheckpoint::open(dir) {
            Ok(mut packed) => {
                transposed = split_fused(packed.checkpoint_mut(), &*decoder)?;
                Weights::Packed(Box::new(packed))
            }
            Err(FormatError::NotPacked { .. }) => {
                let mut checkpoint = with_model_prefix(Checkpoint::open(dir)?, &*decoder);
                if is_part {
                    checkpoint = text_model(checkpoint, &*decoder);
                }
                transposed = split_fused(&mut checkpoint, &*decoder)?;
                Weights::Dense(checkpoint)
            }
            Err(other) => return Err(other.into()),
        };
        refuse_prefix(weights.checkpoint(), &*decoder)?;
        // As in transformers 5: a checkpoint with a head that differs from the embedding is untied, whatever the config says.
        if has_other_head(weights.checkpoint(), &*decoder)? {
            config["tie_word_embeddings"] = false.into();
            decoder = read(&config)?;
        }
        let (round_to_nearest, form) = (None, Form::default());
        let dir = dir.to_owned();
        let (rotator, online) = (None, None);
        let mut model =
            Self { dir, config, decoder, weights, transposed, round_to_nearest, form, rotator, online, read };
        model.check_tensors()?;
        // After the check: the matrices have the config's sizes, which the tensors have confirmed now.
        if is_rotated_online(&model.config) {
            model.online = Some(Online::new(model.decoder.dims())?);
        }
        Ok(model)
    }

    /// The same model, with linears rounded to nearest as they are loaded and activations quantized as `scheme` says. This is the baseline
    /// for every quantizer.
    ///
    /// # Errors
    /// As [`Self::check_quantizable`].
    ///
    /// # Panics
    /// When the model is rotated: its stored weights would be rounded before rotation.
    pub fn with_round_to_nearest<'a>(self, scheme: impl Into<Scheme<'a>>) -> Result<Self, ModelError> {
        assert!(!self.is_rotated(), "weights are rounded as they are stored");
        let scheme = scheme.into();
        self.check_quantizable(scheme)?;
        let round_to_nearest = Some(quantization_by(&*self.decoder, scheme)?);
        Ok(Self { round_to_nearest, ..self })
    }

    /// The same model with its tensors rotated as they are loaded, by matrices that `seed` determines. It computes the same function. A
    /// tied head is untied, also in [`Self::config`].
    ///
    /// # Errors
    /// When the model's architecture cannot be rotated, or it is packed.
    ///
    /// # Panics
    /// When its linears are rounded to nearest as they are loaded.
    pub fn rotated(self, kind: RotateKind, seed: u64) -> Result<Self, ModelError> {
        assert!(self.round_to_nearest.is_none(), "weights are rounded as they are stored");
        if let Some(quantization) = self.quantization() {
            return Err(ModelError::AlreadyQuantized { quantization: Box::new(quantization.clone()), dir: self.dir });
        }
        let Some(rotator) = Rotator::new(&*self.decoder, kind, seed)? else { return Ok(self) };
        let (mut config, mut decoder) = (self.config, self.decoder);
        if rotator.unties() {
            config["tie_word_embeddings"] = false.into();
            decoder = (self.read)(&config)?;
        }
        let online = rotator.online().cloned();
        Ok(Self { config, decoder, rotator: Some(rotator), online, ..self })
    }

    /// Opens the model again as it is stored, without rotation, rounding or form.
    pub fn reopened(&self) -> Result<Self, ModelError> {
        Self::with_decoder(&self.dir, self.read)
    }

    /// Whether the weight of a linear is used as the checkpoint stores it, by the tensor's name: neither rotated nor transposed nor FP8.
    pub fn is_as_stored(&self, weight: &str) -> bool {
        let is_float = |view: TensorView<'_>| matches!(view.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32);
        self.rotator.is_none()
            && !self.transposed.contains(weight)
            && self.checkpoint().tensor(weight).is_ok_and(is_float)
    }

    /// Whether its tensors are rotated as they are loaded.
    pub fn is_rotated(&self) -> bool {
        self.rotator.is_some()
    }

    /// The online rotations of its activations, if it has any.
    pub fn online(&self, device: Device) -> Option<Online> {
        self.online.as_ref().map(|online| online.to_device(device))
    }

    /// The same model with its weights stored and multiplied as `form` says. The default is dense f32.
    ///
    /// # Errors
    /// When `form` asks for packed weights, and the model is neither packed nor rounded as it is loaded, or for 8-bit activations without
    /// packed weights or on a processor whose kernel does not multiply them.
    pub fn with_form(self, form: Form) -> Result<Self, ModelError> {
        if form.kernels == Kernels::Packed && self.quantization().is_none() && self.round_to_nearest.is_none() {
            return Err(FormatError::NotPacked { dir: self.dir }.into());
        }
        if form.prefill != Prefill::Auto {
            if form.kernels != Kernels::Packed {
                return Err(ModelError::PrefillDense);
            }
            form.prefill.check()?;
        }
        Ok(Self { form, ..self })
    }

    /// How its weights are stored in memory and multiplied.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Checks that the model can be quantized.
    ///
    /// # Errors
    /// When it has integer codes already, the rows of a linear do not split into groups or blocks, or an override matches nothing.
    pub fn check_quantizable<'a>(&self, scheme: impl Into<Scheme<'a>>) -> Result<(), ModelError> {
        if let Some(quantization) = self.quantization() {
            return Err(ModelError::AlreadyQuantized {
                dir: self.dir.clone(),
                quantization: Box::new(quantization.clone()),
            });
        }
        // What lies outside the blocks is copied as it is stored.
        for param in self.decoder.outer_params() {
            if self.weights.packed(param.name).is_some() {
                let dtype = self.checkpoint().tensor(param.name)?.dtype;
                return Err(FormatError::NotFloat { tensor: param.name.to_owned(), dtype }.into());
            }
        }
        quantization_by(&*self.decoder, scheme).map(drop)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Its architecture.
    pub fn decoder(&self) -> &dyn Decoder {
        &*self.decoder
    }

    /// How a packed model is quantized; none for a model in full precision or FP8.
    pub fn quantization(&self) -> Option<&Quantization> {
        match &self.weights {
            Weights::Dense(_) => None,
            Weights::Packed(packed) => Some(packed.quantization()).filter(|quantization| !quantization.is_empty()),
        }
    }

    /// How activations are quantized before its products.
    pub fn act(&self) -> ActSpec {
        let of_packed = self.quantization().map(Quantization::act);
        of_packed.or(self.round_to_nearest.as_ref().map(Quantization::act)).unwrap_or(ActSpec::Float)
    }

    /// The operations of a block from [`Self::load_block`].
    pub fn ops<'a>(&self, weights: &'a BlockWeights) -> DenseOps<'a> {
        DenseOps::new(weights).with_act(self.act())
    }

    /// The stored tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        self.weights.checkpoint()
    }

    /// Loads one block in f32. Pages of the mapped files are released after each tensor.
    pub fn load_block(&self, block_idx: usize, device: Device) -> Result<BlockWeights, ModelError> {
        let prefix = self.decoder.block_prefix(block_idx);
        let layout = self.decoder.layer(block_idx);
        let mut tensors = self.load_params(&prefix, &layout, device)?;
        for linear in &layout.linears {
            let name = format!("{prefix}{}", linear.name.0);
            tensors.insert(linear.name.weight(), self.load_weight(&name, linear, device)?);
            if linear.bias {
                tensors.insert(linear.name.bias(), self.load(&format!("{name}.bias"), device)?);
            }
        }
        let block = BlockWeights::new(tensors);
        Ok(match &self.rotator {
            Some(rotator) => rotator.block(block_idx, block)?,
            None => block.with_online(self.online(device)),
        })
    }

    fn load_params(
        &self,
        prefix: &str,
        layout: &Layer,
        device: Device,
    ) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let load = |param: &Param| {
            let stored = self.load(&format!("{prefix}{}", param.name), device)?;
            Ok((param.name.to_owned(), param.value_of(stored)))
        };
        layout.params.iter().map(load).collect()
    }

    /// Loads one block in the model's [`Form`].
    ///
    /// # Errors
    /// As [`Self::load_block`], and when packed weights are requested on a device other than the CPU.
    pub fn block(&self, block_idx: usize, device: Device) -> Result<Block, ModelError> {
        let Form { kernels, compute, prefill, .. } = self.form;
        match kernels {
            Kernels::Dense => {
                let weights = self.load_block(block_idx, device)?.cast(&self.decoder.layer(block_idx).linears, compute);
                Ok(Block::Dense { weights, act: self.act(), compute })
            }
            Kernels::Packed if device != Device::Cpu && oq_cuda::of(device).is_none() => {
                Err(ModelError::PackedDevice { device })
            }
            Kernels::Packed => {
                let layout = self.decoder.layer(block_idx);
                let prefix = self.decoder.block_prefix(block_idx);
                let of_group =
                    |group: &Vec<Linear>| group.iter().map(|linear| self.stored_linear(&prefix, linear)).collect();
                let params = self.load_params(&prefix, &layout, device)?;
                let ops = PackedOps::new(layout.groups().iter().map(of_group), params, self.act(), (device, compute))?;
                Ok(Block::Packed(ops.with_prefill(prefill)?.with_online(self.online(device))))
            }
        }
    }

    /// Loads the head in the model's [`Form`].
    pub fn head(&self, device: Device) -> Result<Head, ModelError> {
        let name = self.decoder.head();
        if let Some((packed, linear)) = self.weights.packed(name)
            && self.form.head != HeadKind::Wide
            && device == Device::Cpu
            && let Matrix::Codes(codes) = packed.matrix(linear)?
        {
            self.checkpoint().release();
            if let Some(head) = Head::of_codes(&codes, self.decoder.logits())? {
                return Ok(head);
            }
        }
        if self.rotator.is_some() || self.weights.packed(name).is_some() {
            let head = self.outer(Device::Cpu).param(name)?;
            let shape: Vec<usize> = head.size().iter().map(|&n| n as usize).collect();
            let mut bytes = vec![0; head.numel() * size_of::<f32>()];
            head.copy_data_u8(&mut bytes, head.numel());
            let view = TensorView { name, dtype: Dtype::F32, shape: &shape, bytes: &bytes };
            return Head::new(&view, self.form.head, device, self.decoder.logits());
        }
        let head = Head::new(&self.checkpoint().tensor(name)?, self.form.head, device, self.decoder.logits());
        self.checkpoint().release();
        head
    }

    /// Asks the system to read a block's tensors from disk in the background. Does nothing if there is no such block.
    pub fn read_ahead(&self, block_idx: usize) {
        self.checkpoint().read_ahead(&self.decoder.block_prefix(block_idx));
    }

    /// The tensors outside the blocks.
    pub fn outer(&self, device: Device) -> Outer<'_> {
        Outer { model: self, device }
    }

    fn load_weight(&self, name: &str, linear: &Linear, device: Device) -> Result<Tensor, ModelError> {
        if let (Weights::Dense(_), None) = (&self.weights, &self.round_to_nearest) {
            let name = format!("{name}.weight");
            let stored = self.load(&name, device)?;
            return Ok(if self.transposed.contains(&name) { stored.tr().contiguous() } else { stored });
        }
        let shape = [linear.out_features as i64, linear.in_features as i64];
        Ok(of_matrix(self.matrix(name, linear)?, shape, device))
    }

    /// A linear's weight: codes, if the model has them or is rounded as it is loaded.
    fn matrix(&self, name: &str, linear: &Linear) -> Result<Matrix, ModelError> {
        let stored = match &self.weights {
            Weights::Packed(packed) => packed.matrix(name)?,
            Weights::Dense(checkpoint) => {
                let name = format!("{name}.weight");
                let values = checkpoint.tensor(&name)?.to_f32_vec()?;
                let is_transposed = self.transposed.contains(&name);
                Matrix::Values(if is_transposed { transposed(&values, linear.out_features) } else { values })
            }
        };
        self.checkpoint().release();
        let Some(spec) = self.round_to_nearest.as_ref().and_then(|specs| specs.weight(name)) else { return Ok(stored) };
        let (values, [rows, cols]) = (stored.into_values(), [linear.out_features, linear.in_features]);
        let rounded = QuantizedTensor::quantize(&values, rows, cols, spec);
        Ok(Matrix::Codes(rounded.map_err(|source| ModelError::Quantize { linear: name.to_owned(), source })?))
    }

    /// A linear's weight and bias, for packed products.
    fn stored_linear(&self, prefix: &str, linear: &Linear) -> Result<StoredLinear, ModelError> {
        let name = format!("{prefix}{}", linear.name.0);
        let weight = self.matrix(&name, linear)?;
        let bias = linear.bias.then(|| self.checkpoint().values(&format!("{name}.bias"))).transpose()?;
        Ok(StoredLinear { name: linear.name, shape: [linear.out_features, linear.in_features], weight, bias })
    }

    /// The checkpoint's name of a tensor outside the blocks. It differs for a head that rotation has untied: that is made from the
    /// embedding.
    pub fn stored_name<'a>(&self, outer: &'a str) -> &'a str {
        match &self.rotator {
            Some(rotator) if outer == self.decoder.head() => rotator.stored_head,
            _ => outer,
        }
    }

    fn load(&self, name: &str, device: Device) -> Result<Tensor, ModelError> {
        if let Some((packed, linear)) = self.weights.packed(name) {
            let shape = packed.linear_shape(linear)?.map(|n| n as i64);
            let tensor = of_matrix(packed.matrix(linear)?, shape, device);
            self.checkpoint().release();
            return Ok(tensor);
        }
        let tensor = tensor_of(&self.checkpoint().tensor(name)?, device);
        self.checkpoint().release();
        tensor
    }

    /// A tensor outside the blocks as it is used.
    fn load_outer(&self, name: &str, device: Device) -> Result<Tensor, ModelError> {
        let stored = self.load(name, device)?;
        let param = self.decoder.outer_params().into_iter().find(|param| param.name == name);
        Ok(param.map_or(stored.shallow_clone(), |param| param.value_of(stored)))
    }

    fn check_tensors(&self) -> Result<(), ModelError> {
        for param in self.decoder.outer_params() {
            self.check_shape(param.name, &param.shape)?;
        }
        for block_idx in 0..self.decoder.dims().n_layers {
            let (prefix, layout) = (self.decoder.block_prefix(block_idx), self.decoder.layer(block_idx));
            for param in &layout.params {
                self.check_shape(&format!("{prefix}{}", param.name), &param.shape)?;
            }
            for linear in &layout.linears {
                let name = format!("{prefix}{}", linear.name.0);
                let shape = [linear.out_features, linear.in_features];
                match &self.weights {
                    Weights::Dense(_) => {
                        let name = format!("{name}.weight");
                        let [rows, columns] = shape;
                        let shape = if self.transposed.contains(&name) { [columns, rows] } else { shape };
                        self.check_shape(&name, &shape)?;
                    }
                    Weights::Packed(packed) => {
                        let got = packed.linear_shape(&name)?;
                        if got != shape {
                            return Err(ModelError::Shape { name, got: got.to_vec(), expected: shape.to_vec() });
                        }
                    }
                }
                if linear.bias {
                    self.check_shape(&format!("{name}.bias"), &shape[..1])?;
                }
            }
        }
        Ok(())
    }

    fn check_shape(&self, name: &str, expected: &[usize]) -> Result<(), ModelError> {
        if let Some((packed, linear)) = self.weights.packed(name) {
            let got = packed.linear_shape(linear)?;
            if got == expected {
                return Ok(());
            }
            return Err(ModelError::Shape { name: name.to_owned(), got: got.to_vec(), expected: expected.to_vec() });
        }
        let view = self.checkpoint().tensor(name)?;
        if !matches!(view.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32) {
            return Err(FormatError::NotFloat { tensor: name.to_owned(), dtype: view.dtype }.into());
        }
        if view.shape == expected {
            return Ok(());
        }
        Err(ModelError::Shape { name: name.to_owned(), got: view.shape.to_vec(), expected: expected.to_vec() })
    }
}

/// The tensors outside the blocks, read on each call.
pub struct Outer<'a> {
    model: &'a Model,
    device: Device,
}

impl OuterOps for Outer<'_> {
    fn rows(&self, table: &str, ids: &Tensor) -> Result<Tensor, ModelError> {
        let mut shape = ids.size();
        let flat = Vec::<i64>::try_from(ids.view(-1)).expect("token ids are a vector of i64");
        let table_name = self.model.stored_name(table);
        let rows = match self.model.weights.packed(table_name) {
            Some((packed, linear)) => {
                let [vocab, width] = packed.linear_shape(linear)?;
                let values = packed.rows(linear, &checked_ids(&flat, vocab)?)?;
                Tensor::from_slice(&values).view([flat.len() as i64, width as i64])
            }
            None => rows_of(&self.model.checkpoint().tensor(table_name)?, &flat)?,
        };
        shape.push(rows.size()[1]);
        self.model.checkpoint().release();
        let rows = match &self.model.rotator {
            Some(rotator) => {
                let load = |name: &str| self.model.load_outer(name, Device::Cpu);
                rotator.rows(self.model.decoder.head(), table, rows, load)?
            }
            None => rows,
        };
        Ok(rows.view(&shape[..]).to_device(self.device))
    }

    fn param(&self, name: &str) -> Result<Tensor, ModelError> {
        let load = |name: &str| self.model.load_outer(name, self.device);
        match &self.model.rotator {
            Some(rotator) => rotator.outer(self.model.decoder.head(), name, load),
            None => load(name),
        }
    }
}
