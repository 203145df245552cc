//! The bytes are a `vocab.json`, a `merges.txt` and a `tokenizer_config.json`, with a zero byte between each two.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oq_data::{AddSpecial, Tokenizer};
use oq_fuzz::{scratch, write};

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |&byte| byte == 0);
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        write(name, parts.next().unwrap_or(b"{}"));
    }
    let Ok(tokenizer) = Tokenizer::open(scratch()) else { return };
    for with_special in [AddSpecial::Yes, AddSpecial::No] {
        if let Ok(ids) = tokenizer.encode("The low, lower 12", with_special) {
            assert!(ids.iter().all(|&id| id < tokenizer.id_bound()), "an id beyond the bound");
            let _ = tokenizer.decode(&ids);
        }
    }
});
