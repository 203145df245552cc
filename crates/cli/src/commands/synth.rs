//! `omniquant synth`: a checkpoint of random weights in the shape of a model that configs/ names. Memory and speed of a run depend on
//! shapes alone, and can be measured on it without the model's weights. `cargo xtask synth` builds the program and calls this.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use half::{bf16, f16};
use oq_formats::{Dtype, FormatError, OutTensor, atomic_write, write_shard};
use oq_models::family::{Decoder, decoder_of};
use oq_random::SplitMix64;
use oq_recipe::{ModelEntry, Shape};
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::args::SynthArgs;
use crate::exit::CliError;
use crate::machine;
use crate::output::{Output, bytes, seconds};
use crate::resolve::refuse_used;

/// Of matrices: what the families' own training starts from (`initializer_range` in their configs).
const DEVIATION: f32 = 0.02;
/// Values that one thread makes at a time.
const CHUNK: usize = 1 << 16;

pub fn run(args: &SynthArgs, out: &Output) -> Result<()> {
    let started = Instant::now();
    let (entry, shape) = shape_of(args)?;
    let dtype = args.dtype.dtype();
    let mut config = entry.config_of(&shape);
    config["dtype"] = json!(args.dtype.name());
    let shards = shards(&*decoder_of(&config)?);
    let sizes: Vec<u64> = shards.iter().map(|shard| shard.iter().map(|tensor| tensor.bytes(dtype)).sum()).collect();
    let total: u64 = sizes.iter().sum();

    let dir = args.out.clone().unwrap_or_else(|| default_out(&entry.name, args.layers));
    refuse_used(&dir)?;
    refuse_full(&dir, total)?;
    fs::create_dir_all(&dir).map_err(|source| FormatError::Io { path: dir.clone(), source })?;

    let bar = out.bar(&format!("synth {}", entry.name));
    let mut places = BTreeMap::new();
    let mut done = 0;
    for (i, (shard, size)) in shards.iter().zip(sizes).enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let tensors: Vec<_> =
            shard.par_iter().map(|tensor| tensor.random(args.seed, dtype)).collect::<Result<_, _>>()?;
        write_shard(&dir.join(&name), &tensors)?;
        places.extend(shard.iter().map(|tensor| (tensor.name.clone(), name.clone())));
        done += size;
        bar.set(done as usize, total as usize);
        bar.line(|| {
            let left = started.elapsed().as_secs_f64() * (total - done) as f64 / done as f64;
            format!("shard {} of {} written, {} left", i + 1, shards.len(), seconds(left))
        });
    }
    drop(bar);

    let tensors = places.len();
    write_json(
        &dir.join("model.safetensors.index.json"),
        &json!({"metadata": {"total_size": total}, "weight_map": places}),
    )?;
    write_json(&dir.join("tokenizer.json"), &byte_tokenizer())?;
    // Last, as in every directory that is written here: without it, it is no model.
    write_json(&dir.join("config.json"), &config)?;

    let value = json!({"dir": dir, "model": entry.name, "layers": shape.layers, "tensors": tensors, "bytes": total,
        "seed": args.seed, "wall_secs": started.elapsed().as_secs_f64(), "peak_bytes": machine::peak_bytes()});
    out.result(&value, || {
        let (size, took) = (bytes(total), seconds(started.elapsed().as_secs_f64()));
        format!("{}: {} blocks, {tensors} tensors, {size} of random weights; took {took}", dir.display(), shape.layers)
    })
}

/// The model's entry, and its shape with as many blocks as are asked for.
fn shape_of(args: &SynthArgs) -> Result<(&'static ModelEntry, Shape), CliError> {
    let entry = oq_recipe::find(&args.model).ok_or_else(|| {
        let known = oq_recipe::names().collect::<Vec<_>>().join(", ");
        CliError::Missing(format!("{}: no name in configs/; names are {known}", args.model))
    })?;
    let shape = entry
        .shape
        .ok_or_else(|| CliError::Usage(format!("{}: configs/models/{}.toml has no [shape]", args.model, entry.name)))?;
    Ok((entry, Shape { layers: args.layers.map_or(shape.layers, |layers| layers as usize), ..shape }))
}

/// `out/synth-llama2-70b`, `out/synth-llama2-70b-1l`.
fn default_out(model: &str, layers: Option<u32>) -> PathBuf {
    let layers = layers.map_or(String::new(), |layers| format!("-{layers}l"));
    Path::new("out").join(format!("synth-{model}{layers}"))
}

fn refuse_full(dir: &Path, needed: u64) -> Result<(), CliError> {
    match machine::machine(dir).disk_bytes {
        Some(free) if free < needed => {
            let (needed, free) = (bytes(needed), bytes(free));
            let mend = "choose fewer --layers, or another --out";
            Err(CliError::DoesNotFit(format!(
                "needs {needed} on the disk of {}, {free} is free: {mend}",
                dir.display()
            )))
        }
        _ => Ok(()),
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), FormatError> {
    atomic_write(path, format!("{value:#}\n").as_bytes())
}

/// The tensors of every file: one per block, then one for what lies outside.
fn shards(decoder: &dyn Decoder) -> Vec<Vec<Planned>> {
    let block = |block_idx| {
        let (prefix, layout) = (decoder.block_prefix(block_idx), decoder.layer(block_idx));
        let mut tensors = Vec::new();
        for linear in &layout.linears {
            let name = |part| format!("{prefix}{}.{part}", linear.name.0);
            tensors.push(Planned { name: name("weight"), shape: vec![linear.out_features, linear.in_features] });
            if linear.bias {
                tensors.push(Planned { name: name("bias"), shape: vec![linear.out_features] });
            }
        }
        let params = layout.params.iter();
        tensors.extend(
            params.map(|param| Planned { name: format!("{prefix}{}", param.name), shape: param.shape.clone() }),
        );
        tensors
    };
    let mut shards: Vec<_> = (0..decoder.dims().n_layers).map(block).collect();
    let outer = decoder.outer_params().into_iter();
    shards.push(outer.map(|param| Planned { name: param.name.to_owned(), shape: param.shape }).collect());
    shards
}

/// A tensor to be made.
struct Planned {
    name: String,
    shape: Vec<usize>,
}

impl Planned {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self, dtype: Dtype) -> u64 {
        (self.len() * dtype.bitsize() / 8) as u64
    }

    /// Mean and standard deviation: matrices as training starts them, weights of norms around 1, biases small.
    fn moments(&self) -> (f32, f32) {
        match self.shape.len() {
            1 if self.name.ends_with(".bias") => (0.0, DEVIATION / 10.0),
            1 => (1.0, DEVIATION),
            _ => (0.0, DEVIATION),
        }
    }

    /// The tensor. Its values depend on its name, the seed and the type, and on nothing else.
    fn random(&self, seed: u64, dtype: Dtype) -> Result<OutTensor<'static>, FormatError> {
        let (mean, deviation) = self.moments();
        let stream = stream(seed, &self.name);
        let value = |i| mean + deviation * normal(SplitMix64::at(stream, i));
        let n = self.len();
        let bytes = match dtype {
            Dtype::F16 => fill(n, |i| f16::from_f32(value(i)).to_le_bytes()),
            Dtype::BF16 => fill(n, |i| bf16::from_f32(value(i)).to_le_bytes()),
            _ => fill(n, |i| value(i).to_le_bytes()),
        };
        OutTensor::new(self.name.clone(), dtype, &self.shape, bytes)
    }
}

/// The bytes of `n` values, made in place: a large block exists once.
fn fill<const N: usize>(n: usize, value: impl Fn(u64) -> [u8; N] + Sync) -> Vec<u8> {
    let mut bytes = vec![0; n * N];
    bytes.par_chunks_mut(CHUNK * N).enumerate().for_each(|(chunk, bytes)| {
        for (i, bytes) in bytes.as_chunks_mut().0.iter_mut().enumerate() {
            *bytes = value((chunk * CHUNK + i) as u64);
        }
    });
    bytes
}

/// Where a tensor's numbers start: FNV-1a of the seed and the name.
fn stream(seed: u64, name: &str) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes());
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// Mean 0, deviation 1 and nearly normal: the sum of four uniform numbers of 16 bits. Never beyond 2 sqrt(3).
fn normal(word: u64) -> f32 {
    /// Half of the largest sum.
    const MEAN: f32 = 2.0 * 65_535.0;
    /// One uniform number has the variance 2^32 / 12, four have 2^32 / 3.
    const PER_DEVIATION: f32 = 1.732_050_8 / 65_536.0;
    let sum = (word & 0xFFFF) + (word >> 16 & 0xFFFF) + (word >> 32 & 0xFFFF) + (word >> 48);
    (sum as f32 - MEAN) * PER_DEVIATION
}

/// A `tokenizer.json` whose tokens are the 256 bytes: any text can be encoded, by ids that every model has.
fn byte_tokenizer() -> Value {
    let vocab: serde_json::Map<String, Value> =
        byte_characters().enumerate().map(|(id, character)| (character.to_string(), id.into())).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// The characters that stand for bytes in byte-level vocabularies (GPT-2's): printable ones for themselves, the others, in order,
/// from 256 on.
fn byte_characters() -> impl Iterator<Item = char> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut others = '\u{100}'..;
    (0..=u8::MAX).map(move |byte| {
        let character = if printable(byte) { Some(char::from(byte)) } else { others.next() };
        character.expect("fewer than 256 bytes are not printable")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_described() {
        const N: u64 = 1 << 20;
        let stream = stream(7, "model.layers.0.mlp.up_proj.weight");
        let values: Vec<f64> = (0..N).map(|i| f64::from(normal(SplitMix64::at(stream, i)))).collect();
        let moment = |power| values.iter().map(|x: &f64| x.powi(power)).sum::<f64>() / N as f64;
        // Five standard errors of a mean of 2^20: 5 / 1024, and sqrt(2) times that for squares.
        assert!(moment(1).abs() < 5e-3, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 7e-3, "variance {}", moment(2));
        // 3 for a normal distribution, 2.7 for the sum of four uniform numbers.
        assert!((moment(4) - 2.7).abs() < 0.03, "fourth moment {}", moment(4));
        // Neighbours have nothing to do with each other.
        let product = values.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / N as f64;
        assert!(product.abs() < 5e-3, "covariance {product}");
        assert!(normal(0) > -3.47 && normal(u64::MAX) < 3.47);
    }

    #[test]
    fn a_tensor_is_one_function_of_name_and_seed() {
        let tensor = |name: &str| Planned { name: name.to_owned(), shape: vec![3, CHUNK] };
        let made = |name, seed| tensor(name).random(seed, Dtype::F16).unwrap();
        assert_eq!(made("a.weight", 1), made("a.weight", 1));
        assert_ne!(made("a.weight", 1), made("a.weight", 2));
        let values = |name: &str| fill(8, |i| SplitMix64::at(stream(1, name), i).to_le_bytes());
        assert_ne!(values("a.weight"), values("b.weight"));
        // The second chunk goes on where the first one ended.
        let all = fill(CHUNK + 1, |i| i.to_le_bytes());
        assert_eq!(all[8 * CHUNK..], (CHUNK as u64).to_le_bytes());
    }

    #[test]
    fn bytes_have_characters_of_their_own() {
        let characters: Vec<char> = byte_characters().collect();
        assert_eq!(characters.iter().collect::<std::collections::BTreeSet<_>>().len(), 256);
        // As GPT-2's vocabulary writes them.
        assert_eq!([b'A', b' ', b'\n', 0xAD].map(|byte| characters[usize::from(byte)]), ['A', 'Ġ', 'Ċ', 'Ń']);
    }
}
