//! How checkpoints name their tensors, and which of them a model is made of.

use std::collections::BTreeSet;

use oq_formats::{Checkpoint, FormatError};

use crate::decoder::{Decoder, LM_HEAD};
use crate::error::ModelError;

/// Splits the tensors that hold parts of several linears. Returns the names of the weights that are stored `[in, out]`.
pub(crate) fn split_fused(checkpoint: &mut Checkpoint, decoder: &dyn Decoder) -> Result<BTreeSet<String>, ModelError> {
    let mut transposed = BTreeSet::new();
    // A config with more layers than there are tensors is refused later.
    let n_layers = decoder.dims().n_layers.min(checkpoint.names().len());
    for layer in 0..n_layers {
        let prefix = decoder.block_prefix(layer);
        for fused in decoder.fused(layer) {
            let name = format!("{prefix}{}", fused.name);
            if !checkpoint.contains(&name) {
                continue;
            }
            let parts = fused.parts.iter().map(|part| format!("{prefix}{part}"));
            if fused.transposed {
                transposed.extend(parts.clone());
            }
            checkpoint.split(&name, parts, &fused.shape)?;
        }
    }
    Ok(transposed)
}

/// Prefixes of the text model's tensors in larger models, each with its replacement.
const OF_TEXT: [(&str, &str); 4] = [
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.text_model.", "model."),
];

/// The tensors of a larger model's text model, by their usual names.
pub(crate) fn text_model(mut checkpoint: Checkpoint, decoder: &dyn Decoder) -> Checkpoint {
    let of_text = |name: &str| {
        OF_TEXT.iter().find_map(|(prefix, replacement)| Some(format!("{replacement}{}", name.strip_prefix(prefix)?)))
    };
    let embedding = decoder.outer_params()[0].name;
    let is_larger =
        !checkpoint.contains(embedding) && checkpoint.names().any(|name| of_text(name).as_deref() == Some(embedding));
    if !is_larger {
        return checkpoint;
    }
    let is_of_text = |name: &str| of_text(name).is_some() || name == LM_HEAD;
    let left_out = checkpoint.retain(is_of_text);
    let mut parts: BTreeSet<&str> = BTreeSet::new();
    for name in &left_out {
        let name = name.strip_prefix("model.").unwrap_or(name);
        parts.insert(name.split('.').next().unwrap_or(name));
    }
    if !left_out.is_empty() {
        let parts = parts.into_iter().collect::<Vec<_>>().join(", ");
        tracing::warn!("only the text model is read: {} tensors are left out ({parts})", left_out.len());
    }
    checkpoint.rename(|name| of_text(&name).unwrap_or(name))
}

/// Adds the first part of tensor names, if it is missing.
///
/// Some checkpoints are published as the base model without a head. Their names lack the first part: `decoder.layers.0.` instead of
/// `model.decoder.layers.0.`.
pub(crate) fn with_model_prefix(checkpoint: Checkpoint, decoder: &dyn Decoder) -> Checkpoint {
    let embedding = decoder.outer_params()[0].name;
    match embedding.split_once('.') {
        Some((first, rest)) if !checkpoint.contains(embedding) && checkpoint.contains(rest) => {
            let is_head = |name: &str| name.starts_with("lm_head.");
            checkpoint.rename(|name| if is_head(&name) { name } else { format!("{first}.{name}") })
        }
        _ => checkpoint,
    }
}

/// Prefixes that wrappers add to all tensor names, and how to save the model without them.
const WRAPPERS: [(&str, &str); 4] = [
    ("module.", "it was saved from DataParallel or DistributedDataParallel: save the model in it (`model.module`)"),
    ("_orig_mod.", "it was saved from torch.compile: save the model in it (`model._orig_mod`)"),
    ("base_model.model.", "it was saved from peft: save what `merge_and_unload()` gives"),
    (
        "language_model.",
        "it is the language model of a larger one whose config.json has no `text_config` of a known model_type: save that part alone, \
         with a config.json of its own",
    ),
];

/// Refuses a checkpoint whose tensor names have an unexpected prefix.
pub(crate) fn refuse_prefix(checkpoint: &Checkpoint, decoder: &dyn Decoder) -> Result<(), ModelError> {
    let embedding = decoder.outer_params()[0].name;
    if checkpoint.contains(embedding) {
        return Ok(());
    }
    // Multimodal models of transformers insert a name of their own: `model.language_model.embed_tokens.weight`.
    let ends = [embedding, embedding.split_once('.').map_or(embedding, |(_, rest)| rest)];
    let found = ends.into_iter().find_map(|end| {
        let found = checkpoint.names().find(|name| name.ends_with(&format!(".{end}")))?;
        Some(found.strip_suffix(end).expect("the name ends with it"))
    });
    let Some(prefix) = found else { return Ok(()) };
    let known = WRAPPERS.iter().find(|(wrapper, _)| prefix.contains(wrapper));
    Err(ModelError::Prefixed {
        dir: checkpoint.dir().to_owned(),
        prefix: prefix.to_owned(),
        tensor: embedding,
        mend: known.map_or("rename its tensors", |(_, mend)| mend),
    })
}

/// Whether a checkpoint of a tied model has a head that differs from the embedding.
pub(crate) fn has_other_head(checkpoint: &Checkpoint, decoder: &dyn Decoder) -> Result<bool, FormatError> {
    let tied = decoder.head();
    if tied == LM_HEAD || !(checkpoint.contains(LM_HEAD) && checkpoint.contains(tied)) {
        return Ok(false);
    }
    let [head, embedding] = [checkpoint.tensor(LM_HEAD)?, checkpoint.tensor(tied)?];
    // In a PyTorch checkpoint, one tensor can have two names.
    let is_one = head.bytes.as_ptr() == embedding.bytes.as_ptr();
    Ok(head.shape == embedding.shape && !is_one && !checkpoint.is_same(LM_HEAD, (checkpoint, tied))?)
}
