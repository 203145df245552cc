//! `omniquant bench`: the speed of prefill and decode, and the memory they take.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use oq_generate::{Choice, Loaded, Sampler, Sampling};
use rayon::prelude::*;
use serde_json::json;
use tch::Device;

use crate::args::BenchArgs;
use crate::commands::running::{load, open};
use crate::exit::CliError;
use crate::machine;
use crate::output::{Output, bytes};

/// Bytes read to measure the memory's bandwidth: many times the size of the largest cache.
const STREAM_BYTES: usize = 512 << 20;
/// The best of this many passes counts.
const TRIES: usize = 5;

pub fn run(args: &BenchArgs, out: &Output) -> Result<()> {
    let loaded = load(open(&args.model, &args.run, out)?, out)?;
    let before = machine::resident_bytes();
    let (prompt, decoded, limit) = (args.prompt_tokens as usize, args.tokens as usize, loaded.session().limit());
    if prompt + decoded > limit {
        let message = format!("--prompt-tokens {prompt} and --tokens {decoded} exceed the model's {limit} positions");
        return Err(CliError::Usage(message).into());
    }
    let bar = out.bar("measuring");
    let mut runs = Vec::new();
    for done in 0..args.runs as usize {
        runs.push(once(&loaded, prompt, decoded)?);
        bar.set(done + 1, args.runs as usize);
    }
    drop(bar);
    let (prefill, decode) = (median(runs.iter().map(|run| run.prefill)), median(runs.iter().map(|run| run.decode)));
    let cache_bytes = runs[0].cache_bytes;
    let (resident, peak) = (machine::resident_bytes(), machine::peak_bytes());
    let (form, weight_bytes) = (loaded.form(), loaded.weight_bytes());
    let threads = rayon::current_num_threads();
    let device = loaded.device();
    drop(loaded);
    // Bandwidth is measured for the host's memory only.
    let bandwidth = (device == Device::Cpu).then(read_bytes_per_s);
    let fraction = bandwidth.map(|bandwidth| decode * weight_bytes as f64 / bandwidth);
    let value = json!({"model": args.model.name, "kernels": form.kernels.name(), "compute": form.compute.name(),
        "head": form.head.name(), "prefill": form.prefill.name(), "device": machine::device_name(device), "threads": threads, "prompt_tokens": prompt, "tokens": decoded,
        "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode,
        "runs": runs.iter().map(|run| json!({"prefill_tokens_per_s": run.prefill, "decode_tokens_per_s": run.decode}))
            .collect::<Vec<_>>(),
        "weight_bytes": weight_bytes, "cache_bytes": cache_bytes, "loaded_bytes": before, "running_bytes": resident,
        "peak_bytes": peak, "memory_bytes_per_s": bandwidth, "bandwidth_share": fraction});
    out.result(&value, || {
        let size = |n: Option<u64>| n.map_or_else(|| "unknown".to_owned(), bytes);
        let (kernels, compute, head) = (form.kernels.name(), form.compute.name(), form.head.name());
        let prefill = form.prefill.name();
        let mut lines = vec![
            format!("prefill         {prefill:.1} tokens per second ({prompt} at once)"),
            format!("decode          {decode:.1} tokens per second ({decoded} one by one)"),
            format!(
                "weights         {} (read for each token), cache {}",
                bytes(weight_bytes as u64),
                bytes(cache_bytes as u64)
            ),
            format!("memory          {} running, {} at most", size(resident), size(peak)),
        ];
        if let (Some(bandwidth), Some(fraction)) = (bandwidth, fraction) {
            let (speed, percent) = (bandwidth / 1e9, 100.0 * fraction);
            lines.push(format!("memory speed    {speed:.1} GB/s; decoding reads weights at {percent:.0} % of it"));
        }
        lines.push(format!(
            "computed        {kernels} kernels, {compute}, head {head}, prefill {prefill}, {threads} threads, medians of {} runs",
            runs.len()
        ));
        lines.join("\n")
    })
}

/// Tokens per second, and the size of the cache of keys and values.
struct Run {
    prefill: f64,
    decode: f64,
    cache_bytes: usize,
}

/// Prefills a prompt of `prompt` arbitrary tokens, then decodes `decoded` tokens.
fn once(loaded: &Loaded, prompt: usize, decoded: usize) -> Result<Run> {
    let vocab = loaded.model().decoder().dims().vocab as u64;
    let ids: Vec<u32> = (0..prompt as u64).map(|i| ((i * 2_654_435_761 + 11) % 104_729 % vocab) as u32).collect();
    let mut sampler = Sampler::new(Sampling::new(Choice::Greedy))?;
    let mut session = loaded.session();
    let started = Instant::now();
    let mut logits = session.extend(&ids)?;
    let prefill = prompt as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    for _ in 0..decoded {
        let id = sampler.choose(&logits, session.ids());
        logits = session.extend(&[id])?;
    }
    let decode = decoded as f64 / started.elapsed().as_secs_f64();
    Ok(Run { prefill, decode, cache_bytes: session.cache_bytes() })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

/// Bandwidth at which all threads together read memory.
fn read_bytes_per_s() -> f64 {
    const PART: usize = 1 << 14;
    let words: Vec<u64> = (0..STREAM_BYTES as u64 / 8).collect();
    let pass = || {
        let started = Instant::now();
        let sum: u64 = words.par_chunks(PART).map(|part| part.iter().fold(0, |sum, word| sum ^ word)).sum();
        black_box(sum);
        STREAM_BYTES as f64 / started.elapsed().as_secs_f64()
    };
    (0..TRIES).map(|_| pass()).fold(0.0, f64::max)
}
