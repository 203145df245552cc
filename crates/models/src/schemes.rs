//! How a scheme quantizes each linear of a model.

use std::collections::BTreeSet;

use oq_formats::Quantization;
use oq_quant_core::{
    Bits, GroupSize, MixtureModel, Override, OwnWeight, QuantSpec, Role, Scheme, Storage, Symmetry, TensorError,
    WeightSpec,
};

use crate::decoder::{Decoder, LM_HEAD};
use crate::error::{ModelError, OverrideError};
use crate::structure::{Layer, Linear, LinearName};

/// How a linear of a layer is quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearSpec {
    /// Its name.
    pub name: LinearName,
    /// Its grid; none in full precision.
    pub weight: Option<WeightSpec>,
    /// Whether an override says how many bits it has, so that no choice of widths changes them.
    pub is_pinned: bool,
}

/// How `scheme` quantizes the linears of a layer, in the layer's order.
///
/// # Errors
/// Names the first linear whose rows do not split into groups or blocks.
pub fn specs_of_layer<'a>(
    decoder: &dyn Decoder,
    scheme: impl Into<Scheme<'a>>,
    layer: usize,
) -> Result<Vec<LinearSpec>, ModelError> {
    let (scheme, layout, n_layers) = (scheme.into(), decoder.layer(layer), decoder.dims().n_layers);
    let of_linear = |linear: &Linear| {
        let name = format!("{}{}", decoder.block_prefix(layer), linear.name.0);
        let own = scheme.own(&name, layer, n_layers);
        let weight = match own {
            Some(OwnWeight::Float) => Ok(None),
            Some(OwnWeight::Type(weight)) => Ok(Some(weight)),
            Some(parts) => spec_of(decoder, scheme.spec, (layer, &layout), linear).map(|spec| parts.over(spec)),
            None => spec_of(decoder, scheme.spec, (layer, &layout), linear).map(Some),
        };
        let checked = weight.and_then(|weight| {
            weight.map_or(Ok(()), |spec| spec.check_row(linear.in_features))?;
            Ok(LinearSpec { name: linear.name, weight, is_pinned: own.is_some_and(OwnWeight::has_width) })
        });
        checked.map_err(|source| ModelError::Quantize { linear: name, source })
    };
    layout.linears.iter().map(of_linear).collect()
}

/// The same for all linears of a model.
///
/// # Errors
/// As [`specs_of_layer`]; also when an override covers nothing, or nothing is quantized.
pub fn quantization_by<'a>(decoder: &dyn Decoder, scheme: impl Into<Scheme<'a>>) -> Result<Quantization, ModelError> {
    let scheme = scheme.into();
    check_overrides(decoder, scheme.overrides)?;
    let layers = (0..decoder.dims().n_layers).map(|layer| {
        let prefix = decoder.block_prefix(layer);
        let specs = specs_of_layer(decoder, scheme, layer)?.into_iter();
        Ok(specs.map(move |spec| (format!("{prefix}{}", spec.name.0), spec.weight)))
    });
    let layers = layers.collect::<Result<Vec<_>, ModelError>>()?;
    let QuantSpec { weight, act, mixture } = scheme.spec;
    if mixture.is_none() && scheme.overrides.is_empty() {
        return Ok(scheme.spec.into());
    }
    let linears: Vec<_> = layers.into_iter().flatten().collect();
    if linears.iter().all(|(_, spec)| spec.is_none()) {
        return Err(OverrideError::NothingLeft.into());
    }
    // Under a name of which nothing would be in the model.
    if mixture.is_some() && weight.storage == Storage::Super && !linears.iter().any(|(_, spec)| *spec == Some(weight)) {
        let layout = decoder.layer(0);
        let linear = &layout.linears[0];
        let source = TensorError::NoSuperBlocks { spec: weight, in_features: linear.in_features };
        return Err(ModelError::Quantize { linear: format!("{}{}", decoder.block_prefix(0), linear.name.0), source });
    }
    Ok(Quantization::of_linears(act, linears))
}

/// How the matrices outside the blocks are quantized; none in full precision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OuterSpecs {
    /// The embedding, which may be the head too.
    pub embedding: Option<WeightSpec>,
    /// A head of its own.
    pub head: Option<WeightSpec>,
}

impl OuterSpecs {
    /// To this many bits, else as `scheme` says where its groups divide the rows. `unties`: whether a head that is the embedding becomes
    /// a matrix of its own.
    ///
    /// # Errors
    /// When only the head is to be quantized and is the embedding, or no group divides the rows.
    pub fn new(
        decoder: &dyn Decoder,
        scheme: QuantSpec,
        (head, embedding): (Option<Bits>, Option<Bits>),
        unties: bool,
    ) -> Result<Self, ModelError> {
        let params = decoder.outer_params();
        let is_tied = decoder.head() == params[0].name && !unties;
        if is_tied && head.is_some() && head != embedding {
            return Err(OverrideError::TiedHead.into());
        }
        let spec = |name: &str, bits: Option<Bits>| {
            let param = params.iter().find(|param| param.name == name).unwrap_or(&params[0]);
            let made = bits.map(|bits| outer_spec(scheme.weight, bits, param.shape[1])).transpose();
            made.map_err(|source| ModelError::Quantize { linear: name.to_owned(), source })
        };
        let head = if is_tied { None } else { spec(decoder.head(), head)? };
        Ok(Self { embedding: spec(params[0].name, embedding)?, head })
    }

    /// Of a tensor of the model, by its name.
    pub fn of(&self, decoder: &dyn Decoder, tensor: &str) -> Option<WeightSpec> {
        match tensor {
            LM_HEAD => self.head,
            _ if tensor == decoder.outer_params()[0].name => self.embedding,
            _ => None,
        }
    }
}

/// Types with scales of their own have no place for other matrices: these get symmetric groups of 32, which ggml has too.
fn outer_spec(like: WeightSpec, bits: Bits, width: usize) -> Result<WeightSpec, TensorError> {
    let sizes = [128, 64, 32].map(|n| GroupSize::channels(n).expect("not 0"));
    let (symmetry, wanted) = match like.storage {
        Storage::Half => (like.symmetry, like.group),
        _ => (Symmetry::Symmetric, sizes[2]),
    };
    let group = [wanted].into_iter().chain(sizes).find(|group| group.divides(width));
    let group = group.ok_or(TensorError::GroupDoesNotDivide { group: 32, in_features: width })?;
    Ok(WeightSpec::integer(bits, group, symmetry))
}

/// Names that an error suggests.
const SUGGESTED: usize = 3;

/// Refuses overrides for layers or linears that the model does not have.
fn check_overrides(decoder: &dyn Decoder, overrides: &[Override]) -> Result<(), OverrideError> {
    if overrides.is_empty() {
        return Ok(());
    }
    let n_layers = decoder.dims().n_layers;
    let of_layer = |layer| {
        let prefix = decoder.block_prefix(layer);
        decoder.layer(layer).linears.into_iter().map(move |linear| (layer, prefix.clone(), linear.name.0))
    };
    let linears: Vec<_> = (0..n_layers).flat_map(of_layer).collect();
    for asked in overrides {
        if let Some(layers) = asked.missing_layer(n_layers) {
            return Err(OverrideError::Layers { asked: asked.to_string(), layers, n_layers });
        }
        let covers =
            |(layer, prefix, name): &(usize, String, &str)| asked.covers(&format!("{prefix}{name}"), *layer, n_layers);
        if !linears.iter().any(covers) {
            let names = linears.iter().flat_map(|(_, prefix, name)| [format!("*.{name}"), format!("{prefix}{name}")]);
            let near = nearest(&asked.names(), names.collect());
            return Err(OverrideError::Nothing { asked: asked.to_string(), near });
        }
    }
    Ok(())
}

/// The names that are most like a pattern.
fn nearest(pattern: &str, names: BTreeSet<String>) -> String {
    let mut names: Vec<_> =
        names.into_iter().map(|name| (strsim::normalized_damerau_levenshtein(pattern, &name), name)).collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<String> = names.into_iter().take(SUGGESTED).map(|(_, name)| name).collect();
    names.join(", ")
}

fn spec_of(
    decoder: &dyn Decoder,
    scheme: QuantSpec,
    (layer, layout): (usize, &Layer),
    linear: &Linear,
) -> Result<WeightSpec, TensorError> {
    let Some(mixture) = scheme.mixture else { return Ok(scheme.weight) };
    let role = Role::of_linear(linear.name.0).ok_or(TensorError::NoRole { mixture })?;
    let attention = layout.attention;
    let model = MixtureModel {
        layers: decoder.dims().n_layers,
        gqa: attention.n_heads / attention.n_kv_heads.max(1),
        // The only family whose queries, keys and values are one matrix.
        falcon: layout.linears.iter().any(|linear| Role::of_linear(linear.name.0) == Some(Role::QueryKeyValue)),
        tied: false, // Matters outside the blocks only.
    };
    let block = mixture.block(model, role, layer, linear.in_features);
    let none = TensorError::NoBlocks { mixture, in_features: linear.in_features };
    block.map(|block| block.spec()).ok_or(none)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::family::decoder_of;

    fn decoder() -> Box<dyn Decoder> {
        let config = json!({"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
            "num_attention_heads": 4, "vocab_size": 32});
        decoder_of(&config).unwrap()
    }

    fn by(scheme: &str, overrides: &[&str]) -> Result<Quantization, ModelError> {
        let overrides: Vec<Override> = overrides.iter().map(|text| text.parse().unwrap()).collect();
        quantization_by(&*decoder(), Scheme { spec: scheme.parse().unwrap(), overrides: &overrides })
    }

    #[test]
    fn overrides_decide_where_they_match() {
        let found = by("w2a16g64", &["*.down_proj=w8g32", "layers:first,last=float", "*.3.*.v_proj=w4"]).unwrap();
        let of = |name: &str| {
            found.weight(&format!("model.layers.{name}")).map_or("float".to_owned(), |weight| weight.to_string())
        };
        assert_eq!(of("1.mlp.down_proj"), "w8g32");
        assert_eq!(of("1.mlp.up_proj"), "w2g64");
        assert_eq!([of("0.mlp.down_proj"), of("3.self_attn.q_proj")], ["float"; 2]);
        assert_eq!(of("3.self_attn.v_proj"), "w4g64");
        assert_eq!(found.left_out().count(), 7 + 6);
        let mixture = by("q4_k_m", &["*.q_proj=q8_0", "layers:1:*.o_proj=w5"]).unwrap();
        assert_eq!(mixture.weight("model.layers.2.self_attn.q_proj").unwrap().to_string(), "w8g32sym");
        assert_eq!(mixture.weight("model.layers.1.self_attn.o_proj").unwrap().to_string(), "w5g32");
        assert_eq!(mixture.weight("model.layers.2.self_attn.o_proj").unwrap().to_string(), "q4_k");
        // Nothing differs: the same as without.
        assert_eq!(by("w2a16g64", &["*=w2"]).unwrap(), by("w2a16g64", &[]).unwrap());
    }

    #[test]
    fn matrices_outside_the_blocks_get_the_groups_that_fit() {
        let bits = Bits::new(8).ok();
        let of = |scheme: &str, bits, unties| {
            let found = OuterSpecs::new(&*decoder(), scheme.parse().unwrap(), bits, unties)?;
            let text = |spec: Option<WeightSpec>| spec.map_or("float".to_owned(), |spec| spec.to_string());
            Ok::<_, ModelError>([text(found.head), text(found.embedding)])
        };
        assert_eq!(of("w2a16g64", (bits, None), false).unwrap(), ["w8g64", "float"]);
        assert_eq!(of("w2a16g96sym", (None, bits), false).unwrap(), ["float", "w8g128sym"]);
        assert_eq!(of("w3a16", (bits, bits), false).unwrap(), ["w8", "w8"]);
        assert_eq!(of("q4_k_m", (bits, bits), false).unwrap(), ["w8g32sym", "w8g32sym"]);
        let config = json!({"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
            "intermediate_size": 512, "vocab_size": 32, "tie_word_embeddings": true});
        let tied = decoder_of(&config).unwrap();
        let of = |bits, unties| OuterSpecs::new(&*tied, "w2a16g64".parse().unwrap(), bits, unties);
        let message = of((bits, None), false).unwrap_err().to_string();
        assert_eq!(message, "the head is the embedding, one table: --embed-bits quantizes both");
        let both = of((None, bits), false).unwrap();
        assert_eq!((both.head, both.of(&*tied, tied.head()).is_some()), (None, true));
        assert_eq!(of((bits, bits), false).unwrap(), both);
        assert!(of((bits, None), true).unwrap().head.is_some());
    }

    #[test]
    fn overrides_that_do_not_suit_the_model_are_refused() {
        #[track_caller]
        fn check(overrides: &[&str], message: &str) {
            assert_eq!(by("w2a16g64", overrides).expect_err("must be refused").to_string(), message);
        }
        check(
            &["*.mlp.down_prj=w8"],
            "override *.mlp.down_prj=w8 matches no linear; names near it: *.mlp.down_proj, *.mlp.gate_proj, *.mlp.up_proj",
        );
        check(&["layers:0,4=float"], "override layers:first,4=float: there is no layer 4, only first (0) to last (3)");
        check(
            &["*.down_proj=w8g96"],
            "model.layers.0.mlp.down_proj: group 96 does not divide in_features 512; take one that does, such as g64",
        );
        check(&["*=float"], "the overrides leave all linears in full precision, and nothing to quantize");
    }
}
