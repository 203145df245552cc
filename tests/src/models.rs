//! Runs and measurements through the libraries instead of the program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oq_calib::{Options, Outcome};
use oq_data::segments_and_new;
use oq_eval::perplexity;
use oq_models::{BlockWeights, DenseOps, Model};
use oq_recipe::Recipe;
use tch::{Device, Kind, Tensor};

use crate::fixtures::{fixture, tokens};

/// The directories of all checkpoints among the fixtures.
pub fn checkpoints() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![fixture("")];
    while let Some(folder) = folders.pop() {
        if folder.join("config.json").is_file() {
            found.push(folder.clone());
        }
        let entries = std::fs::read_dir(&folder).expect("fixtures can be listed");
        folders.extend(entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir()));
    }
    found.sort();
    found
}

/// The block that [`f64_block`] loads.
pub const F64_BLOCK: usize = 1;

/// The second block in f64, where rounding errors are negligible.
pub fn f64_block(model: &Model) -> BlockWeights {
    let weights = model.load_block(F64_BLOCK, Device::Cpu).expect("fixtures can be read");
    BlockWeights::new(weights.tensors().iter().map(|(name, t)| (name.clone(), t.to_kind(Kind::Double))).collect())
}

/// A recipe's calibration segments, from the fixtures' calibration text.
pub fn calibration(recipe: &Recipe) -> Vec<Vec<u32>> {
    let c = &recipe.calibration;
    let new = recipe.segments().saturating_sub(c.samples);
    segments_and_new(&tokens("calib.txt"), c.samples, new, c.seqlen, c.seed).expect("the text is long enough")
}

/// Options of a run into `out` on the CPU in f32, where results are the most reproducible.
pub fn in_f32(out: &Path, resume: bool) -> Options {
    let mut options = Options::new(out);
    options.resume = resume;
    options
}

/// Perplexity on the fixtures' evaluation text, in windows of 256 tokens.
pub fn measure(model: &Model) -> f64 {
    let result = perplexity(model, &tokens("eval.txt"), 256, None, Device::Cpu, &mut |_| {});
    let result = result.expect("the text is long enough");
    assert_eq!(result.window_nll.len(), 39);
    result.value()
}

/// All files of a directory and of the folders in it: path from there and bytes.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the folder can be listed") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("it lies in there").to_str().expect("our names are UTF-8");
                found.insert(name.to_owned(), std::fs::read(&path).expect("it can be read"));
            }
        }
    }
    found
}

/// The weights, index and config of a model: name and bytes.
pub fn model_files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let is_model =
        |name: &String| name.ends_with(".safetensors") || name.ends_with("index.json") || name == "config.json";
    let entries = std::fs::read_dir(dir).expect("the folder can be listed");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("our names are UTF-8"));
    names.filter(is_model).map(|name| (name.clone(), std::fs::read(dir.join(name)).expect("it can be read"))).collect()
}

/// Mean squared error after each block of a quantized model on these segments, as a run computes its final losses.
pub fn block_losses(full: &Model, quantized: &Model, segments: &[Vec<u32>]) -> Vec<f64> {
    let _no_grad = tch::no_grad_guard();
    let decoder = full.decoder();
    let (ctx, outer) = (decoder.context(segments[0].len(), Device::Cpu), full.outer(Device::Cpu));
    let embed = |ids: &Vec<u32>| {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let embed = || decoder.embed(&outer, &Tensor::from_slice(&ids).unsqueeze(0)).expect("ids of its vocabulary");
        [embed(), embed()]
    };
    let mut states: Vec<[Tensor; 2]> = segments.iter().map(embed).collect();
    let loss = |block_idx| {
        let [weights, stored] =
            [full, quantized].map(|model| model.load_block(block_idx, Device::Cpu).expect("it can be read"));
        let mut sum = 0.0;
        for [x, y] in &mut states {
            *x = decoder.block(block_idx, &DenseOps::new(&weights), &ctx, x);
            *y = decoder.block(block_idx, &quantized.ops(&stored), &ctx, y);
            sum += (&*x - &*y).square().mean(Kind::Double).double_value(&[]);
        }
        sum / states.len() as f64
    };
    (0..decoder.dims().n_layers).map(loss).collect()
}

/// Checks that the block losses that a run recorded are those of the packed model on the run's segments.
#[track_caller]
pub fn check_recorded_losses(full: &Model, packed: &Model, segments: &[Vec<u32>], outcome: &Outcome) {
    /// Same squares in the same order, except for the mean over batches.
    const TOLERANCE: f64 = 1e-6;
    let losses = block_losses(full, packed, segments);
    assert_eq!(losses.len(), outcome.blocks.len());
    for (block, got) in outcome.blocks.iter().zip(losses) {
        let recorded = block.final_loss.expect("the run learned");
        assert!((got / recorded - 1.0).abs() <= TOLERANCE, "block {}: {got}, {recorded} recorded", block.index);
    }
}

/// The largest difference, divided by the largest expected magnitude.
#[track_caller]
pub fn relative_error(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| {
        // `f32::max` ignores NaN.
        values.map(|x| if x.is_nan() { f32::INFINITY } else { x.abs() }).fold(0.0, f32::max)
    };
    let difference = largest(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    f64::from(difference) / f64::from(largest(&mut expected.iter().copied()))
}
