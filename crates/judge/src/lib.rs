//! Which of two models gives the better answers? Both answer the same questions ([`Question`], [`Answerer`]), a third one judges each pair in
//! both orders ([`Endpoint`]), and the verdicts are counted with their uncertainty ([`Tally`]). A [`Contest`] keeps all of it in a file, so
//! that it can be continued, and read.
//!
//! This is the protocol by which the authors of OmniQuant compared chat models (arXiv 2308.13137, section 4.3): GPT-4 as the judge, questions
//! of Vicuna's benchmark, each pair in both orders because judges favour a place. One thing is stricter here: a win is a pair that both
//! orders agree on. If they disagree, the judge has told the places apart, not the answers, and the pair is a tie.

mod contest;
mod endpoint;
mod error;
mod question;
mod record;
mod side;
mod tally;
mod verdict;

pub use contest::{Answerer, Contest};
pub use endpoint::{ChatOptions, Endpoint, EndpointError};
pub use error::JudgeError;
pub use question::Question;
pub use record::Rules;
pub use side::Side;
pub use tally::{Share, Tally};
pub use verdict::Verdict;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
