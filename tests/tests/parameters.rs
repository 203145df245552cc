//! Every model in configs/ has the published number of parameters, counted from its `[config]`: a wrong digit there shows in the sum.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use oq_models::Decoder;
use oq_models::family::decoder_of;
use oq_recipe::find;

/// All values of a model, the head's included only where it is not the embedding.
fn parameters(decoder: &dyn Decoder) -> usize {
    let values = |shape: &[usize]| shape.iter().product::<usize>();
    let block = |block_idx| {
        let layout = decoder.layer(block_idx);
        let linears = layout.linears.iter();
        let linears = linears.map(|linear| linear.out_features * (linear.in_features + usize::from(linear.bias)));
        linears.sum::<usize>() + layout.params.iter().map(|param| values(&param.shape)).sum::<usize>()
    };
    let outside: usize = decoder.outer_params().iter().map(|param| values(&param.shape)).sum();
    (0..decoder.dims().n_layers).map(block).sum::<usize>() + outside
}

#[track_caller]
fn check(name: &str, expected: usize) {
    let model = find(name).unwrap_or_else(|| panic!("{name} is not in configs/"));
    assert_eq!(parameters(&*decoder_of(&model.config).unwrap()), expected, "{name}");
}

#[test]
fn models_of_the_paper() {
    check("llama-7b", 6_738_415_616);
    check("llama-13b", 13_015_864_320);
    check("llama-30b", 32_528_943_616);
    check("llama-65b", 65_285_660_672);
    for chat in ["", "-chat"] {
        check(&format!("llama2-7b{chat}"), 6_738_415_616);
        check(&format!("llama2-13b{chat}"), 13_015_864_320);
        check(&format!("llama2-70b{chat}"), 68_976_648_192);
    }
    check("opt-125m", 125_239_296);
    check("opt-350m", 331_196_416);
    check("opt-1.3b", 1_315_758_080);
    check("opt-2.7b", 2_651_596_800);
    check("opt-6.7b", 6_658_473_984);
    check("opt-13b", 12_853_473_280);
    check("opt-30b", 29_974_540_288);
    check("falcon-7b", 6_921_720_704);
    check("falcon-40b", 41_303_293_952);
    check("falcon-180b", 179_522_565_120);
    // Published in round numbers only.
    let opt_66b = parameters(&*decoder_of(&find("opt-66b").unwrap().config).unwrap());
    assert_eq!(opt_66b.div_ceil(1_000_000_000), 66);
}

#[test]
fn small_models() {
    check("smollm2-135m", 134_515_008);
    check("tinyllama-1.1b", 1_100_048_384);
    check("tiny-llama", 1_049_728);
    check("tiny-llama-256", 2_885_376);
    check("tiny-opt", 990_208);
    check("tiny-falcon", 820_480);
    check("tiny-mixtral", 1_593_216);
    check("tiny-qwen3-moe", 1_593_408);
    check("tiny-qwen3", 869_632);
}

#[test]
fn models_like_llama() {
    for instruct in ["", "-instruct"] {
        check(&format!("llama-3.1-8b{instruct}"), 8_030_261_248);
        check(&format!("llama-3.1-70b{instruct}"), 70_553_706_496);
    }
    check("llama-3.2-1b", 1_235_814_400);
    check("llama-3.2-3b", 3_212_749_824);
    check("qwen2.5-0.5b", 494_032_768);
    check("qwen2.5-1.5b", 1_543_714_304);
    check("qwen2.5-3b", 3_085_938_688);
    check("qwen2.5-7b", 7_615_616_512);
    check("qwen2.5-14b", 14_770_033_664);
    check("qwen2.5-32b", 32_763_876_352);
    check("qwen3-0.6b", 596_049_920);
    check("qwen3-1.7b", 1_720_574_976);
    check("qwen3-4b", 4_022_468_096);
    check("qwen3-8b", 8_190_735_360);
    check("qwen3-14b", 14_768_307_200);
    check("qwen3-32b", 32_762_123_264);
    check("mistral-7b-v0.1", 7_241_732_096);
    check("mistral-7b-v0.3", 7_248_023_552);
}
