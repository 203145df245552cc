//! Decoding a sequence in pieces gives the same logits as one forward pass, and text is streamed correctly.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::Path;

use oq_data::{AddSpecial, Tokenizer};
use oq_eval::logits;
use oq_generate::{Choice, End, GenerateError, Generated, Loaded, Sampler, Sampling, Settings, TextStream, generate};
use oq_models::{Compute, Form, HeadKind, Kernels, Model, ModelError};
use oq_quant_core::QuantSpec;
use oq_tests::{fixture, relative_error};
use serde_json::json;
use tch::{Device, Tensor};

/// Sums are in a different order, and few positions use other loops than many. The difference is like that of two libraries in the golden
/// tests.
const F32_TOLERANCE: f64 = 1e-4;
/// In addition, packed products with few rows round activations to integers, in steps of up to 2^-16 of the largest one of a group.
const PACKED_TOLERANCE: f64 = 1e-3;
/// With AVX2, the shares of experts feel that as well: 1.2e-3 was seen.
const AVX2_TOLERANCE_OF_EXPERTS: f64 = 2e-3;
/// With few rows, activations are rounded to 16-bit integers, with many to bf16. Probabilities are rounded to bf16 before or after division
/// by their sum.
const BF16_TOLERANCE: f64 = 6e-2;

const DENSE: Form = Form::new(Kernels::Dense, Compute::F32, HeadKind::Wide);

/// Arbitrary token ids.
fn ids(n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 37 + 11) % vocab) as u32).collect()
}

fn open(folder: &str, form: Form) -> Model {
    let model = Model::open(&fixture(folder)).unwrap();
    let model = match form.kernels {
        Kernels::Dense => model,
        Kernels::Packed => model.with_round_to_nearest("w4a16".parse::<QuantSpec>().unwrap()).unwrap(),
    };
    model.with_form(form).unwrap()
}

fn loaded(folder: &str, form: Form) -> Loaded {
    Loaded::new(open(folder, form), Device::Cpu, &mut |_, _| {}).unwrap()
}

/// Compares logits after every piece with those of one forward pass over the whole sequence.
#[track_caller]
fn check(folder: &str, form: Form, tolerance: f64) {
    const PIECES: [usize; 9] = [7, 1, 1, 5, 1, 1, 4, 1, 3];
    let model = open(folder, form);
    let vocab = model.decoder().dims().vocab;
    let ids = ids(PIECES.iter().sum(), vocab);
    let numbers: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let whole = logits(&model, &Tensor::from_slice(&numbers).unsqueeze(0), Device::Cpu).unwrap().squeeze_dim(0);
    let loaded = loaded(folder, form);
    let mut session = loaded.session();
    for n in PIECES {
        let start = session.ids().len();
        let got = session.extend(&ids[start..start + n]).unwrap();
        let expected: Vec<f32> = Vec::try_from(whole.get((start + n - 1) as i64)).unwrap();
        let error = relative_error(&got, &expected);
        let form = (form.kernels.name(), form.compute.name());
        assert!(error <= tolerance, "{folder} {form:?}: {n} tokens after {start}: relative error {error:.1e}");
    }
    assert_eq!(session.ids(), ids);
    assert!(session.cache_bytes() > 0);
}

#[test]
fn a_sequence_in_pieces_is_the_whole_one() {
    let llama = ["attention-bias", "gqa-tied", "head-dim", "bf16", "rope-dynamic", "rope-llama3", "rope-yarn"];
    let like = ["mistral-window", "mistral-no-window", "qwen2", "qwen3"];
    let other = [
        "falcon-11b-like",
        "falcon-7b-bias",
        "falcon-rw-like",
        "falcon-rw-six-heads",
        "opt-350m-like",
        "opt-no-affine",
        "opt-projected",
        "opt-untied",
    ];
    let variants = [("llama-variants", &llama[..]), ("llama-like-variants", &like), ("opt-falcon-variants", &other)];
    let variants = variants.iter().flat_map(|(folder, names)| names.iter().map(move |name| format!("{folder}/{name}")));
    let plain = [
        "tiny-llama",
        "tiny-llama-256",
        "tiny-opt",
        "tiny-falcon",
        "llama-gqa-tied",
        "opt-postnorm-proj",
        "falcon-40b-like",
    ];
    for folder in plain.into_iter().map(str::to_owned).chain(variants) {
        for (kernels, tolerance) in [(Kernels::Dense, F32_TOLERANCE), (Kernels::Packed, PACKED_TOLERANCE)] {
            check(&folder, Form::new(kernels, Compute::F32, HeadKind::Wide), tolerance);
            check(&folder, Form::new(kernels, Compute::Bf16, HeadKind::Stored), BF16_TOLERANCE);
        }
    }
}

#[test]
fn other_families_in_pieces_are_the_whole() {
    let entries = std::fs::read_dir(fixture("family-variants")).unwrap();
    let names = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let has_avx512 = std::arch::is_x86_feature_detected!("avx512f");
    let mut seen = 0;
    for path in names {
        let folder = format!("family-variants/{}", path.file_name().unwrap().to_str().unwrap());
        let has_experts = !open(&folder, DENSE).decoder().layer(1).experts.is_empty();
        let packed = if has_experts && !has_avx512 { AVX2_TOLERANCE_OF_EXPERTS } else { PACKED_TOLERANCE };
        for (kernels, tolerance) in [(Kernels::Dense, F32_TOLERANCE), (Kernels::Packed, packed)] {
            check(&folder, Form::new(kernels, Compute::F32, HeadKind::Wide), tolerance);
            // Rounding to bf16 changes which experts are chosen.
            if !has_experts {
                check(&folder, Form::new(kernels, Compute::Bf16, HeadKind::Stored), BF16_TOLERANCE);
            }
        }
        seen += 1;
    }
    assert!(seen >= 36, "{seen}");
}

#[test]
fn what_cannot_be_read_leaves_the_session_as_it_was() {
    let loaded = loaded("tiny-llama", DENSE);
    let mut session = loaded.session();
    let limit = session.limit();
    let before = session.extend(&[1, 2, 3]).unwrap();
    let too_many = vec![1; limit - 2];
    assert!(matches!(session.extend(&too_many), Err(GenerateError::ContextFull { before: 3, .. })));
    assert!(matches!(session.extend(&[]), Err(GenerateError::Empty)));
    let unknown = session.extend(&[u32::MAX]);
    assert!(matches!(unknown, Err(GenerateError::Model(ModelError::TokenId { .. }))), "{unknown:?}");
    assert_eq!(session.ids(), [1, 2, 3]);
    // A session that has refused input gives the same logits as a new one.
    let after = session.extend(&[4]).unwrap();
    let mut other = loaded.session();
    assert_eq!(other.extend(&[1, 2, 3]).unwrap(), before);
    assert_eq!(other.extend(&[4]).unwrap(), after);
}

fn greedy() -> Sampler {
    Sampler::new(Sampling::new(Choice::Greedy)).unwrap()
}

/// Continues a text greedily. The streamed text must equal the returned text.
fn continued(loaded: &Loaded, tokenizer: &Tokenizer, prompt: &str, settings: &Settings) -> Generated {
    let prompt = tokenizer.encode(prompt, AddSpecial::Yes).unwrap();
    let mut told = String::new();
    let mut tell = |text: &str| {
        told.push_str(text);
        ControlFlow::Continue(())
    };
    let result = generate(&mut loaded.session(), &prompt, (settings, &mut greedy(), tokenizer), &mut tell).unwrap();
    assert_eq!(told, result.text);
    result
}

#[test]
fn the_likeliest_tokens_are_those_of_whole_forwards() {
    let (loaded, model) = (loaded("tiny-llama", DENSE), open("tiny-llama", DENSE));
    let tokenizer = Tokenizer::open(&fixture("tiny-llama")).unwrap();
    let settings = Settings::new(12);
    let result = continued(&loaded, &tokenizer, "The river", &settings);
    assert_eq!((result.ids.len(), &result.end), (12, &End::MaxTokens));
    let prompt = tokenizer.encode("The river", AddSpecial::Yes).unwrap();
    let mut ids: Vec<i64> = prompt.iter().map(|&id| i64::from(id)).collect();
    for &id in &result.ids {
        let all = logits(&model, &Tensor::from_slice(&ids).unsqueeze(0), Device::Cpu).unwrap();
        let likeliest = all.get(0).get(-1).argmax(0, false).int64_value(&[]);
        assert_eq!(i64::from(id), likeliest);
        ids.push(likeliest);
    }
    let whole: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    let (all, before) = (tokenizer.decode(&whole).unwrap(), tokenizer.decode(&prompt).unwrap());
    assert_eq!(all.strip_prefix(&before), Some(result.text.as_str()));
}

#[test]
fn a_text_ends_where_it_is_to_end() {
    let loaded = loaded("tiny-llama", DENSE);
    let tokenizer = Tokenizer::open(&fixture("tiny-llama")).unwrap();
    let settings = Settings::new;
    let free = continued(&loaded, &tokenizer, "The river", &settings(24));
    assert_eq!(continued(&loaded, &tokenizer, "The river", &settings(0)).text, "");

    // A stop string that spans several tokens.
    let (start, _) = free.text.char_indices().nth(free.text.chars().count() / 2).unwrap();
    let stop = free.text[start..].chars().take(5).collect::<String>();
    let stopped = settings(24).with_stops(vec!["nowhere".to_owned(), stop.clone()]);
    let result = continued(&loaded, &tokenizer, "The river", &stopped);
    assert_eq!(result.end, End::Stop(stop.clone()));
    assert_eq!(result.text, free.text[..free.text.find(&stop).unwrap()]);

    let ended = settings(24).with_ends(vec![free.ids[3]]);
    let result = continued(&loaded, &tokenizer, "The river", &ended);
    let at = free.ids.iter().position(|id| *id == free.ids[3]).unwrap();
    assert_eq!((result.end, &result.ids[..]), (End::Token(free.ids[3]), &free.ids[..at]));

    let mut session = loaded.session();
    let limit = session.limit();
    let prompt = ids(limit - 2, 100);
    let mut go_on = |_: &str| ControlFlow::Continue(());
    let full = generate(&mut session, &prompt, (&settings(24), &mut greedy(), &tokenizer), &mut go_on).unwrap();
    // Two more tokens fit into the context, and a third one is predicted from them.
    assert_eq!((full.end, full.ids.len()), (End::Context, 3));
    let mut break_off = |_: &str| ControlFlow::Break(());
    let broken =
        generate(&mut loaded.session(), &prompt[..4], (&settings(24), &mut greedy(), &tokenizer), &mut break_off);
    assert_eq!(broken.unwrap().end, End::Interrupted);
}

#[test]
fn characters_that_tokens_cut_are_held_back() {
    let tokenizer = Tokenizer::open(&fixture("tiny-llama")).unwrap();
    let text = " naïve — 日本語, 🙂 and so on";
    let ids = tokenizer.encode(text, AddSpecial::No).unwrap();
    let mut stream = TextStream::new(&tokenizer, &[], &[]).unwrap();
    let mut told = String::new();
    for &id in &ids {
        let piece = stream.push(id).unwrap();
        assert!(!piece.text.contains('\u{fffd}'), "{:?}", piece.text);
        told.push_str(&piece.text);
    }
    told.push_str(&stream.finish().text);
    assert_eq!(told, tokenizer.decode(&ids).unwrap());

    // Text that begins like a stop string and continues differently is streamed late but completely.
    let stops = ["so far".to_owned(), "nothing".to_owned()];
    let mut stream = TextStream::new(&tokenizer, &[], &stops).unwrap();
    let pieces: Vec<_> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert!(pieces.iter().all(|piece| piece.stop.is_none()));
    let told: String = pieces.into_iter().map(|piece| piece.text).collect();
    assert_eq!(told + &stream.finish().text, tokenizer.decode(&ids).unwrap());
}

#[test]
fn tokens_may_end_one_character_and_begin_the_next() {
    let dir = tempfile::tempdir().unwrap();
    // Bytes as in a byte-level vocabulary: é is two bytes, and token 1 is its second byte followed by another character's first byte.
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "post_processor": null,
        "normalizer": null, "pre_tokenizer": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "vocab": {"\u{c3}": 0, "\u{a9}\u{c3}": 1, "\u{a9}": 2, "x": 3}, "merges": []},
    });
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let told = |ids: &[u32]| {
        let mut stream = TextStream::new(&tokenizer, &[3], &[]).unwrap();
        let pieces = ids.iter().map(|&id| stream.push(id).unwrap().text).collect::<Vec<_>>();
        (pieces, stream.finish().text)
    };
    let (pieces, rest) = told(&[0, 1, 1, 1, 1, 1, 1, 2, 3]);
    assert_eq!(pieces, ["", "é", "é", "é", "é", "é", "é", "é", "x"]);
    assert_eq!(rest, "");
    // Invalid UTF-8 is streamed as soon as it cannot be the beginning of a character, and at the end.
    let (pieces, rest) = told(&[2, 2, 2, 2, 2, 3, 0]);
    assert_eq!(pieces.concat() + &rest, format!("{}x\u{fffd}", "\u{fffd}".repeat(5)));
    assert_eq!(pieces, ["\u{fffd}", "\u{fffd}", "\u{fffd}", "\u{fffd}", "\u{fffd}", "x", ""]);
}

/// A tokenizer like LLaMA's SentencePiece one: unknown characters become bytes, and each byte of an invalid sequence is decoded as a
/// replacement character.
fn tokenizer_of_bytes(dir: &Path) -> Tokenizer {
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let letters = ('a'..='z').map(String::from).chain(["\u{2581}".to_owned()]);
    let vocab: serde_json::Map<String, serde_json::Value> =
        bytes.chain(letters).enumerate().map(|(id, token)| (token, id.into())).collect();
    let space = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "post_processor": null,
        "normalizer": space(" ", "\u{2581}"),
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": [space("\u{2581}", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true},
    });
    std::fs::write(dir.join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::open(dir).unwrap()
}

#[test]
fn characters_of_byte_tokens_come_whole() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer_of_bytes(dir.path());
    let text = "so it is தமிழ்நாடு 日本語日本語 🙂🙂🙂 and so on";
    let ids = tokenizer.encode(text, AddSpecial::No).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    // A prompt can end at any character.
    for prompt in text.char_indices().map(|(at, _)| &text[..at]) {
        let before = tokenizer.encode(prompt, AddSpecial::No).unwrap().len();
        let mut stream = TextStream::new(&tokenizer, &ids[..before], &[]).unwrap();
        let mut told = prompt.to_owned();
        for &id in &ids[before..] {
            told.push_str(&stream.push(id).unwrap().text);
        }
        told.push_str(&stream.finish().text);
        assert_eq!(told, text, "after {prompt:?}");
    }
}
