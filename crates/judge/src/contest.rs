//! A contest of two models.

use std::error::Error;
use std::path::Path;

use crate::endpoint::{ChatOptions, Endpoint, EndpointError};
use crate::error::JudgeError;
use crate::question::Question;
use crate::record::{Record, Rules};
use crate::side::Side;
use crate::tally::Tally;
use crate::verdict::{INSTRUCTIONS, Verdict, pair};

/// Times that a judge is asked whose replies have no verdict.
const ATTEMPTS: usize = 3;

/// A model that answers questions, by its own chat template.
pub trait Answerer {
    /// The answer to one question, which is a conversation of its own.
    ///
    /// # Errors
    /// When the model cannot answer it, which ends the contest.
    fn answer(&mut self, question: &str) -> Result<String, Box<dyn Error + Send + Sync>>;
}

/// An API, with how it is to answer.
impl Answerer for (Endpoint, ChatOptions) {
    fn answer(&mut self, question: &str) -> Result<String, Box<dyn Error + Send + Sync>> {
        Ok(self.0.chat(&[("user", question)], self.1)?)
    }
}

/// Two models, the same questions to both, and what has happened so far.
#[derive(Debug)]
pub struct Contest {
    questions: Vec<Question>,
    record: Record,
}

impl Contest {
    /// Begins a contest whose record, `contest.jsonl`, lies in `dir`, or continues the one that is there.
    ///
    /// # Errors
    /// When the folder cannot be used, or holds a contest of other rules or questions.
    pub fn open(dir: &Path, rules: &Rules, questions: Vec<Question>) -> Result<Self, JudgeError> {
        let record = Record::open(dir, rules)?;
        questions.iter().try_for_each(|question| record.check_question(&question.id, &question.text))?;
        Ok(Self { questions, record })
    }

    /// Whether a model has answers to give.
    pub fn lacks_answers(&self, side: Side) -> bool {
        self.questions.iter().any(|question| self.record.answer(side, &question.id).is_none())
    }

    /// Lets a model answer what it has not answered yet. `progress` gets the number of answers and of questions.
    pub fn answer(
        &mut self,
        side: Side,
        answerer: &mut dyn Answerer,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), JudgeError> {
        for (i, Question { id, text }) in self.questions.iter().enumerate() {
            if self.record.answer(side, id).is_none() {
                let answer = answerer.answer(text);
                let answer = answer.map_err(|source| JudgeError::Answer { question: id.clone(), side, source })?;
                self.record.add_answer(side, id, text, answer)?;
            }
            progress(i + 1, self.questions.len());
        }
        Ok(())
    }

    /// Lets the judge compare what it has not compared yet: each pair twice, in both orders. `progress` gets the number of pairs done and
    /// of all.
    pub fn judge(&mut self, judge: &mut Endpoint, progress: &mut dyn FnMut(usize, usize)) -> Result<(), JudgeError> {
        for (i, Question { id, text }) in self.questions.iter().enumerate() {
            for (first, second) in [(Side::A, Side::B), (Side::B, Side::A)] {
                if self.record.verdict(first, id).is_some() {
                    continue;
                }
                let answer = |side| {
                    let missing = || JudgeError::Unanswered { question: id.clone(), side };
                    self.record.answer(side, id).ok_or_else(missing)
                };
                let asked = pair(text, [answer(first)?, answer(second)?]);
                let (verdict, reply) =
                    verdict(judge, &asked).map_err(|source| JudgeError::Judge { question: id.clone(), source })?;
                self.record.add_verdict(id, first, verdict, reply)?;
            }
            progress(i + 1, self.questions.len());
        }
        Ok(())
    }

    /// The outcome of the pairs that were judged in both orders, from A's side.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for question in &self.questions {
            let verdicts = [Side::A, Side::B].map(|first| self.record.verdict(first, &question.id));
            if let [Some(of_a), Some(of_b)] = verdicts {
                tally.add([of_a, of_b]);
            }
        }
        tally
    }
}

/// The judge's verdict and reply. Without one that can be read, its last reply.
fn verdict(judge: &mut Endpoint, asked: &str) -> Result<(Option<Verdict>, String), EndpointError> {
    let messages = [("system", INSTRUCTIONS), ("user", asked)];
    let mut reply = String::new();
    for _ in 0..ATTEMPTS {
        reply = judge.chat(&messages, ChatOptions::greedy())?;
        if let Some(verdict) = Verdict::read(&reply) {
            return Ok((Some(verdict), reply));
        }
    }
    Ok((None, reply))
}
