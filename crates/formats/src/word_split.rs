//! The regular expression that vocabularies of byte-level BPE share.

/// How Llama 3 and models after it cut a text before merging, as a regular expression: contractions, words with one leading sign, up to
/// `digits` digits, signs, line breaks, spaces. Llama 3 has three digits together, Qwen 2 none.
pub fn word_split(digits: usize) -> String {
    let digits = if digits == 1 { r"|\p{N}".to_owned() } else { format!(r"|\p{{N}}{{1,{digits}}}") };
    let (before, after) = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    );
    format!("{before}{digits}{after}")
}
