//! A whole model in memory.

use std::cell::RefCell;
use std::collections::BTreeMap;

use oq_models::{Block, Form, Head, Model, ModelError, OuterOps};
use tch::{Device, Tensor};

/// A model with all its blocks and its head in memory. Rows of the embedding are read from the file when they are needed.
pub struct Loaded {
    model: Model,
    blocks: Vec<Block>,
    head: Head,
    /// The final norm and similar tensors, kept after their first use.
    params: RefCell<BTreeMap<String, Tensor>>,
    device: Device,
}

impl Loaded {
    /// Loads every block in the model's form. `progress` gets the number of blocks loaded and their total.
    pub fn new(model: Model, device: Device, progress: &mut dyn FnMut(usize, usize)) -> Result<Self, ModelError> {
        let n_layers = model.decoder().dims().n_layers;
        let blocks = (0..n_layers).map(|block_idx| {
            let block = model.block(block_idx, device);
            progress(block_idx + 1, n_layers);
            block
        });
        let blocks = blocks.collect::<Result<_, _>>()?;
        let head = model.head(device)?;
        // Check what comes before and after the blocks here, before a sequence begins.
        let outer = model.outer(device);
        let vectors = model.decoder().outer_params().into_iter().filter(|param| param.shape.len() == 1);
        let params = vectors.map(|param| Ok((param.name.to_owned(), outer.param(param.name)?)));
        let params = params.collect::<Result<_, ModelError>>()?;
        Ok(Self { model, blocks, head, params: RefCell::new(params), device })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How matrices are held and multiplied.
    pub fn form(&self) -> Form {
        self.model.form()
    }

    /// Bytes of weights that are read for each token: all blocks and the head.
    pub fn weight_bytes(&self) -> usize {
        self.blocks.iter().map(Block::bytes).sum::<usize>() + self.head.bytes()
    }

    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// The device it runs on.
    pub fn device(&self) -> Device {
        self.device
    }
}

impl OuterOps for Loaded {
    fn rows(&self, table: &str, ids: &Tensor) -> Result<Tensor, ModelError> {
        self.model.outer(self.device).rows(table, ids)
    }

    fn param(&self, name: &str) -> Result<Tensor, ModelError> {
        if let Some(param) = self.params.borrow().get(name) {
            return Ok(param.shallow_clone());
        }
        let param = self.model.outer(self.device).param(name)?;
        self.params.borrow_mut().insert(name.to_owned(), param.shallow_clone());
        Ok(param)
    }
}
