//! Tokens as text that can be shown as it comes.
//!
//! A character may be cut between tokens, and a stop string too: text is held back until it is known to be part of neither.

use oq_data::Tokenizer;

use crate::error::GenerateError;

/// Text of a sequence of tokens, piece by piece.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stops: &'a [String],
    /// Tokens whose text is not complete, after some that are there for the spaces between words.
    ids: Vec<u32>,
    /// The text of `ids` that was given.
    told: String,
    /// For how many tokens the end of the text has been no character.
    broken: usize,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// What a token added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Text to be shown; often empty.
    pub text: String,
    /// The stop string that ended the text, which is not part of it.
    pub stop: Option<String>,
}

/// Tokens that decide how a text goes on: whether with a space.
const BEFORE: usize = 4;
/// A character has four bytes at most, and a token one byte at least: after so many tokens, broken bytes are broken.
const LONGEST: usize = 4;
/// What a decoder writes for bytes that are no character.
const BROKEN: char = '\u{fffd}';

impl<'a> TextStream<'a> {
    /// Text that follows that of `prompt`, and ends before one of `stops`.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &'a [String]) -> Result<Self, GenerateError> {
        let ids = prompt[start_of_end(tokenizer, prompt)?..].to_vec();
        Ok(Self { tokenizer, stops, told: tokenizer.decode(&ids)?, ids, broken: 0, held: String::new() })
    }

    /// Adds a token.
    pub fn push(&mut self, id: u32) -> Result<Piece, GenerateError> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        let whole = text.trim_end_matches(BROKEN);
        // A decoder that changes its mind about earlier tokens says nothing new.
        let new = |text: &str| text.strip_prefix(&self.told).unwrap_or_default().to_owned();
        let of_whole = new(whole);
        // A token may end one character and begin the next.
        let waited = if of_whole.is_empty() { self.broken } else { 0 };
        self.broken = if whole == text { 0 } else { (waited + 1) % LONGEST };
        if self.broken == 0 {
            self.held.push_str(&new(&text));
            self.ids.drain(..start_of_end(self.tokenizer, &self.ids)?);
            self.told = self.tokenizer.decode(&self.ids)?;
        } else {
            self.told.push_str(&of_whole);
            self.held.push_str(&of_whole);
        }
        Ok(self.release())
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> Result<String, GenerateError> {
        let text = self.tokenizer.decode(&self.ids)?;
        let mut held = std::mem::take(&mut self.held);
        held.push_str(text.strip_prefix(&self.told).unwrap_or_default());
        Ok(held)
    }

    /// The text that no stop string can begin in.
    fn release(&mut self) -> Piece {
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop))).min();
        if let Some((end, stop)) = found {
            let text = self.held[..end].to_owned();
            self.held.clear();
            return Piece { text, stop: Some(stop.clone()) };
        }
        let begins_one = |start: usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[start..]));
        let end = self.held.char_indices().map(|(start, _)| start).find(|&start| begins_one(start));
        let rest = self.held.split_off(end.unwrap_or(self.held.len()));
        Piece { text: std::mem::replace(&mut self.held, rest), stop: None }
    }
}

/// Where the last tokens of `ids` begin that decide how a text goes on. Never within a character, of which a decoder of bytes makes the
/// following ones broken too.
fn start_of_end(tokenizer: &Tokenizer, ids: &[u32]) -> Result<usize, GenerateError> {
    let latest = ids.len().saturating_sub(BEFORE);
    for start in (latest.saturating_sub(LONGEST - 1)..=latest).rev() {
        if !tokenizer.decode(&ids[start..])?.starts_with(BROKEN) {
            return Ok(start);
        }
    }
    // Broken bytes, whatever stands before them.
    Ok(latest)
}
