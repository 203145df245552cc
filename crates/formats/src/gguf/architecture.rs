//! The architectures of llama.cpp that are read and written.

use crate::packed::experts_of;

/// The key, without prefix, of how queries grow with the logarithm of their position.
pub(super) const TEMPERATURE: &str = "attention.temperature_scale";

/// An architecture. Two that llama.cpp runs as one are two here if transformers has a class for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    /// LLaMA and Mistral.
    Llama,
    /// LLaMA with experts.
    Mixtral,
    /// Ministral 3: LLaMA whose queries grow with their position.
    Ministral3,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 2 with experts, one of them for all tokens.
    Qwen2Moe,
    /// Qwen 3.
    Qwen3,
    /// Qwen 3 with experts.
    Qwen3Moe,
    /// Falcon 7B, 11B, 40B and 180B.
    Falcon,
    /// Gemma, the first version.
    Gemma,
    /// Gemma 2.
    Gemma2,
    /// The text part of Gemma 3.
    Gemma3,
    /// Phi-3 and Phi-4.
    Phi3,
    /// OLMo 2.
    Olmo2,
    /// OLMo 2 with a sliding window in most blocks.
    Olmo3,
    /// OLMo with experts.
    Olmoe,
    /// SmolLM3.
    SmolLm3,
    /// Granite 3, without experts.
    Granite,
    /// Granite 3 with experts.
    GraniteMoe,
    /// GPT-OSS.
    GptOss,
    /// GLM-4 of 2025.
    Glm4,
    /// Seed-OSS.
    SeedOss,
}

impl Architecture {
    const ALL: [Self; 21] = [
        Self::Llama,
        Self::Mixtral,
        Self::Ministral3,
        Self::Qwen2,
        Self::Qwen2Moe,
        Self::Qwen3,
        Self::Qwen3Moe,
        Self::Falcon,
        Self::Gemma,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::Olmo2,
        Self::Olmo3,
        Self::Olmoe,
        Self::SmolLm3,
        Self::Granite,
        Self::GraniteMoe,
        Self::GptOss,
        Self::Glm4,
        Self::SeedOss,
    ];

    /// `general.architecture`, the prefix of its keys; `model_type` of Hugging Face; the class there.
    const fn names(self) -> [&'static str; 3] {
        match self {
            Self::Llama => ["llama", "llama", "LlamaForCausalLM"],
            Self::Mixtral => ["llama", "mixtral", "MixtralForCausalLM"],
            Self::Ministral3 => ["mistral3", "ministral3", "Ministral3ForCausalLM"],
            Self::Qwen2 => ["qwen2", "qwen2", "Qwen2ForCausalLM"],
            Self::Qwen2Moe => ["qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM"],
            Self::Qwen3 => ["qwen3", "qwen3", "Qwen3ForCausalLM"],
            Self::Qwen3Moe => ["qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM"],
            Self::Falcon => ["falcon", "falcon", "FalconForCausalLM"],
            Self::Gemma => ["gemma", "gemma", "GemmaForCausalLM"],
            Self::Gemma2 => ["gemma2", "gemma2", "Gemma2ForCausalLM"],
            Self::Gemma3 => ["gemma3", "gemma3_text", "Gemma3ForCausalLM"],
            Self::Phi3 => ["phi3", "phi3", "Phi3ForCausalLM"],
            Self::Olmo2 => ["olmo2", "olmo2", "Olmo2ForCausalLM"],
            Self::Olmo3 => ["olmo2", "olmo3", "Olmo3ForCausalLM"],
            Self::Olmoe => ["olmoe", "olmoe", "OlmoeForCausalLM"],
            Self::SmolLm3 => ["smollm3", "smollm3", "SmolLM3ForCausalLM"],
            Self::Granite => ["granite", "granite", "GraniteForCausalLM"],
            Self::GraniteMoe => ["granitemoe", "granitemoe", "GraniteMoeForCausalLM"],
            Self::GptOss => ["gpt-oss", "gpt_oss", "GptOssForCausalLM"],
            Self::Glm4 => ["glm4", "glm4", "Glm4ForCausalLM"],
            Self::SeedOss => ["seed_oss", "seed_oss", "SeedOssForCausalLM"],
        }
    }

    /// Its name in GGUF, the prefix of its keys.
    pub(super) const fn name(self) -> &'static str {
        self.names()[0]
    }

    /// `model_type` of `config.json`.
    pub(super) const fn model_type(self) -> &'static str {
        self.names()[1]
    }

    /// The class of `architectures` in `config.json`.
    pub(super) const fn class(self) -> &'static str {
        self.names()[2]
    }

    /// The architecture of this name in GGUF; `has` says whether a file has a key, which is without prefix, with another value than 0.
    pub(super) fn of_name(name: &str, has: impl Fn(&str) -> bool) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|architecture| architecture.name() == name)?;
        Some(match found {
            Self::Llama if has("expert_count") => Self::Mixtral,
            Self::Olmo2 if has("attention.sliding_window") => Self::Olmo3,
            // Mistral Small 3 has this name too.
            Self::Ministral3 if !has(TEMPERATURE) => Self::Llama,
            other => other,
        })
    }

    /// The architecture of Hugging Face's `model_type`.
    pub(super) fn of_model_type(model_type: &str) -> Option<Self> {
        // llama.cpp runs Mistral as LLaMA.
        let name = if model_type == "mistral" { "llama" } else { model_type };
        Self::ALL.into_iter().find(|architecture| architecture.model_type() == name)
    }

    /// All names in GGUF, for errors.
    pub(super) fn known() -> String {
        let mut names = Self::ALL.map(Self::name).to_vec();
        names.dedup();
        names.join(", ")
    }

    /// All of Hugging Face's `model_type`, for errors.
    pub(super) fn model_types() -> String {
        [&["mistral"][..], &Self::ALL.map(Self::model_type)].concat().join(", ")
    }

    /// The key of the norms' epsilon, without prefix.
    pub(super) const fn norm_eps_key(self) -> &'static str {
        match self {
            Self::Falcon => "attention.layer_norm_epsilon",
            _ => "attention.layer_norm_rms_epsilon",
        }
    }

    /// Whether it has experts instead of one MLP.
    pub(super) fn has_experts(self) -> bool {
        experts_of(self.model_type()).is_some()
    }

    /// Every which block has no sliding window if a file does not say; none for architectures without windows.
    pub(super) const fn usual_period(self) -> Option<usize> {
        match self {
            Self::Gemma2 | Self::GptOss => Some(2),
            Self::Gemma3 => Some(6),
            Self::Olmo3 => Some(4),
            _ => None,
        }
    }

    /// Whether llama.cpp knows no head of its own for it, only the embedding.
    pub(super) const fn is_always_tied(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2)
    }

    /// Whether embeddings, scores, residuals and logits have factors.
    pub(super) const fn is_granite(self) -> bool {
        matches!(self, Self::Granite | Self::GraniteMoe)
    }

    /// Whether its norms multiply by one more than their weight, which GGUF files hold.
    pub(super) const fn is_gemma(self) -> bool {
        matches!(self, Self::Gemma | Self::Gemma2 | Self::Gemma3)
    }

    /// Whether llama.cpp rotates neighbouring values of a head where Hugging Face rotates the two halves.
    pub(super) const fn is_interleaved(self) -> bool {
        self.is_granite() || matches!(self, Self::Llama | Self::Mixtral | Self::Ministral3 | Self::SmolLm3)
    }

    /// Whether some heads' values may not be rotated: those after the first `rope.dimension_count`.
    pub(super) const fn rotates_partly(self) -> bool {
        matches!(self, Self::Phi3 | Self::Glm4)
    }
}
