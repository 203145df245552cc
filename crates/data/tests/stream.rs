//! Text of tokens one by one against the text of all of them, over random ids.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up should fail")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use oq_data::{DecodeStream, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
/// Number of byte tokens that wait.
const RUN: usize = DecodeStream::RUN;

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

/// The longest run of bytes in `ids`; special tokens do not end one.
fn longest_run(ids: &[u32]) -> usize {
    let tokens: Vec<u32> = ids.iter().copied().filter(|&id| id != SPECIAL).collect();
    tokens.split(|&id| id >= 256).map(<[u32]>::len).max().unwrap_or(0)
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

    /// Byte fallback: the very text, and after a prompt the same is new as in one go.
    #[test]
    fn byte_fallback_text_is_that_of_all_ids(ids in ids_with_bytes(), strips in any::<bool>(), cut in any::<prop::sample::Index>()) {
        prop_assume!(longest_run(&ids) <= RUN);
        let tokenizer = byte_fallback(strips);
        let (all, rest) = pieces(tokenizer, &[], &ids);
        prop_assert_eq!(all.concat() + &rest, tokenizer.decode(&ids).unwrap(), "{:?}", ids);
        let (prompt, new) = ids.split_at(cut.index(ids.len() + 1));
        if prompt.iter().rfind(|&&id| id != SPECIAL).is_none_or(|&id| id >= 256) {
            prop_assert_eq!(pieces(tokenizer, prompt, new), (all[prompt.len()..].to_vec(), rest));
        }
    }

    /// Characters of bytes at the end of a prompt are the prompt's: they are not told again.
    #[test]
    fn characters_of_the_prompt_are_not_told_again(
        before in "[a-xé你🙂 ]{0,8}", after in "[a-xé你🙂 ]{0,8}", split in 0..4usize, strips in any::<bool>()
    ) {
        let tokenizer = byte_fallback(strips);
        let bytes: Vec<u32> = (before.clone() + &after).bytes().map(u32::from).collect();
        // Within a character, the whole character is told.
        let at = (before.len() + split).min(bytes.len());
        let told = (before.clone() + &after).as_bytes()[..at].utf8_chunks().next().map_or(0, |chunk| chunk.valid().len());
        let (pieces, rest) = pieces(tokenizer, &bytes[..at], &bytes[at..]);
        let all = tokenizer.decode(&bytes).unwrap();
        let known = tokenizer.decode(&bytes[..told]).unwrap();
        prop_assert_eq!(known + &pieces.concat() + &rest, all);
    }

    /// A run that does not end is told all the same, at most `RUN` bytes late, and nothing that its bytes make is lost.
    #[test]
    fn long_runs_are_told_as_they_come(text in "[é你🙂]{12,60}", broken in any::<bool>()) {
        let tokenizer = byte_fallback(true);
        let mut bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        bytes.extend(broken.then_some(0xff));
        let (pieces, rest) = pieces(tokenizer, &[], &bytes);
        let mut told = 0;
        for (at, piece) in pieces[..text.len()].iter().enumerate() {
            told += piece.len();
            prop_assert!(told + RUN > at);
        }
        let (known, last) = text.split_at(told);
        let end = if broken { "\u{fffd}".repeat(last.len() + 1) } else { last.to_owned() };
        prop_assert_eq!(pieces.concat() + &rest, known.to_owned() + &end);
    }
}

#[test]
fn a_word_after_a_broken_byte_stands() {
    let tokenizer = byte_fallback(true);
    // The first byte of a character, then a word. A broken byte breaks its neighbours.
    let (pieces, rest) = pieces(tokenizer, &[], &[256 + 3, 0xe4, 256 + 4, 0xe4, 0xbd]);
    assert_eq!((pieces.concat(), rest.as_str()), ("the\u{fffd} b".to_owned(), "\u{fffd}\u{fffd}"));
    let ids = [256 + 3, 0xc3, 0xa9, 0x29, 0xff, 256 + 4];
    let (pieces, rest) = self::pieces(tokenizer, &[], &ids);
    assert_eq!((pieces.concat(), rest.as_str()), ("the\u{fffd}\u{fffd}\u{fffd}\u{fffd} b".to_owned(), ""));
    assert_eq!(pieces.concat(), tokenizer.decode(&ids).unwrap());
}
