//! `omniquant inspect`: the contents of a checkpoint or a packed model.

use std::fmt::Write;

use anyhow::Result;
use oq_models::Model;
use serde_json::json;

use crate::args::InspectArgs;
use crate::output::{Output, bytes};
use crate::resolve::Named;

pub fn run(args: &InspectArgs, out: &Output) -> Result<()> {
    let dir = Named::new(&args.model)?.directory(out)?;
    let summary = oq_formats::inspect(&dir)?;
    let model = Model::open(&dir)?;
    let dims = model.decoder().dims();
    let model_type = model.config()["model_type"].as_str().unwrap_or_default();
    let value = json!({"dir": dir, "model_type": model_type, "dims": dims, "summary": summary});
    out.result(&value, || {
        let mut text = String::new();
        let mut line =
            |name: &str, value: String| writeln!(text, "{name:<16}{value}").expect("writing to a string cannot fail");
        line("directory", dir.display().to_string());
        line(
            "architecture",
            format!("{model_type}, {} blocks, hidden {}, MLP {}", dims.n_layers, dims.hidden, dims.intermediate),
        );
        line(
            "attention",
            format!("{} query heads on {} key/value heads of {}", dims.n_heads, dims.n_kv_heads, dims.head_dim),
        );
        line("vocabulary", format!("{}, context {}", dims.vocab, dims.max_positions));
        line("parameters", format!("{:.3} million in {} tensors", summary.params as f64 / 1e6, summary.tensors));
        line("on disk", format!("{} in {} shards", bytes(summary.total_bytes), summary.shards));
        if let Some(method) = &summary.method {
            line("format", method.clone());
        }
        match summary.bits_per_weight() {
            Some(bits) => {
                // Weights in FP8 have no setting.
                let spec = summary.quantized.as_ref().map_or(String::new(), |spec| format!("{spec}, "));
                line("quantized", format!("{spec}{bits:.3} bits per weight with scales and zero points"));
                if summary.params_by_bits.len() > 1 {
                    let widths = summary.params_by_bits.iter().map(|(bits, params)| {
                        let percent = 100.0 * *params as f64 / summary.quantized_params as f64;
                        format!("{percent:.1} % of {bits} bits")
                    });
                    let average = summary.bits_per_code().unwrap_or_default();
                    let widths = widths.collect::<Vec<_>>().join(", ");
                    line("  widths", format!("{average:.3} bits on average: {widths}"));
                }
                let left_out = summary.quantized.as_ref().map_or(0, |quantized| quantized.left_out().count());
                if left_out > 0 {
                    line("  left out", format!("{left_out} linears of blocks, in full precision"));
                }
                line("  codes", bytes(summary.packed_bytes));
                line("  scales", bytes(summary.scale_bytes));
                line("  zero points", bytes(summary.zero_point_bytes));
                line("  not quantized", bytes(summary.dense_bytes));
            }
            None => {
                let kinds: Vec<String> =
                    summary.bytes_by_dtype.iter().map(|(dtype, n)| format!("{dtype} {}", bytes(*n))).collect();
                line("full precision", kinds.join(", "));
            }
        }
        text
    })
}
