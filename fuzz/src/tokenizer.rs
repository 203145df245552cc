//! The bytes are a `tokenizer.json`; a text is encoded with what could be opened, and decoded again.

use oq_data::{AddSpecial, Tokenizer};

use crate::files::{scratch, write};

const TEXT: &str = "The 12 foxes\n\n didn't  jump\u{301} \u{1f98a}, <s>no</s>";

/// Whether it is a tokenizer that can encode a text.
pub fn read(bytes: &[u8]) -> bool {
    write("tokenizer_config.json", br#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}"#);
    write("tokenizer.json", bytes);
    encodes(TEXT)
}

/// Whether the tokenizer that lies in [`scratch`] can encode `text`.
pub(crate) fn encodes(text: &str) -> bool {
    let Ok(tokenizer) = Tokenizer::open(&scratch()) else { return false };
    let mut encodes = true;
    for with_special in [AddSpecial::Yes, AddSpecial::No] {
        match tokenizer.encode(text, with_special) {
            Ok(ids) => {
                assert!(ids.iter().all(|&id| id < tokenizer.id_bound()), "an id beyond the bound");
                let _ = tokenizer.decode(&ids);
            }
            Err(_) => encodes = false,
        }
    }
    encodes
}
