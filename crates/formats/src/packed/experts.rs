//! How other programs store a model's experts.

/// How the files that other programs read hold the experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experts {
    /// Each linear of each expert is a tensor.
    Apart,
    /// The same linear of all experts is one tensor. Packed, they are linears of their own, which other programs do not know.
    Together,
}

/// The experts of a family by its `model_type`; none for families without experts.
pub fn experts_of(model_type: &str) -> Option<Experts> {
    match model_type {
        "mixtral" | "qwen2_moe" | "qwen3_moe" | "olmoe" => Some(Experts::Apart),
        "gpt_oss" | "granitemoe" => Some(Experts::Together),
        _ => None,
    }
}
