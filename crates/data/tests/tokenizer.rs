//! Ids of real tokenizers against those of the tokenizers they were published with.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should fail")]

use std::path::{Path, PathBuf};

use oq_data::{AddSpecial, DataError, ErrorKind, Rows, Split, Tokenizer, load_text};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A folder with the named files of `from`, and `extra` files with their content.
fn folder(from: &[(&Path, &str)], extra: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, name) in from {
        std::fs::copy(path, dir.path().join(name)).unwrap();
    }
    for (name, content) in extra {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

#[test]
fn tiny_llama_reads_its_held_out_text_as_its_trainer_did() {
    let tokenizer = Tokenizer::open(&fixture("tiny-llama")).unwrap();
    let text = std::fs::read_to_string(fixture("eval.txt")).unwrap();
    let text = text.strip_suffix('\n').unwrap();
    let ids = tokenizer.encode(text, AddSpecial::Yes).unwrap();
    assert_eq!(ids.len(), 10_045);
    assert_eq!(ids[..8], [370, 363, 261, 355, 14, 261, 806, 950]);
    assert_eq!(ids[10_041..], [11, 28, 66, 16]);
    let checksum: u64 = ids.iter().enumerate().map(|(k, &id)| u64::from(id) * (k as u64 % 97 + 1)).sum();
    assert_eq!(checksum, 187_800_189);
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.id_bound()), (Some(0), &[2][..], 1024));
}

#[test]
fn add_bos_token_decides_over_the_post_processor() {
    let source = fixture("tiny-llama/tokenizer.json");
    let with = |config: &str| {
        let dir = folder(&[(&source, "tokenizer.json")], &[("tokenizer_config.json", config)]);
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        (tokenizer.encode("the", AddSpecial::Yes).unwrap(), tokenizer.encode("the", AddSpecial::No).unwrap())
    };
    let (plain, _) = with("{}");
    let bos: Vec<u32> = std::iter::once(0).chain(plain.clone()).collect();
    assert_eq!(with(r#"{"bos_token": "<s>"}"#), (plain.clone(), plain.clone()));
    assert_eq!(with(r#"{"bos_token": "<s>", "add_bos_token": true}"#), (bos.clone(), plain.clone()));
    assert_eq!(with(r#"{"bos_token": {"content": "<s>"}, "add_bos_token": true}"#), (bos, plain.clone()));
    assert_eq!(with(r#"{"bos_token": "<none>", "add_bos_token": true}"#), (plain.clone(), plain));
}

#[test]
fn a_template_with_bos_adds_it_once_or_not_at_all() {
    let json = std::fs::read_to_string(fixture("tiny-llama/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    });
    json["truncation"] = serde_json::json!(
        {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    for (config, bos) in [
        (r#"{"bos_token": "<s>"}"#, 1),
        (r#"{"bos_token": "<s>", "add_bos_token": true}"#, 1),
        (r#"{"bos_token": "<s>", "add_bos_token": false}"#, 0),
    ] {
        let dir = folder(&[], &[("tokenizer.json", &json.to_string()), ("tokenizer_config.json", config)]);
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        let ids = tokenizer.encode("one two three four five six", AddSpecial::Yes).unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == 0).count(), bos, "{config}");
        let text = tokenizer.encode("one two three four five six", AddSpecial::No).unwrap();
        assert!(text.len() > 4 && ids[bos..] == text, "a truncation left in the file must not act: {ids:?}");
    }
}

/// Strings and ids of GPT-2's byte-level BPE with OPT's vocabulary, as `transformers` gives them without BOS.
const OPT: [(&str, &[u32]); 9] = [
    ("Hello world", &[31414, 232]),
    (" Hello", &[20920]),
    ("The year 1984 — don't panic!", &[133, 76, 11724, 93, 218, 75, 9810, 328]),
    ("naïve café\n\n  two", &[2133, 48350, 26059, 50140, 1437, 80]),
    ("日本語 🙂", &[47954, 8210, 44636, 11582, 48537, 17772, 45868]),
    ("a</s>b", &[102, 2, 428]),
    ("tabs\tand   spaces  ", &[34108, 29, 50117, 463, 1437, 1437, 5938, 1437, 1437]),
    ("x = y**2 + 10_000;", &[1178, 5457, 1423, 12606, 176, 2055, 158, 1215, 151, 131]),
    ("", &[]),
];

#[test]
fn opt_is_read_from_vocab_and_merges() {
    let Some(data) = std::env::var_os("OMNIQUANT_DATA").map(PathBuf::from) else {
        eprintln!("skipped: OMNIQUANT_DATA is not set");
        return;
    };
    let (vocab, merges) = (data.join("tokenizers/opt-vocab.json"), data.join("tokenizers/opt-merges.txt"));
    let config = r#"{"bos_token": {"content": "</s>"}, "eos_token": "</s>", "add_bos_token": true}"#;
    let files = [("tokenizer_config.json", config)];
    let dir = folder(&[(&vocab, "vocab.json"), (&merges, "merges.txt")], &files);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.id_bound()), (Some(2), &[2][..], 50_265));
    for (text, ids) in OPT {
        assert_eq!(tokenizer.encode(text, AddSpecial::No).unwrap(), ids, "{text:?}");
        let with_bos = tokenizer.encode(text, AddSpecial::Yes).unwrap();
        assert_eq!((with_bos[0], &with_bos[1..]), (2, ids), "{text:?}");
        assert_eq!(tokenizer.decode(&with_bos).unwrap(), text.replace("</s>", ""));
    }
}

#[test]
fn smollm2_reads_wikitext2_with_the_published_number_of_tokens() {
    let (Some(data), Some(model)) = (std::env::var_os("OMNIQUANT_DATA"), std::env::var_os("OMNIQUANT_SMOLLM2")) else {
        eprintln!("skipped: OMNIQUANT_DATA or OMNIQUANT_SMOLLM2 (a SmolLM2 model's folder) is not set");
        return;
    };
    let hub = oq_data::Hub::from_env().with_offline(true);
    let text = load_text("wikitext2", Split::Test, Some(Path::new(&data)), &hub, Rows::default()).unwrap();
    let ids = Tokenizer::open(Path::new(&model)).unwrap().encode(&text.text, AddSpecial::Yes).unwrap();
    assert_eq!(ids.len(), 304_978);
}

#[test]
fn chat_models_end_on_every_token_their_generation_names() {
    let source = fixture("tiny-llama/tokenizer.json");
    let config = [
        ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#),
        ("generation_config.json", "{\"eos_token_id\": [7, 2]}"),
    ];
    let dir = folder(&[(&source, "tokenizer.json")], &config);
    assert_eq!(Tokenizer::open(dir.path()).unwrap().eos(), [2, 7]);
}

/// Folders of files with what transformers makes of them: `fixtures/make_tokenizers.py`.
#[test]
fn each_class_reads_its_files_as_transformers_does() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let entries = std::fs::read_to_string(fixtures.join("tokenizers.json")).unwrap();
    let entries: Vec<serde_json::Value> = serde_json::from_str(&entries).unwrap();
    let tiny: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("tiny-llama/tokenizer.json")).unwrap()).unwrap();
    let merges: Vec<String> = tiny["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge.as_array() {
            Some(pair) => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            None => merge.as_str().unwrap().to_owned(),
        })
        .collect();
    assert_eq!(entries.len(), 13);
    for entry in entries {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        match entry["vocabulary"].as_str().unwrap() {
            "model" => write("tokenizer.model", &std::fs::read(fixtures.join("tokenizer.model")).unwrap()),
            "json" => write("tokenizer.json", tiny.to_string().as_bytes()),
            _ => {
                write("vocab.json", tiny["model"]["vocab"].to_string().as_bytes());
                write("merges.txt", format!("#version: 0.2\n{}\n", merges.join("\n")).as_bytes());
            }
        }
        for (name, content) in entry["files"].as_object().unwrap() {
            write(name, content.to_string().as_bytes());
        }
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        for text in entry["texts"].as_array().unwrap() {
            let (text, ids, decoded) = (text[0].as_str().unwrap(), &text[1], text[2].as_str().unwrap());
            let ids: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            assert_eq!(tokenizer.encode(text, AddSpecial::Yes).unwrap(), ids, "{}: {text:?}", entry["name"]);
            assert_eq!(tokenizer.decode(&ids).unwrap(), decoded, "{}: {text:?}", entry["name"]);
        }
    }
}

#[test]
fn ends_stand_where_transformers_looks_for_them() {
    let source = fixture("tiny-llama/tokenizer.json");
    let ends = |files: &[(&str, &str)]| {
        let dir = folder(&[(&source, "tokenizer.json")], files);
        Tokenizer::open(dir.path()).map(|tokenizer| tokenizer.eos().to_vec())
    };
    let own = ("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    let config = |ends: &'static str| ("config.json", ends);
    let generation = |ends: &'static str| ("generation_config.json", ends);
    assert_eq!(ends(&[config(r#"{"eos_token_id": 5}"#)]).unwrap(), [5]);
    assert_eq!(ends(&[config(r#"{"eos_token_id": [7, 5]}"#), own]).unwrap(), [2, 5, 7]);
    let both = [config(r#"{"eos_token_id": 5}"#), generation(r#"{"eos_token_id": [9, 8]}"#), own];
    assert_eq!(ends(&both).unwrap(), [2, 8, 9]);
    // A generation_config.json without ends says nothing of them.
    assert_eq!(ends(&[config(r#"{"eos_token_id": 5}"#), generation(r#"{"do_sample": true}"#)]).unwrap(), [5]);
    assert_eq!(ends(&[config(r#"{"eos_token_id": null}"#), generation("{}")]).unwrap(), [0u32; 0]);
    assert_eq!(ends(&[config(r#"{"eos_token_id": -1}"#)]).unwrap(), [0u32; 0]);
    let error = ends(&[generation(r#"{"eos_token_id": "</s>"}"#)]).unwrap_err().to_string();
    assert!(error.contains("generation_config.json") && error.contains("eos_token_id"), "{error}");
}

#[test]
fn a_tokenizer_of_another_class_is_refused_by_its_name() {
    let (vocab, merges) = (("vocab.json", r#"{"a": 0, "b": 1, "ab": 2}"#), ("merges.txt", "a b\n"));
    let class = |class: &'static str| ("tokenizer_config.json", class);
    let refused = [
        (vec![vocab, merges, class(r#"{"tokenizer_class": "RobertaTokenizerFast"}"#)], "RobertaTokenizerFast"),
        (vec![vocab, merges, class(r#"{"tokenizer_class": "CodeGenTokenizer"}"#)], "CodeGenTokenizer"),
        // Its merges are in tokenizer.model.
        (vec![vocab, merges, ("config.json", r#"{"model_type": "llama"}"#)], "LlamaTokenizer"),
        (vec![("tokenizer.model", "x"), class(r#"{"tokenizer_class": "GemmaTokenizer"}"#)], "GemmaTokenizer"),
    ];
    for (files, name) in refused {
        check_refused(&files, ErrorKind::MissingInput, &format!("{name} is not read from"));
    }
    // What tokenizer.model is, where it is no model of LLaMA's kind.
    check_refused(&[("tokenizer.model", "IQ== 0\nIg== 1\n")], ErrorKind::Corrupt, "tiktoken");
    check_refused(&[("tokenizer.model", "no")], ErrorKind::Corrupt, "tokenizer.model: no SentencePiece model");
    // A piece of type unknown, and no word on the kind of model, which is unigram then.
    let unigram = "\u{a}\u{e}\u{a}\u{5}<unk>\u{15}\0\0\0\0\u{18}\u{2}";
    check_refused(&[("tokenizer.model", unigram)], ErrorKind::Corrupt, "not BPE");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    check_refused(&[("tokenizer.model", pointer)], ErrorKind::Corrupt, "git lfs pull");
    check_refused(&[("tokenizer.json", pointer)], ErrorKind::Corrupt, "git lfs pull");
    check_refused(&[("tekken.json", "{}")], ErrorKind::MissingInput, "found tekken.json alone");
}

#[test]
fn defaults_of_generation_are_those_of_its_file() {
    let of = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("generation_config.json"), text).unwrap();
        oq_data::Generation::open(dir.path())
    };
    let draws = of(r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05}"#).unwrap();
    assert!(draws.draws);
    assert_eq!((draws.temperature, draws.top_p, draws.repetition_penalty), (Some(0.6), Some(0.9), Some(1.05)));
    // 50 is what transformers takes where the file says nothing, and 0 is all.
    assert_eq!(
        (draws.top_k, of(r#"{"top_k": 0}"#).unwrap().top_k, of(r#"{"top_k": 7}"#).unwrap().top_k),
        (Some(50), None, Some(7))
    );
    assert_eq!(of(r#"{"min_p": 0.1, "typical_p": 1.0, "num_beams": 1}"#).unwrap().unknown, ["min_p"]);
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(oq_data::Generation::open(empty.path()).unwrap(), oq_data::Generation::default());
    assert!(of(r#"{"temperature": "warm"}"#).unwrap_err().to_string().contains("temperature is \"warm\""));
}

#[track_caller]
fn check_refused(files: &[(&str, &str)], kind: ErrorKind, said: &str) {
    let dir = folder(&[], files);
    let err: DataError = Tokenizer::open(dir.path()).unwrap_err();
    assert_eq!(err.kind(), kind, "{err}");
    assert!(err.to_string().contains(said), "{err}");
}

#[test]
fn what_is_missing_or_broken_is_named() {
    let merges = ("merges.txt", "#version: 0.2\na b\n");
    check_refused(&[], ErrorKind::MissingInput, "looked for tokenizer.json, or vocab.json with merges.txt");
    check_refused(&[merges], ErrorKind::MissingInput, "vocab.json");
    check_refused(&[("tokenizer.json", "{}")], ErrorKind::Corrupt, "tokenizer.json: not readable as a tokenizer");
    check_refused(&[("tokenizer_config.json", "{")], ErrorKind::Corrupt, "tokenizer_config.json: not valid JSON");
    check_refused(&[("vocab.json", "[]"), merges], ErrorKind::Corrupt, "vocab.json: not an object");
    check_refused(&[("vocab.json", r#"{"a": -1}"#), merges], ErrorKind::Corrupt, "vocab.json: an id");
    let vocab = ("vocab.json", r#"{"a": 0, "b": 1}"#);
    check_refused(&[vocab, merges], ErrorKind::Corrupt, "line 2: \"a b\" makes a token that is not in vocab.json");
    check_refused(&[vocab, ("merges.txt", "ab\n")], ErrorKind::Corrupt, "line 1: \"ab\" is not two tokens");
    let vocab = ("vocab.json", r#"{"a": 0, "ab": 1}"#);
    check_refused(&[vocab, merges], ErrorKind::Corrupt, "merges.txt: does not fit vocab.json");
}

/// A tokenizer.json with the model and the pre-tokenizer of that JSON.
fn tokenizer_json(model: &str, pre_tokenizer: &str) -> String {
    format!(r#"{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {pre_tokenizer}, "model": {model}}}"#)
}

#[test]
fn a_file_that_the_library_panics_at_is_refused() {
    // The merge's second token is shorter than the prefix that it should begin with.
    let model = r#"{"type": "BPE", "continuing_subword_prefix": "@@", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}"#;
    let json = tokenizer_json(model, "null");
    check_refused(&[("tokenizer.json", &json)], ErrorKind::Corrupt, "tokenizer.json: not readable as a tokenizer");

    // A text can be read only in pieces of some length.
    let model = r#"{"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}}"#;
    let json = tokenizer_json(model, r#"{"type": "FixedLength", "length": 0}"#);
    let dir = folder(&[], &[("tokenizer.json", &json)]);
    let err = Tokenizer::open(dir.path()).unwrap().encode("ab", AddSpecial::No).unwrap_err();
    assert!(matches!(err, DataError::Tokenize { action: "encode the text", .. }), "{err}");
    assert!(err.to_string().contains("its settings contradict each other"), "{err}");
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let json = std::fs::read_to_string(fixture("tiny-llama/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["post_processor"] = serde_json::json!({"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1024]});
    let dir = folder(&[], &[("tokenizer.json", &json.to_string())]);
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert!(tokenizer.encode("one", AddSpecial::No).is_ok());
    let err = tokenizer.encode("one", AddSpecial::Yes).unwrap_err().to_string();
    assert!(err.contains("id 1024 is not in the vocabulary, whose ids are below 1024"), "{err}");
}

#[test]
fn the_largest_id_of_all_has_a_bound() {
    let json = tokenizer_json(r#"{"type": "WordLevel", "unk_token": "a", "vocab": {"a": 4294967295}}"#, "null");
    let dir = folder(&[], &[("tokenizer.json", &json)]);
    assert_eq!(Tokenizer::open(dir.path()).unwrap().id_bound(), u32::MAX);
}
