//! The mixtures of llama.cpp, such as `q4_k_m`: which block type each matrix of a model has.
//!
//! The rules are those of `llama_tensor_get_type_impl` and `tensor_type_fallback` in llama.cpp's `src/llama-quant.cpp` (commit 007dbbf,
//! 2026), for dense models and without an importance matrix. Its counters run in the order of layers, so they are the layer here.

use std::fmt;
use std::str::FromStr;

use crate::spec::{Bits, GroupSize, Symmetry, WeightSpec};

/// A block type of GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names of llama.cpp, in which the underscore tells 4.0 from 40")]
pub enum Block {
    /// 4 bits in groups of 32; code 0 is the largest weight.
    Q4_0,
    /// 4 bits in groups of 32, with a minimum each.
    Q4_1,
    /// 5 bits in groups of 32; code 0 is the largest weight.
    Q5_0,
    /// 5 bits in groups of 32, with a minimum each.
    Q5_1,
    /// 8 bits in groups of 32, symmetric.
    Q8_0,
    /// 2 bits in groups of 16, with scales and minima of 4 bits.
    Q2_K,
    /// 3 bits in groups of 16, with scales of 6 bits.
    Q3_K,
    /// 4 bits in groups of 32, with scales and minima of 6 bits.
    Q4_K,
    /// 5 bits in groups of 32, with scales and minima of 6 bits.
    Q5_K,
    /// 6 bits in groups of 16, with scales of 8 bits.
    Q6_K,
}

use Block::{Q2_K, Q3_K, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};

impl Block {
    /// All block types.
    pub const ALL: [Self; 10] = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K];

    /// As schemes are written, such as `q4_k`.
    pub const fn name(self) -> &'static str {
        match self {
            Q4_0 => "q4_0",
            Q4_1 => "q4_1",
            Q5_0 => "q5_0",
            Q5_1 => "q5_1",
            Q8_0 => "q8_0",
            Q2_K => "q2_k",
            Q3_K => "q3_k",
            Q4_K => "q4_k",
            Q5_K => "q5_k",
            Q6_K => "q6_k",
        }
    }

    /// The grid of its weights.
    pub fn spec(self) -> WeightSpec {
        let integer = |bits, symmetry| {
            let group = GroupSize::channels(32).expect("32 is not 0");
            WeightSpec::integer(Bits::new(bits).expect("a width"), group, symmetry)
        };
        match self {
            Q4_0 => integer(4, Symmetry::FullRange),
            Q5_0 => integer(5, Symmetry::FullRange),
            Q8_0 => integer(8, Symmetry::Symmetric),
            Q4_1 | Q5_1 | Q2_K | Q3_K | Q4_K | Q5_K | Q6_K => {
                WeightSpec::named(self.name()).expect("these types have a name")
            }
        }
    }

    /// Weights of a block; the rows of a matrix consist of whole blocks.
    pub const fn weights(self) -> usize {
        match self {
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => 32,
            Q2_K | Q3_K | Q4_K | Q5_K | Q6_K => 256,
        }
    }

    /// The type that llama.cpp takes for rows of `in_features`: this one, or another with smaller blocks. `None` if they are not whole
    /// blocks of 32, which llama.cpp stores as f16.
    pub fn for_rows_of(self, in_features: usize) -> Option<Self> {
        let fits = |block: Self| in_features.is_multiple_of(block.weights());
        let smaller = match self {
            _ if fits(self) => self,
            Q2_K | Q3_K => Q4_0,
            Q4_K => Q5_0,
            Q5_K => Q5_1,
            Q6_K => Q8_0,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => return None,
        };
        fits(smaller).then_some(smaller)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a matrix does in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The token embedding.
    Embedding,
    /// The projection to the vocabulary.
    Head,
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// Queries, keys and values in one matrix, as in Falcon.
    QueryKeyValue,
    /// The attention's output projection.
    AttentionOutput,
    /// The MLP's gate.
    Gate,
    /// The MLP's first linear.
    Up,
    /// The MLP's last linear.
    Down,
}

impl Role {
    /// The role of a linear by its name in a Hugging Face checkpoint, such as `self_attn.q_proj`; `None` for a name that is not known.
    pub fn of_linear(name: &str) -> Option<Self> {
        Some(match name.rsplit('.').next()? {
            "q_proj" => Self::Query,
            "k_proj" => Self::Key,
            "v_proj" => Self::Value,
            "query_key_value" => Self::QueryKeyValue,
            "o_proj" | "out_proj" | "dense" => Self::AttentionOutput,
            "gate_proj" => Self::Gate,
            "up_proj" | "fc1" | "dense_h_to_4h" => Self::Up,
            "down_proj" | "fc2" | "dense_4h_to_h" => Self::Down,
            _ => return None,
        })
    }
}

/// What the choice depends on besides the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixtureModel {
    /// Number of blocks.
    pub layers: usize,
    /// Query heads for each key/value head.
    pub gqa: usize,
    /// Whether it is a Falcon, which has rules of its own.
    pub falcon: bool,
    /// Whether the head is the embedding.
    pub tied: bool,
}

impl MixtureModel {
    /// Layers at both ends, and every third between: those that `_m` mixtures give more bits.
    fn more_bits(self, layer: usize) -> bool {
        let n = self.layers;
        layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2
    }

    /// The models of 70 billion weights, whose values are an eighth of the queries. (llama.cpp counts Qwen1.5-72B, which has as many
    /// values as queries, among them.)
    fn is_70b(self) -> bool {
        self.layers == 80 && self.gqa > 1
    }
}

/// A mixture of block types, by its name in llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names of llama.cpp")]
pub enum Mixture {
    /// `q4_0`.
    Q4_0,
    /// `q4_1`.
    Q4_1,
    /// `q5_0`.
    Q5_0,
    /// `q5_1`.
    Q5_1,
    /// `q8_0`.
    Q8_0,
    /// `q2_k`.
    Q2_K,
    /// `q2_k_s`.
    Q2_K_S,
    /// `q3_k_s`.
    Q3_K_S,
    /// `q3_k_m`.
    Q3_K_M,
    /// `q3_k_l`.
    Q3_K_L,
    /// `q4_k_s`.
    Q4_K_S,
    /// `q4_k_m`.
    Q4_K_M,
    /// `q5_k_s`.
    Q5_K_S,
    /// `q5_k_m`.
    Q5_K_M,
    /// `q6_k`.
    Q6_K,
}

impl Mixture {
    /// All mixtures.
    pub const ALL: [Self; 15] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q2_K_S,
        Self::Q3_K_S,
        Self::Q3_K_M,
        Self::Q3_K_L,
        Self::Q4_K_S,
        Self::Q4_K_M,
        Self::Q5_K_S,
        Self::Q5_K_M,
        Self::Q6_K,
    ];

    /// In lower case, such as `q4_k_m`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q2_K_S => "q2_k_s",
            Self::Q3_K_S => "q3_k_s",
            Self::Q3_K_M => "q3_k_m",
            Self::Q3_K_L => "q3_k_l",
            Self::Q4_K_S => "q4_k_s",
            Self::Q4_K_M => "q4_k_m",
            Self::Q5_K_S => "q5_k_s",
            Self::Q5_K_M => "q5_k_m",
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Q2_K | Self::Q6_K => {
                self.base().name()
            }
        }
    }

    /// The type of all matrices that have no rule of their own.
    pub const fn base(self) -> Block {
        match self {
            Self::Q4_0 => Q4_0,
            Self::Q4_1 => Q4_1,
            Self::Q5_0 => Q5_0,
            Self::Q5_1 => Q5_1,
            Self::Q8_0 => Q8_0,
            Self::Q2_K | Self::Q2_K_S => Q2_K,
            Self::Q3_K_S | Self::Q3_K_M | Self::Q3_K_L => Q3_K,
            Self::Q4_K_S | Self::Q4_K_M => Q4_K,
            Self::Q5_K_S | Self::Q5_K_M => Q5_K,
            Self::Q6_K => Q6_K,
        }
    }

    /// The type of a matrix of layer `layer` with rows of `in_features`; for embedding and head the layer does not matter. `None` if
    /// the rows are not whole blocks of 32: llama.cpp stores such a matrix as f16.
    pub fn block(self, model: MixtureModel, role: Role, layer: usize, in_features: usize) -> Option<Block> {
        let chosen = match role {
            Role::Embedding if !model.tied => self.base(),
            Role::Embedding | Role::Head => self.head(model, in_features),
            Role::Value | Role::QueryKeyValue => self.value(model, layer),
            Role::Down => self.down(model, layer),
            Role::AttentionOutput => self.attention_output(model),
            Role::Query | Role::Key | Role::Gate | Role::Up => self.base(),
        };
        chosen.for_rows_of(in_features)
    }

    fn head(self, model: MixtureModel, in_features: usize) -> Block {
        let whole_blocks = in_features.is_multiple_of(self.base().weights());
        if self == Self::Q8_0 || model.falcon || !whole_blocks { Q8_0 } else { Q6_K }
    }

    fn value(self, model: MixtureModel, layer: usize) -> Block {
        let block = match self {
            Self::Q2_K | Self::Q2_K_S if model.gqa >= 4 => Q4_K,
            Self::Q2_K => Q3_K,
            Self::Q3_K_M if layer < 2 => Q5_K,
            Self::Q3_K_M => Q4_K,
            Self::Q3_K_L => Q5_K,
            Self::Q4_K_S if layer < 4 => Q5_K,
            Self::Q4_K_M | Self::Q5_K_M if model.more_bits(layer) => Q6_K,
            _ => self.base(),
        };
        match block {
            Q3_K | Q4_K if model.is_70b() => Q5_K,
            block => block,
        }
    }

    fn down(self, model: MixtureModel, layer: usize) -> Block {
        let n = model.layers;
        match self {
            Self::Q2_K => Q3_K,
            Self::Q2_K_S if layer < n / 8 => Q4_K,
            Self::Q3_K_M if layer < n / 16 => Q5_K,
            Self::Q3_K_M if !model.falcon || model.more_bits(layer) => Q4_K,
            Self::Q3_K_L if model.falcon => Q4_K,
            Self::Q3_K_L => Q5_K,
            Self::Q4_K_S if !model.falcon && layer < n / 8 => Q5_K,
            Self::Q4_K_M if model.falcon && layer >= n / 16 && model.more_bits(layer) => Q5_K,
            Self::Q4_K_M if model.falcon && layer >= n / 16 => Q4_K,
            Self::Q4_K_M if model.falcon => Q6_K,
            Self::Q4_K_M | Self::Q5_K_M if model.more_bits(layer) => Q6_K,
            _ => self.base(),
        }
    }

    fn attention_output(self, model: MixtureModel) -> Block {
        match self {
            Self::Q3_K_L if model.falcon => Q4_K,
            _ if model.falcon => self.base(),
            Self::Q2_K => Q3_K,
            Self::Q3_K_M => Q4_K,
            Self::Q3_K_L => Q5_K,
            _ => self.base(),
        }
    }
}

impl fmt::Display for Mixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mixture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mixture| mixture.name().eq_ignore_ascii_case(text));
        found.ok_or_else(|| format!("`{text}` is not a mixture: {}", Self::ALL.map(Self::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_7B: MixtureModel = MixtureModel { layers: 32, gqa: 1, falcon: false, tied: false };

    /// `values` and `downs` are one letter per layer, the digit of the block type.
    #[track_caller]
    fn check(mixture: &str, model: MixtureModel, rest: &str, output: &str, values: &str, downs: &str) {
        let mixture: Mixture = mixture.parse().expect("a mixture");
        let block = |role, layer| mixture.block(model, role, layer, 4096).expect("whole blocks");
        let digits = |role| -> String { (0..model.layers).map(|layer| &block(role, layer).name()[1..2]).collect() };
        for role in [Role::Query, Role::Key, Role::Gate, Role::Up] {
            assert!((0..model.layers).all(|layer| block(role, layer).name() == rest), "{mixture} {role:?}");
        }
        assert_eq!(block(Role::AttentionOutput, 0).name(), output, "{mixture}");
        assert_eq!(digits(Role::Value), values, "{mixture}");
        assert_eq!(digits(Role::QueryKeyValue), values, "{mixture}");
        assert_eq!(digits(Role::Down), downs, "{mixture}");
    }

    /// By hand from `llama_tensor_get_type_impl`.
    #[test]
    fn equals_the_rules_of_llama_cpp_layer_by_layer() {
        let all = |digit: &str| digit.repeat(32);
        let (two, three, four, five, six) = (all("2"), all("3"), all("4"), all("5"), all("6"));
        let more = "66664464464464464464464464466666"; // The first and last 4 of 32, and 6, 9, .. 27.
        assert_eq!(more.len(), 32);
        check("q2_k", LLAMA_7B, "q2_k", "q3_k", &three, &three);
        check("q2_k_s", LLAMA_7B, "q2_k", "q2_k", &two, &format!("4444{}", &two[4..]));
        check("q3_k_s", LLAMA_7B, "q3_k", "q3_k", &three, &three);
        check("q3_k_m", LLAMA_7B, "q3_k", "q4_k", &format!("55{}", &four[2..]), &format!("55{}", &four[2..]));
        check("q3_k_l", LLAMA_7B, "q3_k", "q5_k", &five, &five);
        check("q4_k_s", LLAMA_7B, "q4_k", "q4_k", &format!("5555{}", &four[4..]), &format!("5555{}", &four[4..]));
        check("q4_k_m", LLAMA_7B, "q4_k", "q4_k", more, more);
        check("q5_k_s", LLAMA_7B, "q5_k", "q5_k", &five, &five);
        check("q5_k_m", LLAMA_7B, "q5_k", "q5_k", &more.replace('4', "5"), &more.replace('4', "5"));
        check("q6_k", LLAMA_7B, "q6_k", "q6_k", &six, &six);
        check("q4_0", LLAMA_7B, "q4_0", "q4_0", &four, &four);
        check("q4_1", LLAMA_7B, "q4_1", "q4_1", &four, &four);
        check("q5_0", LLAMA_7B, "q5_0", "q5_0", &five, &five);
        check("q5_1", LLAMA_7B, "q5_1", "q5_1", &five, &five);
        check("q8_0", LLAMA_7B, "q8_0", "q8_0", &all("8"), &all("8"));

        // Four query heads to a key/value head.
        let grouped = MixtureModel { gqa: 4, ..LLAMA_7B };
        check("q2_k", grouped, "q2_k", "q3_k", &four, &three);
        check("q2_k_s", grouped, "q2_k", "q2_k", &four, &format!("4444{}", &two[4..]));

        let falcon = MixtureModel { gqa: 71, falcon: true, tied: true, ..LLAMA_7B };
        check("q2_k", falcon, "q2_k", "q2_k", &four, &three);
        check("q3_k_m", falcon, "q3_k", "q3_k", &format!("55{}", &four[2..]), "55443343343343343343343343344444");
        check("q3_k_l", falcon, "q3_k", "q4_k", &five, &four);
        check("q4_k_s", falcon, "q4_k", "q4_k", &format!("5555{}", &four[4..]), &four);
        check("q4_k_m", falcon, "q4_k", "q4_k", more, "66554454454454454454454454455555");
        check("q5_k_m", falcon, "q5_k", "q5_k", &more.replace('4', "5"), &more.replace('4', "5"));

        // 70 billion weights: values have at least 5 bits.
        let large = MixtureModel { layers: 80, gqa: 8, ..LLAMA_7B };
        let values =
            |name: &str, layer| name.parse::<Mixture>().unwrap().block(large, Role::Value, layer, 8192).unwrap().name();
        assert_eq!(
            [("q3_k_s", 0), ("q2_k", 0), ("q4_k_m", 0), ("q4_k_m", 10)].map(|(name, at)| values(name, at)),
            ["q5_k", "q5_k", "q6_k", "q5_k"]
        );
        assert_eq!(values("q4_0", 0), "q4_0");
    }

    #[test]
    fn embedding_and_head() {
        let tied = MixtureModel { tied: true, ..LLAMA_7B };
        let falcon = MixtureModel { falcon: true, ..LLAMA_7B };
        // Embedding and head; embedding if it is the head; head of a Falcon.
        let blocks = |mixture: Mixture, cols| {
            [(LLAMA_7B, Role::Embedding), (LLAMA_7B, Role::Head), (tied, Role::Embedding), (falcon, Role::Head)]
                .map(|(model, role)| mixture.block(model, role, 0, cols))
        };
        for mixture in Mixture::ALL {
            let head = if mixture == Mixture::Q8_0 { Q8_0 } else { Q6_K };
            assert_eq!(blocks(mixture, 4096), [mixture.base(), head, head, Q8_0].map(Some), "{mixture}");
        }
        // SmolLM2-135M.
        assert_eq!(blocks(Mixture::Q4_K_M, 576), [Q5_0, Q8_0, Q8_0, Q8_0].map(Some));
        assert_eq!(blocks(Mixture::Q2_K, 576), [Q4_0, Q8_0, Q8_0, Q8_0].map(Some));
        assert_eq!(blocks(Mixture::Q4_0, 576), [Q4_0, Q8_0, Q8_0, Q8_0].map(Some));
        assert_eq!(blocks(Mixture::Q4_0, 80), [None; 4]);
    }

    #[test]
    fn rows_that_are_not_whole_blocks_get_smaller_ones() {
        let smaller = Block::ALL.map(|block| block.for_rows_of(64));
        assert_eq!(smaller, [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_0, Q4_0, Q5_0, Q5_1, Q8_0].map(Some));
        assert_eq!(Block::ALL.map(|block| block.for_rows_of(512)), Block::ALL.map(Some));
        assert_eq!(Block::ALL.map(|block| block.for_rows_of(48)), [None; 10]);
    }

    #[test]
    fn mixtures_have_names() {
        for mixture in Mixture::ALL {
            assert_eq!(mixture.to_string().parse(), Ok(mixture));
            assert_eq!(mixture.to_string().to_uppercase().parse(), Ok(mixture));
        }
        let error = "q4_k_x".parse::<Mixture>().expect_err("must be refused");
        assert!(error.starts_with("`q4_k_x` is not a mixture: q4_0, ") && error.ends_with(", q6_k"), "{error}");
    }
}
