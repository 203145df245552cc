//! What a format cannot hold, with the scheme that would do; and who opens what it holds.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use oq_export::{Evidence, FORMATS, Refusal, Subject, Tensor, check, find, limits_of_programs, programs};
use oq_quant_core::{ActSpec, QuantSpec, WeightSpec};

fn of(schemes: &[&str]) -> Subject {
    let specs = schemes.iter().map(|scheme| scheme.parse::<QuantSpec>().unwrap());
    match schemes {
        [one] => one.parse::<QuantSpec>().unwrap().into(),
        _ => Subject::new(ActSpec::Float, specs.map(|spec| spec.weight)),
    }
}

fn refusal(format: &str, subject: &Subject) -> Refusal {
    check(find(format).unwrap(), subject).expect_err("must be refused")
}

/// A refusal for the reason `why`, with the scheme that would do.
#[track_caller]
fn check_refused(format: &str, schemes: &[&str], why: &str, instead: &str) {
    let refusal = refusal(format, &of(schemes));
    assert!(refusal.why.contains(why), "{refusal}");
    assert_eq!(refusal.instead.as_deref(), Some(instead), "{refusal}");
    let message = refusal.to_string();
    assert!(message.starts_with(&format!("{format} cannot hold {}: ", schemes.join(", "))), "{message}");
    assert!(message.contains(&format!("; {instead} would do")), "{message}");
    // What would do is held.
    let instead: Vec<&str> = instead.split(", ").collect();
    assert_eq!(check(find(format).unwrap(), &of(&instead)), Ok(()));
}

#[test]
fn widths_and_groups_have_a_nearest_one() {
    check_refused("awq", &["w3a16g64"], "its codes have 4 bits, not 3", "w4a16g64");
    check_refused("awq", &["w8a16g128sym"], "its codes have 4 bits, not 8", "w4a16g128sym");
    check_refused(
        "awq",
        &["w4a16g256"],
        "its groups have 32, 64 or 128 channels, or are whole rows, not 256",
        "w4a16g128",
    );
    check_refused("gptq", &["w5a16g128"], "its codes have 2, 3, 4 or 8 bits, not 5", "w4a16g128");
    check_refused("gptq", &["w6a16g64sym"], "not 6", "w8a16g64sym");
    check_refused(
        "gptq",
        &["w4a16"],
        "its groups have 32, 64, 128 or 256 channels, and are not whole rows",
        "w4a16sym",
    );
    // Of two bits, symmetric ones use all codes.
    check_refused("mlx", &["w2a16g16sym"], "not 16", "w2a16g32full");
    check_refused("gptq", &["w4a16g48"], "not 48", "w4a16g64");
    check_refused("mlx", &["w4a16"], "and are not whole rows", "w4a16g128");
    check_refused("mlx", &["w7a16g64"], "its codes have 2, 3, 4, 5, 6 or 8 bits, not 7", "w8a16g64");
    check_refused("mlx", &["w3a16g16sym"], "not 16", "w3a16g32sym");
}

#[test]
fn several_settings_need_a_format_that_names_linears() {
    check_refused("awq", &["w3a16g64", "w4a16g64"], "all linears must be quantized alike", "w4a16g64");
    let symmetric = "w3a16g64sym, w4a16g64sym";
    check_refused("auto-round", &["w3a16g64", "w4a16g64"], "asymmetric linears have 4 bits in one layout", symmetric);
    for format in ["gptq", "auto-round"] {
        let either = "all of its linears are symmetric, or none is";
        check_refused(format, &["w3a16g64", "w4a16g64sym"], either, symmetric);
        assert_eq!(check(find(format).unwrap(), &of(&["w3a16g64sym", "w4a16g64sym"])), Ok(()));
    }
    assert_eq!(check(find("gptq").unwrap(), &of(&["w3a16g64", "w4a16g64"])), Ok(()));
    check_refused(
        "compressed-tensors",
        &["w3a16g64", "w4a16g64"],
        "several settings only if all are integers and symmetric",
        "w3a16g64sym, w4a16g64sym",
    );
    let elsewhere = refusal("awq", &of(&["w3a16g64sym", "w4a16g64sym"])).elsewhere;
    let all = ["compressed-tensors", "gptq", "auto-round", "mlx", "gguf", "dense", "dense-bf16", "dense-f32"];
    assert_eq!(elsewhere, all);
    let message = refusal("awq", &of(&["w3a16g64", "w4a16g64"])).to_string();
    assert!(
        message.ends_with("; w3a16g64, w4a16g64 goes to gptq, mlx, gguf, dense, dense-bf16, dense-f32"),
        "{message}"
    );
}

#[test]
fn matrices_outside_the_blocks_need_a_place() {
    let model = |scheme: &str, outer: &[&str]| {
        let QuantSpec { weight, act, .. } = scheme.parse().unwrap();
        let tensor = |name: &str| Tensor { name: name.to_owned(), shape: [1024, 128], weight: Some(weight) };
        let names = ["model.layers.0.mlp.up_proj"].iter().chain(outer);
        Subject::of_tensors(act, "llama", names.map(|name| tensor(name)))
    };
    let (head, embedding) = ("lm_head", "model.embed_tokens");
    let holding = |scheme: &str, outer: &[&str]| {
        let held = FORMATS.iter().filter(|format| check(format, &model(scheme, outer)).is_ok());
        held.map(|format| format.name).collect::<Vec<_>>()
    };
    let dense = ["dense", "dense-bf16", "dense-f32"];
    let with_dense = |formats: &[&'static str]| [formats, &dense].concat();
    let all = with_dense(&["compressed-tensors", "gptq", "auto-round", "mlx", "gguf"]);
    assert_eq!(holding("w4a16g64sym", &[head]), all);
    assert_eq!(holding("w4a16g64sym", &[head, embedding]), with_dense(&["compressed-tensors", "mlx", "gguf"]));
    assert!(holding("w8a8-int8", &[head]).is_empty());
    let refusal = refusal("awq", &model("w4a16g64", &[head]));
    assert!(refusal.why.contains("lm_head in full precision only: quantize without --head-bits"), "{refusal}");
    assert_eq!(refusal.schemes, "w4a16g64, lm_head w4g64");
}

#[test]
fn quantized_activations_go_to_int8() {
    for scheme in ["w8a8", "w8a8sym", "w4a4", "w6a6", "w4a8g128"] {
        check_refused("compressed-tensors", &[scheme], "of quantized activations, loaders take 8 bits", "w8a8-int8");
    }
    assert_eq!(check(find("compressed-tensors").unwrap(), &of(&["w8a8-int8"])), Ok(()));
    for (format, instead) in [
        ("gptq", "w8a16sym"),
        ("awq", "w4a16sym"),
        ("auto-round", "w8a16sym"),
        ("mlx", "w8a16g128sym"),
        ("dense", "w8a16sym"),
    ] {
        check_refused(format, &["w8a8-int8"], "no place for activations of 8 bits", instead);
        assert_eq!(refusal(format, &of(&["w8a8-int8"])).elsewhere, ["compressed-tensors"]);
    }
}

#[test]
fn scales_of_other_kinds_need_a_place() {
    check_refused("compressed-tensors", &["q4_k_pure"], "no place for the scales of q4_k", "w4a16g32");
    check_refused("gptq", &["q4_k_pure"], "those of q4_k have not", "w4a16g32");
    check_refused("auto-round", &["q6_k_pure"], "those of q6_k have not", "w6a16g16sym");
    check_refused("awq", &["mxfp4"], "those of mxfp4 have not", "w4a16g32sym");
    check_refused("mlx", &["nvfp4"], "those of nvfp4 have not", "w4a16g32sym");
    for (format, scheme) in [
        ("mlx", "q4_1_pure"),
        ("compressed-tensors", "mxfp4"),
        ("compressed-tensors", "nvfp4"),
        ("gptq", "w4a16g32full"),
    ] {
        assert_eq!(check(find(format).unwrap(), &of(&[scheme])), Ok(()), "{format} {scheme}");
    }
    for scheme in ["q4_k_m", "q6_k_pure", "q4_0", "w3a16g64", "w8a16g32sym", "mxfp4"] {
        assert_eq!(check(find("gguf").unwrap(), &of(&[scheme])), Ok(()), "{scheme}");
    }
    check_refused("gguf", &["w8a16g64"], "no block type that holds w8g64 exactly", "w8a16g64sym");
    check_refused("gguf", &["nvfp4"], "no block type that holds nvfp4 exactly", "w4a16g32sym");
    let mixture = refusal("gptq", &of(&["q4_k_m"])).to_string();
    assert!(mixture.starts_with("gptq cannot hold q4_k_m: "), "{mixture}");
}

#[test]
fn no_format_rotates() {
    for format in &FORMATS {
        let rotated = refusal(format.name, &of(&["w4a16g64"]).rotated_online(true));
        assert!(
            rotated.why.contains("--rotate merged") && rotated.instead.is_none() && rotated.elsewhere.is_empty(),
            "{rotated}"
        );
    }
}

#[test]
fn shapes_and_architectures_decide_too() {
    let model = |architecture: &str, shape| of(&["w4a16g64"]).of_model(architecture, [("x.up_proj".to_owned(), shape)]);
    #[track_caller]
    fn check_shape(format: &str, subject: &Subject, why: &str) {
        let refusal = refusal(format, subject);
        assert!(refusal.why.contains(why) && refusal.instead.is_none(), "{refusal}");
        assert!(refusal.elsewhere.contains(&"compressed-tensors"), "{refusal}");
    }
    let odd = model("llama", [100, 128]);
    check_shape("gptq", &odd, "x.up_proj is [100, 128], and out_features must be a multiple of 32");
    check_shape("awq", &odd, "out_features must be a multiple of 8");
    check_shape("auto-round", &odd, "out_features must be a multiple of 32");
    check_shape("mlx", &odd, "out_features must be a multiple of 64");
    for format in ["gptq", "awq", "auto-round"] {
        check_shape(format, &model("falcon", [128, 128]), "do not replace Falcon's own class of linears");
    }
    check_shape("mlx", &model("opt", [128, 128]), "mlx-lm has llama, mistral, qwen2, qwen3, not opt");
    check_shape("gguf", &model("opt", [128, 128]), "olmoe, gpt_oss, not opt");
    // Groups that would not divide the rows are none that would do.
    let rows = |scheme: &str, cols| of(&[scheme]).of_model("llama", [("x".to_owned(), [64, cols])]);
    assert_eq!(refusal("mlx", &rows("w4a16", 96)).instead.as_deref(), Some("w4a16g32"));
    assert!(refusal("awq", &rows("w4a16g64", 96)).why.contains("groups of 64 do not divide it"));
}

#[test]
fn what_is_held_is_opened() {
    let opened = |format: &str, scheme: &str| {
        programs(find(format).unwrap(), &of(&[scheme])).iter().map(|it| (it.name, it.evidence)).collect::<Vec<_>>()
    };
    for format in &FORMATS {
        for scheme in ["w4a16g64", "w4a16g128sym", "w8a16g64sym", "w2a16g64", "w8a8-int8"] {
            let subject = of(&[scheme]);
            if check(format, &subject).is_ok() {
                let run = programs(format, &subject).iter().any(|program| program.evidence == Evidence::Run);
                assert!(run, "{} of {scheme} was opened by nobody", format.name);
            }
        }
    }
    let on_a_cpu = |found: &[(&str, Evidence)]| found.iter().any(|(name, _)| *name == "vLLM 0.32 on a CPU");
    assert!(on_a_cpu(&opened("gptq", "w4a16sym")) && opened("gptq", "w4a16sym").len() == 2);
    assert!(on_a_cpu(&opened("gptq", "w4a16g64sym")) && !on_a_cpu(&opened("gptq", "w4a16g64")));
    assert!(on_a_cpu(&opened("compressed-tensors", "w4a16")) && !on_a_cpu(&opened("compressed-tensors", "w3a16g64")));
    let opt = of(&["w4a16g64"]).of_model("opt", []);
    assert!(!programs(find("dense").unwrap(), &opt).iter().any(|program| program.name.starts_with("mlx-lm")));
}

#[test]
fn programs_that_fail_at_a_model_are_told() {
    let format = find("compressed-tensors").unwrap();
    let limits = |scheme: &str, architecture: &str| {
        let subject = of(&[scheme]).of_model(architecture, []);
        let [opens, fails] = [
            programs(format, &subject).iter().map(|program| program.name).collect::<Vec<_>>(),
            limits_of_programs(format, &subject).iter().map(|limit| limit.name).collect(),
        ];
        assert!(fails.iter().all(|name| !opens.contains(name)), "{scheme} of {architecture}");
        fails.len()
    };
    assert_eq!(
        [limits("w4a16g64", "mixtral"), limits("w4a16g64sym", "mixtral"), limits("w4a16g64", "llama")],
        [1, 0, 0]
    );
}

#[test]
fn every_format_is_found_by_its_name() {
    for format in &FORMATS {
        assert_eq!(find(format.name).unwrap().about, format.about);
    }
    assert!(find("gguf2").is_none());
    let spec: WeightSpec = "w4a16g64".parse::<QuantSpec>().unwrap().weight;
    assert_eq!(Subject::new(ActSpec::Float, [spec, spec]).uniform(), Some(spec));
}
