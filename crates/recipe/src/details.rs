//! What a run records about its blocks and its result, for those who look at it afterwards: a line of `blocks.jsonl` for each learned block,
//! and a line of `measured.jsonl` for each measurement of the result.

use oq_quant_core::SiteKind;
use serde::{Deserialize, Serialize};

/// What learning did to each block, one line for each [`BlockDetails`]. If a block has several lines, the last one counts.
pub const BLOCKS: &str = "omniquant/blocks.jsonl";
/// What was measured of the result, one line for each [`Measurement`].
pub const MEASURED: &str = "omniquant/measured.jsonl";

/// Bins of a clipping histogram, of equal width from 0 to 1.
pub const CLIP_BINS: usize = 20;
/// Where [`Quantiles`] are taken.
pub const QUANTILES: [f64; 7] = [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0];

/// The values at [`QUANTILES`], from the smallest to the largest.
pub type Quantiles = [f64; QUANTILES.len()];

/// What learning did to a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockDetails {
    /// Which block, from 0.
    pub index: usize,
    /// Calibration tokens that errors and inputs were measured on.
    pub tokens: usize,
    /// Error of the block's output.
    pub error: Errors,
    /// The linears that are quantized, in the layer's order.
    pub linears: Vec<LinearDetails>,
    /// Learned scales of each site, if channels are rescaled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteDetails>,
}

/// Errors of an output, given the full-precision input: squared and relative to the token's squared output, mean over tokens. Activations
/// are quantized where the scheme says so.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    /// With the original weights rounded to nearest.
    pub nearest: f64,
    /// With what was learned.
    pub learned: f64,
}

/// What learning did to a linear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearDetails {
    /// Its name below the block, such as `mlp.down_proj`.
    pub name: String,
    /// Bits of a code.
    pub bits: u32,
    /// Its weights.
    pub weights: u64,
    /// Error of its output; none if none of the tokens reached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Errors>,
    /// Number of groups by the share of their maximum that clipping keeps, in [`CLIP_BINS`] bins.
    pub clip_max: [u64; CLIP_BINS],
    /// The same for their minimum.
    pub clip_min: [u64; CLIP_BINS],
    /// Share of the codes that are not the nearest ones on the learned grid; none if all are, by the recipe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<f64>,
    /// Largest magnitude of each input channel; none if none of the tokens reached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Quantiles>,
    /// The same after the learned transformation, if that rescales the input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_rescaled: Option<Quantiles>,
}

/// The learned scales of a site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteDetails {
    /// Its kind.
    pub kind: SiteKind,
    /// The module that writes its channels.
    pub module: String,
    /// Its scales.
    pub scales: Quantiles,
}

/// What is known of a run before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// Bytes of the original's tensors.
    pub original_bytes: u64,
    /// Bytes of the output.
    pub output_bytes: u64,
    /// Peak memory of the host.
    pub peak_bytes: u64,
    /// Duration of the longest block, if the machine's speed is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_secs: Option<f64>,
    /// Duration of the whole run, if the machine's speed is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_secs: Option<f64>,
}

/// What a [`Measurement`] is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Of a text; lower is better.
    Perplexity,
    /// Kullback-Leibler divergence of the predictions from the full-precision model's, in nats per token; lower is better.
    Divergence,
    /// Share of tokens whose likeliest prediction is the full-precision model's; higher is better.
    Agreement,
    /// Share of a task's items that are answered correctly; higher is better.
    Accuracy,
    /// Tokens per second of a prompt; higher is better.
    Prefill,
    /// Tokens per second, one by one; higher is better.
    Decode,
    /// Peak bytes of running the model; lower is better.
    Memory,
}

/// A measurement of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Of which model: [`Measurement::THIS`], or another one on the same terms, such as `full precision`.
    pub model: String,
    /// What was measured.
    pub metric: Metric,
    /// The model in full precision that it is compared with, where the metric compares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<String>,
    /// On what: the text and its windows, the task and its items, the machine.
    pub on: String,
    /// The number.
    pub value: f64,
    /// Its standard error, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
}

impl Measurement {
    /// The model that the run wrote.
    pub const THIS: &str = "this model";
    /// The model that the run started from.
    pub const FULL: &str = "full precision";

    /// Whether `other` is the same measurement, with a value of its own.
    pub fn is_again(&self, other: &Self) -> bool {
        let what = |row: &Self| (row.model.clone(), row.metric, row.with.clone(), row.on.clone());
        what(self) == what(other)
    }

    /// The content of `measured.jsonl` after `new` measurements: they replace earlier ones of the same. Lines that are not understood are
    /// kept.
    pub fn add(file: &str, new: &[Self]) -> String {
        let is_replaced =
            |line: &&str| serde_json::from_str::<Self>(line).is_ok_and(|old| new.iter().any(|new| new.is_again(&old)));
        let old = file.lines().filter(|line| !line.is_empty() && !is_replaced(line)).map(str::to_owned);
        let new = new.iter().map(|new| serde_json::to_string(new).expect("plain data is JSON"));
        old.chain(new).map(|line| line + "\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_replaces_an_earlier_one() {
        let of = |model: &str, on: &str, value| Measurement {
            model: model.to_owned(),
            metric: Metric::Perplexity,
            with: None,
            on: on.to_owned(),
            value,
            error: None,
        };
        let first = Measurement::add("", &[of("this model", "a", 1.0), of("full precision", "a", 2.0)]);
        let line = r#"{"model":"this model","metric":"perplexity","on":"a","value":1.0}"#;
        assert_eq!(first.lines().next(), Some(line));
        let second =
            Measurement::add(&(first + "not JSON\n"), &[of("this model", "a", 3.0), of("this model", "b", 4.0)]);
        let values: Vec<f64> =
            second.lines().filter_map(|line| serde_json::from_str(line).ok()).map(|m: Measurement| m.value).collect();
        assert_eq!(values, [2.0, 3.0, 4.0]);
        assert!(second.contains("not JSON\n"));
    }

    #[test]
    fn what_is_unknown_is_left_out_of_a_line() {
        let linear = LinearDetails {
            name: "mlp.down_proj".to_owned(),
            bits: 3,
            weights: 12,
            error: None,
            clip_max: [0; CLIP_BINS],
            clip_min: [1; CLIP_BINS],
            moved: None,
            input: None,
            input_rescaled: None,
        };
        let details = BlockDetails {
            index: 1,
            tokens: 8,
            error: Errors { nearest: 0.5, learned: 0.25 },
            linears: vec![linear],
            sites: vec![],
        };
        let line = serde_json::to_string(&details).unwrap();
        assert!(!line.contains("null") && !line.contains("sites"), "{line}");
        assert_eq!(serde_json::from_str::<BlockDetails>(&line).unwrap(), details);
    }
}
