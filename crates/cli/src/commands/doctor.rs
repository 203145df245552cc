//! `omniquant doctor`: the libtorch, devices, memory and data of this machine.

use std::fmt::Write;

use anyhow::Result;
use oq_runtime::LIBTORCH;
use serde_json::{Value, json};
use tch::Cuda;

use crate::machine;
use crate::output::{Output, bytes};
use crate::resolve::cache_dir;

pub fn run(out: &Output) -> Result<()> {
    let here = std::env::current_dir()?;
    let machine = machine::machine(&here);
    let cuda_devices = if Cuda::is_available() { Cuda::device_count() } else { 0 };
    let report = json!({
        "omniquant": env!("CARGO_PKG_VERSION"),
        "libtorch": LIBTORCH,
        "libtorch_path": machine::libtorch_path(),
        "cuda_devices": cuda_devices,
        "cudnn": Cuda::cudnn_is_available(),
        "threads": tch::get_num_threads(),
        "cpu_features": cpu_features(),
        "kernel": oq_isa::Isa::chosen()?.name(),
        "memory_bytes": machine::total_memory(),
        "free_memory_bytes": machine.memory_bytes,
        "free_disk_bytes": machine.disk_bytes,
        "cache": cache_dir().ok(),
        "data": std::env::var_os("OMNIQUANT_DATA").map(|dir| dir.to_string_lossy().into_owned()),
    });
    out.result(&report, || text(&report))
}

fn text(report: &Value) -> String {
    let mut text = String::new();
    for (name, value) in report.as_object().into_iter().flatten() {
        let shown = match value {
            Value::Null => "none".to_owned(),
            Value::String(value) => value.clone(),
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
            Value::Number(n) if name.ends_with("_bytes") => bytes(n.as_u64().unwrap_or_default()),
            other => other.to_string(),
        };
        let name = name.trim_end_matches("_bytes").replace('_', " ");
        writeln!(text, "{name:<16}{shown}").expect("writing to a string cannot fail");
    }
    if report["cuda_devices"] == 0 {
        text.push_str(
            "no CUDA device: blocks are computed on the CPU (`cargo xtask setup --cuda` installs the CUDA library)\n",
        );
    }
    if report["data"].is_null() {
        text.push_str("OMNIQUANT_DATA is not set: datasets are downloaded from the hub, or read from a file with --data and --calib\n");
    }
    text
}

/// Instruction sets that matter for speed.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ];
        all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}
