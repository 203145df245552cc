//! Streams the text of tokens, without ever taking anything back.
//!
//! The concatenated pieces are the text of all ids decoded at once. There is one exception: tokenizers with byte fallback. A character is
//! emitted as soon as its bytes are complete, but if a broken byte follows, the library reports every byte of the run as broken.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::Tokenizer;
use crate::error::DataError;

/// Number of earlier tokens that decide how text continues, such as whether with a space.
const BEFORE: usize = 4;

/// Turns tokens into text, one after the other.
#[derive(Clone, Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    kind: Kind,
    /// Bytes that may be the beginning of a character.
    pending: Vec<u8>,
    /// The last tokens whose text is known; they decide the spacing. The first of them is not a byte token.
    before: Vec<u32>,
}

/// How ids become text.
#[derive(Clone, Debug)]
enum Kind {
    /// Every token is a sequence of bytes. Maps each letter of a token to its byte.
    Bytes(HashMap<char, u8>),
    /// Tokens are text; with `fallback`, some are single bytes.
    Text { fallback: bool },
}

impl Tokenizer {
    /// The text that follows `prompt`, token by token.
    pub fn stream(&self, prompt: &[u32]) -> Result<DecodeStream<'_>, DataError> {
        DecodeStream::new(self, prompt)
    }
}

impl<'a> DecodeStream<'a> {
    fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self, DataError> {
        let kind = match tokenizer.inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => Kind::Bytes(letters()),
            decoder => Kind::Text { fallback: decoder.is_some_and(falls_back) },
        };
        let mut stream = Self { tokenizer, kind, pending: Vec::new(), before: Vec::new() };
        // Not within a run of bytes, and not too close to the end.
        let latest = prompt.len().saturating_sub(2 * BEFORE);
        let start = (0..=latest).rev().find(|&start| start == 0 || stream.byte_of(prompt[start]).is_none());
        for &id in &prompt[start.unwrap_or(0)..] {
            stream.push(id)?;
        }
        Ok(stream)
    }

    /// The text that becomes known with the token `id`; often empty.
    pub fn push(&mut self, id: u32) -> Result<String, DataError> {
        if self.tokenizer.special.contains(&id) {
            return Ok(String::new());
        }
        if let Kind::Bytes(letters) = &self.kind {
            let Some(token) = self.tokenizer.inner.id_to_token(id) else { return Ok(String::new()) };
            // Like the library: a token with any other letter is text.
            let bytes = token.chars().map(|letter| letters.get(&letter).copied()).collect::<Option<Vec<u8>>>();
            self.pending.extend(bytes.unwrap_or_else(|| token.into_bytes()));
            return Ok(self.take_whole());
        }
        if let Some(byte) = self.byte_of(id) {
            // The first space of a text may come from the tokenizer.
            if byte != b' ' || !self.before.is_empty() || !self.tokenizer.decode(&[id])?.is_empty() {
                self.pending.push(byte);
            }
            self.before.push(id);
            return Ok(self.take_whole());
        }
        let mut text = self.take_rest();
        let told = self.tokenizer.decode(&self.before)?;
        self.before.push(id);
        let now = self.tokenizer.decode(&self.before)?;
        // If the decoder changes earlier text, what it now says about the rest is new.
        let same = now.char_indices().zip(told.chars()).find(|((_, a), b)| a != b).map(|((at, _), _)| at);
        text.push_str(&now[same.unwrap_or(told.len().min(now.len()))..]);
        let latest = self.before.len().saturating_sub(BEFORE);
        let start = (0..=latest).rev().find(|&start| start == 0 || self.byte_of(self.before[start]).is_none());
        self.before.drain(..start.unwrap_or(0));
        Ok(text)
    }

    /// What is left at the end: the bytes of an incomplete character.
    pub fn finish(&mut self) -> String {
        self.take_rest()
    }

    /// The byte that a byte-fallback token stands for.
    fn byte_of(&self, id: u32) -> Option<u8> {
        if !matches!(self.kind, Kind::Text { fallback: true }) {
            return None;
        }
        let token = self.tokenizer.inner.id_to_token(id)?;
        let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
        u8::from_str_radix(digits, 16).ok()
    }

    /// Emits the text of all bytes, except those that may begin a character.
    fn take_whole(&mut self) -> String {
        let mut text = String::new();
        let mut rest = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let broken = chunk.invalid();
            // A character can be incomplete only at the end.
            if chunks.peek().is_none() && std::str::from_utf8(broken).is_err_and(|e| e.error_len().is_none()) {
                rest = broken.len();
            } else {
                text.push_str(&self.replaced(broken));
            }
        }
        self.pending.drain(..self.pending.len() - rest);
        text
    }

    /// Emits all bytes as text.
    fn take_rest(&mut self) -> String {
        let mut text = self.take_whole();
        let broken = std::mem::take(&mut self.pending);
        text.push_str(&self.replaced(&broken));
        text
    }

    /// Replacement for bytes that are not a character: one sign for all bytes that could have begun one, like `from_utf8_lossy`, or one per
    /// byte, like byte fallback.
    fn replaced(&self, broken: &[u8]) -> String {
        let signs = match self.kind {
            Kind::Bytes(_) => usize::from(!broken.is_empty()),
            Kind::Text { .. } => broken.len(),
        };
        "\u{fffd}".repeat(signs)
    }
}

/// Whether a decoder turns tokens such as `<0x0A>` into bytes.
fn falls_back(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteFallback(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(falls_back),
        _ => false,
    }
}

/// The byte of each letter of byte-level tokens: printable bytes stand for themselves, the others start at U+0100 (GPT-2).
fn letters() -> HashMap<char, u8> {
    debug_assert_eq!(ByteLevel::alphabet().len(), 256);
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|&byte| !is_printable(byte)).zip('\u{100}'..);
    let own = (0..=255u8).filter(|&byte| is_printable(byte)).map(|byte| (char::from(byte), byte));
    own.chain(others.map(|(byte, letter)| (letter, byte))).collect()
}
