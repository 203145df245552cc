//! The linears of all blocks by their names. Those of experts are taken together.

use oq_recipe::{BlockDetails, LinearDetails};

/// A name with `*` for each part of it that is a number.
pub(crate) fn kind_of(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}

/// The last part of a name that is not the same for many: `down_proj`, `experts.*.w1`.
pub(crate) fn short(kind: &str) -> &str {
    match kind.rfind(".*.") {
        Some(star) => &kind[kind[..star].rfind('.').map_or(0, |dot| dot + 1)..],
        None => kind.rsplit('.').next().unwrap_or(kind),
    }
}

/// All kinds, in the order of the layers.
pub(crate) fn kinds(details: &[BlockDetails]) -> Vec<String> {
    let mut kinds: Vec<String> = Vec::new();
    for linear in details.iter().flat_map(|block| &block.linears) {
        let kind = kind_of(&linear.name);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}

/// Mean of a number over the linears of one kind in a block, by their weights; none if none of them has it.
pub(crate) fn mean(block: &BlockDetails, kind: &str, of: impl Fn(&LinearDetails) -> Option<f64>) -> Option<f64> {
    let (mut sum, mut weights) = (0.0, 0.0);
    for linear in block.linears.iter().filter(|linear| kind_of(&linear.name) == kind) {
        if let Some(value) = of(linear) {
            sum += value * linear.weights as f64;
            weights += linear.weights as f64;
        }
    }
    (weights > 0.0).then(|| sum / weights)
}

/// A row of such means for each block.
pub(crate) fn table(
    details: &[BlockDetails],
    kinds: &[String],
    of: impl Fn(&LinearDetails) -> Option<f64>,
) -> Vec<(usize, Vec<Option<f64>>)> {
    details.iter().map(|block| (block.index, kinds.iter().map(|kind| mean(block, kind, &of)).collect())).collect()
}

/// Short names of kinds.
pub(crate) fn columns(kinds: &[String]) -> Vec<String> {
    kinds.iter().map(|kind| short(kind).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_taken_together() {
        let kind = kind_of("block_sparse_moe.experts.3.w1");
        assert_eq!([kind.as_str(), short(&kind)], ["block_sparse_moe.experts.*.w1", "experts.*.w1"]);
        assert_eq!(
            [short("mlp.down_proj"), short("fc1"), short(&kind_of("experts.7.up"))],
            ["down_proj", "fc1", "experts.*.up"]
        );
    }
}
