//! The bytes are a `tokenizer.json`; a text is encoded with what could be opened, and decoded again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oq_data::{AddSpecial, Tokenizer};
use oq_fuzz::{scratch, write};

const TEXT: &str = "The 12 foxes\n\n didn't  jump\u{301} \u{1f98a}, <s>no</s>";

fuzz_target!(
    init: {
        write("tokenizer_config.json", br#"{"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": true}"#);
        // The fuzzer's hook ends the process before a panic can be caught, as the tokenizer catches those of the library beneath.
        // What is not caught still ends it, one frame further up.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |bytes: &[u8]| {
        write("tokenizer.json", bytes);
        let Ok(tokenizer) = Tokenizer::open(scratch()) else { return };
        for with_special in [AddSpecial::Yes, AddSpecial::No] {
            if let Ok(ids) = tokenizer.encode(TEXT, with_special) {
                assert!(ids.iter().all(|&id| id < tokenizer.id_bound()), "an id beyond the bound");
                let _ = tokenizer.decode(&ids);
            }
        }
    }
);
