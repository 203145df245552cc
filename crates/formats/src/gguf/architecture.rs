//! The architectures of llama.cpp that are read and written.

/// An architecture, `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    /// LLaMA and Mistral.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, without experts.
    Qwen3,
    /// Falcon 7B, 11B, 40B and 180B.
    Falcon,
}

impl Architecture {
    pub(super) const ALL: [Self; 4] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Falcon];

    /// Its name in GGUF, the prefix of its keys.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Falcon => "falcon",
        }
    }

    /// The architecture of Hugging Face's `model_type`.
    pub(super) fn of_model_type(model_type: &str) -> Option<Self> {
        // llama.cpp runs Mistral as LLaMA. The other names are the same.
        let name = if model_type == "mistral" { "llama" } else { model_type };
        Self::ALL.into_iter().find(|architecture| architecture.name() == name)
    }

    /// The class of `architectures` in `config.json`.
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Falcon => "FalconForCausalLM",
        }
    }

    /// The key of the norms' epsilon, without prefix.
    pub(super) const fn norm_eps_key(self) -> &'static str {
        match self {
            Self::Falcon => "attention.layer_norm_epsilon",
            Self::Llama | Self::Qwen2 | Self::Qwen3 => "attention.layer_norm_rms_epsilon",
        }
    }
}
