//! The file of `--answers`: a line for each item that was answered, from which `--resume` goes on.

use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use oq_data::Item;
use oq_eval::Answer;
use serde::{Deserialize, Serialize};

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    model: String,
    task: String,
    /// Digest of what decides the answers: model, settings, items, version of this program.
    of: String,
    /// Index of the item.
    item: usize,
    /// As text, which keeps every digit.
    log_likelihoods: Vec<String>,
    is_greedy: Vec<bool>,
}

/// The answers of one model to one task.
pub struct Answers<'a> {
    file: Option<(File, PathBuf)>,
    model: &'a str,
    task: &'a str,
    of: String,
}

impl<'a> Answers<'a> {
    /// Opens `path`, if there is one, for the answers to `items`. `settings` are all other things that decide them.
    pub fn open(
        path: Option<&Path>,
        [model, task]: [&'a str; 2],
        settings: &impl Hash,
        items: &[Item],
    ) -> Result<(Self, Vec<Option<Answer>>)> {
        let mut hasher = DefaultHasher::new();
        (env!("CARGO_PKG_VERSION"), task, settings, items).hash(&mut hasher);
        let of = format!("{:016x}", hasher.finish());
        let mut known = vec![None; items.len()];
        let Some(path) = path else { return Ok((Self { file: None, model, task, of }, known)) };
        let context = || format!("cannot use {} for answers", path.display());
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).with_context(context)?;
        let written = std::fs::read(path).with_context(context)?;
        // A kill may have left a partial line.
        let whole_lines = written.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        file.set_len(whole_lines as u64).with_context(context)?;
        file.seek(SeekFrom::End(0)).with_context(context)?;
        for line in written[..whole_lines].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            // Lines of something else are left alone.
            let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
            if let Some(entry) = known.get_mut(line.item).filter(|_| line.of == of) {
                *entry =
                    answer_of(&line).filter(|answer| answer.log_likelihoods.len() == items[line.item].choices.len());
            }
        }
        Ok((Self { file: Some((file, path.to_owned())), model, task, of }, known))
    }

    /// Writes the answers to the items from `first` on.
    pub fn write(&mut self, first: usize, answers: &[Answer]) -> Result<()> {
        let Some((file, path)) = &mut self.file else { return Ok(()) };
        let mut text = String::new();
        for (i, answer) in answers.iter().enumerate() {
            let line = Line {
                model: self.model.to_owned(),
                task: self.task.to_owned(),
                of: self.of.clone(),
                item: first + i,
                log_likelihoods: answer.log_likelihoods.iter().map(f64::to_string).collect(),
                is_greedy: answer.is_greedy.clone(),
            };
            text.push_str(&serde_json::to_string(&line)?);
            text.push('\n');
        }
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}

fn answer_of(line: &Line) -> Option<Answer> {
    let log_likelihoods: Vec<f64> = line.log_likelihoods.iter().filter_map(|text| text.parse().ok()).collect();
    let is_whole = log_likelihoods.len() == line.log_likelihoods.len() && line.is_greedy.len() == log_likelihoods.len();
    is_whole.then(|| Answer { log_likelihoods, is_greedy: line.is_greedy.clone() })
}

#[cfg(test)]
mod tests {
    use oq_data::Choice;

    use super::*;

    #[test]
    fn answers_are_read_back_exactly_and_only_for_the_same_settings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let choice = Choice { context: "a".to_owned(), continuation: " b".to_owned() };
        let items = vec![Item { choices: vec![choice.clone(), choice], gold: 0 }; 3];
        let open = |settings: &str| Answers::open(Some(&path), ["m", "piqa"], &settings, &items).unwrap();
        let answer = |x: f64| Answer { log_likelihoods: vec![x, -1.0 / 3.0], is_greedy: vec![true, false] };
        let (mut answers, known) = open("f32");
        assert_eq!(known, [None, None, None]);
        answers.write(1, &[answer(-0.1), answer(-2e-9)]).unwrap();
        // A partial line is cut off, so that the next one is whole.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"model\": ").unwrap();
        assert_eq!(open("f32").1, [None, Some(answer(-0.1)), Some(answer(-2e-9))]);
        let (mut others, known) = open("bf16");
        assert_eq!(known, [None, None, None]);
        others.write(0, &[answer(-3.0)]).unwrap();
        assert_eq!(open("f32").1, [None, Some(answer(-0.1)), Some(answer(-2e-9))]);
        assert_eq!(open("bf16").1, [Some(answer(-3.0)), None, None]);
    }
}
