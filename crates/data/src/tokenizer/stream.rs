//! Streams the text of tokens, without ever taking anything back.
//!
//! The concatenated pieces are the text of all ids decoded at once. With byte fallback, one broken byte makes the library report all bytes
//! beside it as broken, so byte tokens wait for the next token that is none. A run of more than [`DecodeStream::RUN`] bytes is the one exception: its
//! characters are emitted as they become complete.

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
    /// Bytes whose text is not known yet.
    pending: Vec<u8>,
    /// Whether the decoder drops the first of these bytes, a space, as long as they are text.
    drops_space: bool,
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
    /// Number of byte tokens that wait for the end of their run: the bytes of the longest emoji in use.
    pub const RUN: usize = 35;

    fn new(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self, DataError> {
        let kind = match tokenizer.inner.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => Kind::Bytes(letters()),
            decoder => Kind::Text { fallback: decoder.is_some_and(falls_back) },
        };
        let mut stream = Self { tokenizer, kind, pending: Vec::new(), drops_space: false, before: Vec::new() };
        // Not within a run of bytes, and not too close to the end.
        let latest = prompt.len().saturating_sub(2 * BEFORE);
        let start = (0..=latest).rev().find(|&start| start == 0 || stream.byte_of(prompt[start]).is_none());
        for &id in &prompt[start.unwrap_or(0)..] {
            stream.push(id)?;
        }
        // The prompt's own characters are known.
        stream.take_whole();
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
            self.drops_space |= byte == b' ' && self.before.is_empty() && self.tokenizer.decode(&[id])?.is_empty();
            self.pending.push(byte);
            self.before.push(id);
            return Ok(if self.pending.len() > Self::RUN { self.take_whole() } else { String::new() });
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
        let mut rest = 0;
        // A character can be incomplete only at the end.
        if let Some(last) = self.pending.utf8_chunks().last()
            && std::str::from_utf8(last.invalid()).is_err_and(|e| e.error_len().is_none())
        {
            rest = last.invalid().len();
        }
        let rest = self.pending.split_off(self.pending.len() - rest);
        let text = self.take_rest();
        self.pending = rest;
        text
    }

    /// Emits all bytes as text. Broken ones become one sign for all bytes that could have begun one character, like `from_utf8_lossy`; with
    /// byte fallback, they turn all bytes into one sign each.
    fn take_rest(&mut self) -> String {
        let bytes = std::mem::take(&mut self.pending);
        let drops_space = std::mem::take(&mut self.drops_space);
        match String::from_utf8(bytes) {
            Ok(text) if drops_space => text.strip_prefix(' ').map(str::to_owned).unwrap_or(text),
            Ok(text) => text,
            Err(broken) if matches!(self.kind, Kind::Bytes(_)) => {
                String::from_utf8_lossy(broken.as_bytes()).into_owned()
            }
            Err(broken) => "\u{fffd}".repeat(broken.as_bytes().len()),
        }
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
