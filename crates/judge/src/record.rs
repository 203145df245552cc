//! The record of a contest: a file of JSON lines, to which lines are only added.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::JudgeError;
use crate::side::Side;
use crate::verdict::Verdict;

/// What decides a contest besides its questions. A record is continued only under the same rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// The first model, by its name.
    pub a: String,
    /// The second model.
    pub b: String,
    /// The judge, by its name.
    pub judge: String,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Temperature of the answers.
    pub temperature: f64,
    /// Seed of the answers, where they are sampled.
    pub seed: u64,
}

/// A line of the record.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Rules(Rules),
    Answer {
        side: Side,
        question: String,
        asked: String,
        text: String,
    },
    /// The reply that the judge gave with this model in the first place.
    Verdict {
        question: String,
        first: Side,
        verdict: Option<Verdict>,
        reply: String,
    },
}

/// What has happened so far.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    file: File,
    /// By the question's name.
    answers: BTreeMap<(Side, String), String>,
    /// By the model in the first place, and the question's name.
    verdicts: BTreeMap<(Side, String), Option<Verdict>>,
    /// The texts of the questions that were answered.
    asked: BTreeMap<String, String>,
}

impl Record {
    /// Opens the record of a folder, or begins it.
    pub(crate) fn open(dir: &Path, rules: &Rules) -> Result<Self, JudgeError> {
        let path = dir.join("contest.jsonl");
        let io = |action| {
            let path = path.clone();
            move |e| JudgeError::io(&path, action, e)
        };
        std::fs::create_dir_all(dir).map_err(|e| JudgeError::io(dir, "create", e))?;
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(io("read"))?,
        };
        // A line that was cut by a kill has not happened.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(io("open"))?;
        file.set_len(whole.len() as u64).map_err(io("write"))?;
        let (answers, verdicts, asked) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut record = Self { path, file, answers, verdicts, asked };
        for (i, line) in whole.lines().enumerate() {
            let wrong = |reason: String| JudgeError::Record { path: record.path.clone(), line: i + 1, reason };
            let line: Line = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
            match (i, line) {
                (0, Line::Rules(there)) => record.check(&there, rules)?,
                (0, _) => return Err(wrong("it does not begin with the rules".to_owned())),
                (_, line) => record.take(line),
            }
        }
        if whole.is_empty() {
            record.add(Line::Rules(rules.clone()))?;
        }
        Ok(record)
    }

    fn check(&self, there: &Rules, here: &Rules) -> Result<(), JudgeError> {
        let values = |rules: &Rules| {
            let Rules { a, b, judge, max_tokens, temperature, seed } = rules;
            [
                ("A", a.clone()),
                ("B", b.clone()),
                ("judge", judge.clone()),
                ("most tokens", max_tokens.to_string()),
                ("temperature", temperature.to_string()),
                ("seed", seed.to_string()),
            ]
        };
        match values(there).into_iter().zip(values(here)).find(|(there, here)| there != here) {
            None => Ok(()),
            Some(((key, there), (_, here))) => {
                Err(JudgeError::OtherContest { path: self.path.clone(), key, there, here })
            }
        }
    }

    /// Checks that a question that was answered is still the same one.
    pub(crate) fn check_question(&self, id: &str, text: &str) -> Result<(), JudgeError> {
        match self.asked.get(id) {
            Some(there) if there != text => Err(JudgeError::OtherContest {
                path: self.path.clone(),
                key: "questions",
                there: format!("{id}: {there:?}"),
                here: format!("{text:?}"),
            }),
            _ => Ok(()),
        }
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Rules(_) => {}
            Line::Answer { side, question, asked, text } => {
                self.asked.insert(question.clone(), asked);
                self.answers.insert((side, question), text);
            }
            Line::Verdict { question, first, verdict, .. } => {
                self.verdicts.insert((first, question), verdict);
            }
        }
    }

    /// Adds a line, in the file first.
    fn add(&mut self, line: Line) -> Result<(), JudgeError> {
        let mut text = serde_json::to_string(&line).expect("lines are plain data");
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|e| JudgeError::io(&self.path, "write", e))?;
        self.take(line);
        Ok(())
    }

    pub(crate) fn add_answer(
        &mut self,
        side: Side,
        question: &str,
        asked: &str,
        text: String,
    ) -> Result<(), JudgeError> {
        self.add(Line::Answer { side, question: question.to_owned(), asked: asked.to_owned(), text })
    }

    pub(crate) fn add_verdict(
        &mut self,
        question: &str,
        first: Side,
        verdict: Option<Verdict>,
        reply: String,
    ) -> Result<(), JudgeError> {
        self.add(Line::Verdict { question: question.to_owned(), first, verdict, reply })
    }

    pub(crate) fn answer(&self, side: Side, question: &str) -> Option<&str> {
        self.answers.get(&(side, question.to_owned())).map(String::as_str)
    }

    /// The verdict with this model in the first place: none if there is none yet, and none inside if it could not be read.
    pub(crate) fn verdict(&self, first: Side, question: &str) -> Option<Option<Verdict>> {
        self.verdicts.get(&(first, question.to_owned())).copied()
    }
}
