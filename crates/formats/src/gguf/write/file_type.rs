//! The name of a file's mixture of types, `general.file_type`.

use std::collections::BTreeMap;

use oq_quant_core::{Mixture, MixtureModel, Role};

use crate::gguf::TensorKind;

/// llama.cpp's number and name of a mixture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileType {
    pub(super) id: u32,
    /// As it stands in file names.
    pub(super) name: &'static str,
}

const fn file_type(id: u32, name: &'static str) -> FileType {
    FileType { id, name }
}

const fn of_mixture(mixture: Mixture) -> FileType {
    match mixture {
        Mixture::Q4_0 => file_type(2, "Q4_0"),
        Mixture::Q4_1 => file_type(3, "Q4_1"),
        Mixture::Q8_0 => file_type(7, "Q8_0"),
        Mixture::Q5_0 => file_type(8, "Q5_0"),
        Mixture::Q5_1 => file_type(9, "Q5_1"),
        Mixture::Q2_K => file_type(10, "Q2_K"),
        Mixture::Q3_K_S => file_type(11, "Q3_K_S"),
        Mixture::Q3_K_M => file_type(12, "Q3_K_M"),
        Mixture::Q3_K_L => file_type(13, "Q3_K_L"),
        Mixture::Q4_K_S => file_type(14, "Q4_K_S"),
        Mixture::Q4_K_M => file_type(15, "Q4_K_M"),
        Mixture::Q5_K_S => file_type(16, "Q5_K_S"),
        Mixture::Q5_K_M => file_type(17, "Q5_K_M"),
        Mixture::Q6_K => file_type(18, "Q6_K"),
        Mixture::Q2_K_S => file_type(21, "Q2_K_S"),
    }
}

/// The type of a model with most weights in this type; the `_S` mixtures have few others.
const fn mostly(kind: TensorKind) -> FileType {
    match kind {
        TensorKind::F32 => file_type(0, "F32"),
        TensorKind::F16 => file_type(1, "F16"),
        TensorKind::Bf16 => file_type(32, "BF16"),
        TensorKind::Q4_0 => of_mixture(Mixture::Q4_0),
        TensorKind::Q4_1 => of_mixture(Mixture::Q4_1),
        TensorKind::Q5_0 => of_mixture(Mixture::Q5_0),
        TensorKind::Q5_1 => of_mixture(Mixture::Q5_1),
        TensorKind::Q8_0 => of_mixture(Mixture::Q8_0),
        TensorKind::Q2_K => of_mixture(Mixture::Q2_K_S),
        TensorKind::Q3_K => of_mixture(Mixture::Q3_K_S),
        TensorKind::Q4_K => of_mixture(Mixture::Q4_K_S),
        TensorKind::Q5_K => of_mixture(Mixture::Q5_K_S),
        TensorKind::Q6_K => of_mixture(Mixture::Q6_K),
        TensorKind::IQ4_NL => file_type(25, "IQ4_NL"),
        TensorKind::IQ4_XS => file_type(30, "IQ4_XS"),
        // Named after the models that came in it, whose experts alone have it.
        TensorKind::MXFP4 => file_type(38, "MXFP4"),
    }
}

/// The mixture whose rules give all linears of the blocks the types that they have, `preferred` if that is one; else the type of most
/// weights in linears. `matrices` are roles, layers, shapes and types.
pub(super) fn of<'a>(
    model: MixtureModel,
    matrices: impl Iterator<Item = (Role, usize, &'a [usize], TensorKind)>,
    preferred: Option<Mixture>,
) -> FileType {
    let is_linear = |role: Role| !matches!(role, Role::Embedding | Role::Head);
    let linears: Vec<_> = matrices.filter(|(role, ..)| is_linear(*role)).collect();
    let explains = |mixture: &Mixture| {
        linears.iter().all(|&(role, layer, shape, kind)| {
            let block = mixture.block(model, role, layer, shape[1]);
            block.is_some_and(|block| kind.name().eq_ignore_ascii_case(block.name()))
        })
    };
    if let Some(mixture) = preferred.into_iter().chain(Mixture::ALL).find(explains) {
        return of_mixture(mixture);
    }
    let mut values: BTreeMap<&str, (usize, TensorKind)> = BTreeMap::new();
    for (_, _, shape, kind) in linears {
        values.entry(kind.name()).or_insert((0, kind)).0 += shape.iter().product::<usize>();
    }
    mostly(values.into_values().max_by_key(|(values, _)| *values).map_or(TensorKind::F16, |(_, kind)| kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: MixtureModel = MixtureModel { layers: 16, gqa: 1, falcon: false, tied: false };

    #[track_caller]
    fn check(kind: impl Fn(Role, usize) -> TensorKind, preferred: Option<Mixture>, expected: &str) {
        let roles = [Role::Embedding, Role::Query, Role::Value, Role::AttentionOutput, Role::Down];
        let matrices = (0..16).flat_map(|layer| roles.map(|role| (role, layer, kind(role, layer))));
        let matrices = matrices.map(|(role, layer, kind)| (role, layer, &[512, 512][..], kind));
        assert_eq!(of(MODEL, matrices, preferred).name, expected);
    }

    #[test]
    fn mixtures_are_recognized_by_their_linears() {
        for mixture in [Mixture::Q2_K, Mixture::Q3_K_M, Mixture::Q4_K_M, Mixture::Q5_K_M, Mixture::Q8_0] {
            let kind = |role, layer| {
                let block = mixture.block(MODEL, role, layer, 512).expect("whole blocks");
                match role {
                    Role::Embedding => TensorKind::F16,
                    _ => super::super::encode::kind_of(block.spec(), 512, false).expect("a type of its own"),
                }
            };
            check(kind, None, &mixture.name().to_uppercase());
        }
        check(|_, _| TensorKind::Q3_K, None, "Q3_K_S");
        check(|_, _| TensorKind::F16, Some(Mixture::Q4_0), "F16");
        check(|role, _| if role == Role::Value { TensorKind::Q6_K } else { TensorKind::Q4_K }, None, "Q4_K_S");
        check(|_, _| TensorKind::MXFP4, None, "MXFP4");
    }
}
