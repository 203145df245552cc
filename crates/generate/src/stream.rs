//! Text that can be shown as it is generated, up to a stop string.
//!
//! A stop string may be split over tokens, so text that may be its beginning is held back.

use oq_data::{DecodeStream, Tokenizer};

use crate::error::GenerateError;

/// The text of a sequence of tokens, piece by piece.
pub struct TextStream<'a> {
    decoded: DecodeStream<'a>,
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// The text that a token adds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece {
    /// Text to show; often empty.
    pub text: String,
    /// The stop string that was found; it is not part of the text.
    pub stop: Option<String>,
}

impl<'a> TextStream<'a> {
    /// Text that follows that of `prompt` and ends before any of `stops`.
    pub fn new(tokenizer: &'a Tokenizer, prompt: &[u32], stops: &[String]) -> Result<Self, GenerateError> {
        Ok(Self { decoded: tokenizer.stream(prompt)?, stops: stops.to_vec(), held: String::new() })
    }

    /// Adds a token.
    pub fn push(&mut self, id: u32) -> Result<Piece, GenerateError> {
        let text = self.decoded.push(id)?;
        self.held.push_str(&text);
        Ok(self.release())
    }

    /// The text that was still held back at the end. It may contain a stop string, at which the text then ends.
    pub fn finish(&mut self) -> Piece {
        let rest = self.decoded.finish();
        self.held.push_str(&rest);
        let Piece { mut text, stop } = self.release();
        text.push_str(&std::mem::take(&mut self.held));
        Piece { text, stop }
    }

    /// The part of the text in which no stop string can begin.
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
