//! The bytes are a `vocab.json`, a `merges.txt` and a `tokenizer_config.json`, with a zero byte between each two.

use crate::files::write;
use crate::tokenizer::encodes;

/// Whether they are a tokenizer that can encode a text.
pub fn read(bytes: &[u8]) -> bool {
    let mut parts = bytes.splitn(3, |&byte| byte == 0);
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        write(name, parts.next().unwrap_or(b"{}"));
    }
    encodes("The low, lower 12")
}
