//! Text of tokens one by one against the text of all of them, over random ids.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should fail")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use oq_data::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

const BROKEN: char = '\u{fffd}';

fn tiny_llama() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-llama");
        Tokenizer::open(&folder).unwrap()
    })
}

/// Tokens of the vocabulary below that are no byte.
const PIECES: [&str; 14] = [
    "\u{2581}",
    "\u{2581}\u{2581}",
    "a",
    "\u{2581}the",
    "\u{2581}b",
    "\n",
    "é",
    "你",
    ".",
    "|",
    "<s>",
    "\u{2581}w",
    "w",
    "x",
];
const BAR: u32 = 256 + 9;
const SPECIAL: u32 = 256 + 10;

/// A tokenizer with byte fallback, as LLaMA's (`strips` the first space) or without a space before.
fn byte_fallback(strips: bool) -> &'static Tokenizer {
    static TOKENIZERS: [OnceLock<Tokenizer>; 2] = [OnceLock::new(), OnceLock::new()];
    TOKENIZERS[usize::from(strips)].get_or_init(|| {
        let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
        let tokens = bytes.chain(PIECES.map(str::to_owned));
        let vocab: serde_json::Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if strips {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let special = json!({"id": SPECIAL, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true});
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special], "post_processor": null,
            "normalizer": null, "pre_tokenizer": null, "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true},
        });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
        Tokenizer::open(dir.path()).unwrap()
    })
}

/// The text that each id adds after `prompt`, and what is left at the end.
fn pieces(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> (Vec<String>, String) {
    let mut stream = tokenizer.stream(prompt).unwrap();
    let pieces = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    (pieces, stream.finish())
}

/// Ids of bytes that make characters, of bytes that do not, and of other tokens.
fn ids_with_bytes() -> impl Strategy<Value = Vec<u32>> {
    let one = |id: u32| vec![id];
    let character = prop_oneof![Just('é'), Just('你'), Just('🙂'), any::<char>()];
    let item = prop_oneof![
        (0..256u32).prop_map(one),
        character.prop_map(|c| c.to_string().bytes().map(u32::from).collect()),
        (256..256 + PIECES.len() as u32).prop_map(one),
        (256..256 + PIECES.len() as u32).prop_map(one),
    ];
    proptest::collection::vec(item, 0..24).prop_map(|items| items.concat())
}

/// Runs of bytes in `ids`, special tokens among them, as ranges.
fn runs(ids: &[u32]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let mut open: Option<std::ops::Range<usize>> = None;
    for (at, &id) in ids.iter().enumerate() {
        if id < 256 {
            let start = open.as_ref().map_or(at, |run| run.start);
            open = Some(start..at + 1);
        } else if id != SPECIAL {
            runs.extend(open.take());
        }
    }
    runs.extend(open);
    runs
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Byte-level tokens: the very text, whatever the bytes are.
    #[test]
    fn byte_level_text_is_that_of_all_ids(ids in proptest::collection::vec(0..1024u32, 0..40), cut in any::<prop::sample::Index>()) {
        let tokenizer = tiny_llama();
        let (all, rest) = pieces(tokenizer, &[], &ids);
        prop_assert_eq!(all.concat() + &rest, tokenizer.decode(&ids).unwrap());
        // After a prompt the same is new as in one go.
        let cut = cut.index(ids.len() + 1);
        prop_assert_eq!(pieces(tokenizer, &ids[..cut], &ids[cut..]), (all[cut..].to_vec(), rest));
    }

    /// Byte fallback: the very text but for runs of bytes that are no text, which the library calls broken as a whole. In such a run
    /// no character is lost that its bytes make, and what follows it stands.
    #[test]
    fn byte_fallback_text_is_that_of_all_ids_but_in_broken_runs(
        ids in ids_with_bytes(), strips in any::<bool>(), cut in any::<prop::sample::Index>()
    ) {
        let tokenizer = byte_fallback(strips);
        let (all, rest) = pieces(tokenizer, &[], &ids);
        let mut told: Vec<String> = all.iter().cloned().chain([rest.clone()]).collect();
        // A bar for each broken run, here and there.
        let mut others: Vec<Option<u32>> = ids.iter().copied().map(Some).collect();
        for run in runs(&ids) {
            let bytes: Vec<u8> = ids[run.clone()].iter().filter(|&&id| id < 256).map(|&id| id as u8).collect();
            if std::str::from_utf8(&bytes).is_ok() {
                continue;
            }
            // What is known to be broken only by the next token is told with that.
            let next = (run.end..ids.len()).find(|&at| ids[at] != SPECIAL).unwrap_or(ids.len());
            let of_next = told[next].trim_start_matches(BROKEN).to_owned();
            let broken: String = told[run.clone()].concat() + &told[next][..told[next].len() - of_next.len()];
            let whole: String = bytes.utf8_chunks().map(|chunk| chunk.valid()).collect();
            prop_assert_eq!(broken.replace(BROKEN, ""), whole.replace(BROKEN, ""));
            prop_assert!(broken.contains(BROKEN));
            told[run.clone()].fill(String::new());
            told[run.start] = "|".to_owned();
            told[next] = of_next;
            others[run.clone()].fill(None);
            others[run.start] = Some(BAR);
        }
        let others: Vec<u32> = others.into_iter().flatten().collect();
        prop_assert_eq!(told.concat(), tokenizer.decode(&others).unwrap(), "{:?}", ids);
        let cut = cut.index(ids.len() + 1);
        prop_assert_eq!(pieces(tokenizer, &ids[..cut], &ids[cut..]), (all[cut..].to_vec(), rest));
    }
}

#[test]
fn a_word_after_a_broken_byte_stands() {
    let tokenizer = byte_fallback(true);
    // The first byte of a character, then a word.
    let (pieces, rest) = pieces(tokenizer, &[], &[256 + 3, 0xe4, 256 + 4, 0xe4, 0xbd]);
    assert_eq!((pieces.concat(), rest.as_str()), ("the\u{fffd} b".to_owned(), "\u{fffd}\u{fffd}"));
}
