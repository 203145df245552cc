//! The metadata of a model: what it is, its [`Shape`], and its licence.

use std::path::Path;

use super::pairs::Pairs;
use crate::gguf::architecture::{Architecture, TEMPERATURE};
use crate::gguf::shape::{RopeScaling, Shape, yarn_attention};

/// Version of the block types, `GGML_QNT_VERSION`.
const QUANTIZATION_VERSION: u32 = 2;

/// `general.*`. `values` is the number of weights, `file_type` llama.cpp's number for the mixture of types.
pub(super) fn general(shape: &Shape, name: &str, dir: &Path, values: usize, file_type: u32) -> Pairs {
    let mut pairs = Pairs::default();
    pairs.put("general.architecture", shape.architecture.name());
    pairs.put("general.type", "model");
    pairs.put("general.name", name);
    pairs.put("general.size_label", size_label(values));
    if let Some(licence) = licence(dir) {
        pairs.put("general.license", licence);
    }
    pairs.put("general.quantization_version", QUANTIZATION_VERSION);
    pairs.put("general.file_type", file_type);
    pairs
}

/// The keys under the architecture's prefix.
pub(super) fn architecture(shape: &Shape) -> Pairs {
    let mut pairs = Pairs::default();
    let prefix = shape.architecture.name();
    let mut size = |key: &str, value: usize| pairs.put(format!("{prefix}.{key}"), value as u32);
    size("vocab_size", shape.vocab);
    size("context_length", shape.context);
    size("embedding_length", shape.hidden);
    size("block_count", shape.layers);
    size("feed_forward_length", shape.intermediate);
    size("attention.head_count", shape.heads);
    size("attention.head_count_kv", shape.kv_heads);
    size("attention.key_length", shape.head_dim);
    size("attention.value_length", shape.head_dim);
    size("rope.dimension_count", shape.rope.rotated);
    if let Some(experts) = shape.experts {
        size("expert_count", experts.count);
        size("expert_used_count", experts.used);
        size("expert_feed_forward_length", experts.width);
        if let Some(width) = experts.shared {
            size("expert_shared_feed_forward_length", width);
        }
    }
    if let Some(window) = &shape.window {
        size("attention.sliding_window", window.positions);
        if window.period() != shape.architecture.usual_period() {
            size("attention.sliding_window_pattern", window.period().unwrap_or_default());
        }
    }
    let mut number = |key: &str, value: f64| pairs.put(format!("{prefix}.{key}"), value);
    number(shape.architecture.norm_eps_key(), shape.norm_eps);
    number("rope.freq_base", shape.rope.theta);
    for (key, cap) in ["attn_logit_softcapping", "final_logit_softcapping"].into_iter().zip(shape.caps) {
        if let Some(cap) = cap {
            number(key, cap);
        }
    }
    if let Some(theta) = shape.rope.local_theta {
        number("rope.freq_base_swa", theta);
    }
    if let Some(factors) = shape.multipliers {
        number("embedding_scale", factors.embedding);
        number("residual_scale", factors.residual);
        number("attention.scale", factors.attention);
        number("logit_scale", factors.logits);
    }
    if let Some(temperature) = shape.temperature {
        number(TEMPERATURE, temperature);
    }
    match shape.rope.scaling {
        // The factors of Llama 3 are a tensor.
        RopeScaling::None | RopeScaling::Llama3 { .. } => {}
        RopeScaling::Linear { factor } => {
            number("rope.scaling.factor", factor);
            pairs.put(format!("{prefix}.rope.scaling.type"), "linear");
        }
        RopeScaling::Yarn { factor, original, attention, .. } => {
            number("rope.scaling.factor", factor);
            // llama.cpp multiplies by YaRN's own factor.
            let rest = attention / yarn_attention(factor, 1.0);
            if (rest - 1.0).abs() > 1e-6 {
                number("rope.scaling.attn_factor", rest);
            }
            pairs.put(format!("{prefix}.rope.scaling.original_context_length"), original as u32);
            pairs.put(format!("{prefix}.rope.scaling.type"), "yarn");
        }
        // The factors are tensors.
        RopeScaling::Long { original, attention, .. } => {
            number("rope.scaling.attn_factor", attention);
            pairs.put(format!("{prefix}.rope.scaling.original_context_length"), original as u32);
        }
    }
    if shape.architecture == Architecture::Phi3 {
        // Its rotations are those of long contexts or not by the length that it was trained with; 0 is no window.
        pairs.put("phi3.attention.sliding_window", 0u32);
    }
    if shape.architecture == Architecture::Falcon {
        // Queries, keys and values are gathered.
        pairs.put("falcon.tensor_data_layout", "jploski");
    }
    pairs
}

/// Weights in two digits or more with a unit, such as `135M` and `1.2B`.
fn size_label(values: usize) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")];
    let (unit, letter) = units.into_iter().find(|(unit, _)| values as f64 > *unit).unwrap_or((1e3, "K"));
    let scaled = values as f64 / unit;
    if scaled.round() >= 10.0 { format!("{scaled:.0}{letter}") } else { format!("{scaled:.1}{letter}") }
}

/// The licence that the model card names: `license:` between the first two lines `---` of README.md.
fn licence(dir: &Path) -> Option<String> {
    let card = std::fs::read_to_string(dir.join("README.md")).ok()?;
    let mut lines = card.lines();
    (lines.next()?.trim_end() == "---").then_some(())?;
    let named = lines.take_while(|line| line.trim_end() != "---").find_map(|line| line.strip_prefix("license:"))?;
    let name = named.trim().trim_matches(['"', '\'']);
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_named_as_people_name_them() {
        let labels = [134_515_008, 1_235_814_400, 8_030_261_248, 70_553_706_496, 900_000, 500].map(size_label);
        assert_eq!(labels, ["135M", "1.2B", "8.0B", "71B", "900K", "0.5K"]);
    }

    #[test]
    fn licences_come_from_the_card() {
        let dir = tempfile::tempdir().unwrap();
        let of = |card: &str| {
            std::fs::write(dir.path().join("README.md"), card).unwrap();
            licence(dir.path())
        };
        assert_eq!(of("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n").as_deref(), Some("apache-2.0"));
        assert_eq!(of("# A model\n---\nlicense: mit\n---\n"), None);
        assert_eq!(of("---\nlanguage: en\n---\nlicense: mit\n"), None);
    }
}
