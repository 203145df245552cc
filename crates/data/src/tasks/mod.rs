//! Zero-shot tasks: multiple-choice questions, of which a model should find the correct choice the most likely, and texts whose last word it
//! should predict.
//!
//! Prompts are those of the `lm-evaluation-harness` 0.4, so that results can be compared. A task is read from `tasks/` under the folder of
//! datasets:
//!
//! | task | file | as its authors publish it | or an item's JSON |
//! |---|---|---|---|
//! | `piqa` | `piqa.valid.jsonl`, and `piqa.valid-labels.lst` with a 0 or 1 per line | `valid.jsonl`, `valid-labels.lst` of physicaliqa | |
//! | `arc_easy` | `arc_easy.test.jsonl` | `ARC-Easy-Test.jsonl` of AI2's ARC | `question`, `choices`, `gold` |
//! | `arc_challenge` | `arc_challenge.test.jsonl` | `ARC-Challenge-Test.jsonl` | the same |
//! | `boolq` | `boolq.validation.jsonl` | `dev.jsonl` of BoolQ | `query` (`Passage: .. \nQuestion: ..?`), `choices`, `gold` |
//! | `hellaswag` | `hellaswag.val.jsonl`, or `hellaswag.val-1000.jsonl`, its first 1000 items | `hellaswag_val.jsonl` | |
//! | `lambada` | `lambada.test.jsonl` | `lambada_test.jsonl` of OpenAI's LAMBADA: a `text` a line | |
//! | `winogrande` | `winogrande.validation.jsonl` | `dev.jsonl` of WinoGrande 1.1 | `context_options`, `continuation`, `gold` |

mod items;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::DeserializeOwned;

use self::items::{Arc, Boolq, Hellaswag, Lambada, Piqa, Winogrande};
use crate::error::{DataError, read_text};

pub use self::items::{Choice, Item};

/// A zero-shot task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "their names")]
pub enum Task {
    Piqa,
    ArcEasy,
    ArcChallenge,
    Boolq,
    Hellaswag,
    Winogrande,
    Lambada,
}

impl Task {
    /// All tasks.
    pub const ALL: [Self; 7] =
        [Self::Piqa, Self::ArcEasy, Self::ArcChallenge, Self::Boolq, Self::Hellaswag, Self::Winogrande, Self::Lambada];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Piqa => "piqa",
            Self::ArcEasy => "arc_easy",
            Self::ArcChallenge => "arc_challenge",
            Self::Boolq => "boolq",
            Self::Hellaswag => "hellaswag",
            Self::Winogrande => "winogrande",
            Self::Lambada => "lambada",
        }
    }

    /// The name and the version of the same task in the harness.
    pub const fn in_harness(self) -> (&'static str, f64) {
        match self {
            Self::Boolq => (self.name(), 2.0),
            Self::Lambada => ("lambada_openai", 1.0),
            _ => (self.name(), 1.0),
        }
    }

    /// Whether items have several choices, of which one is correct. Otherwise a single continuation is predicted.
    pub const fn has_choices(self) -> bool {
        !matches!(self, Self::Lambada)
    }

    /// Whether the harness also reports accuracy by likelihood per character.
    pub const fn is_normalized(self) -> bool {
        !matches!(self, Self::Boolq | Self::Winogrande | Self::Lambada)
    }

    /// Possible file names, in order of preference.
    const fn files(self) -> &'static [&'static str] {
        match self {
            Self::Piqa => &["piqa.valid.jsonl"],
            Self::ArcEasy => &["arc_easy.test.jsonl"],
            Self::ArcChallenge => &["arc_challenge.test.jsonl"],
            Self::Boolq => &["boolq.validation.jsonl"],
            Self::Hellaswag => &["hellaswag.val.jsonl", "hellaswag.val-1000.jsonl"],
            Self::Winogrande => &["winogrande.validation.jsonl"],
            Self::Lambada => &["lambada.test.jsonl"],
        }
    }

    /// Reads the items from `tasks/` under `data_dir`.
    pub fn load(self, data_dir: Option<&Path>) -> Result<Vec<Item>, DataError> {
        let path = self.path(data_dir)?;
        let items = match self {
            Self::Piqa => {
                let labels_path = path.with_file_name("piqa.valid-labels.lst");
                let labels = read_text(&labels_path)?;
                let labels: Vec<&str> = labels.lines().collect();
                let items: Vec<Piqa> = lines(&path)?;
                if labels.len() != items.len() {
                    let reason = format!("{} labels for {} items", labels.len(), items.len());
                    return Err(DataError::corrupt(&labels_path, reason));
                }
                let label = |(number, label): (usize, &&str)| {
                    let unreadable = |_| DataError::corrupt(&labels_path, format!("line {}: not 0 or 1", number + 1));
                    label.trim().parse::<usize>().map_err(unreadable)
                };
                let labels = labels.iter().enumerate().map(label).collect::<Result<Vec<_>, _>>()?;
                items.into_iter().zip(labels).map(|(item, gold)| item.item(gold)).collect()
            }
            Self::ArcEasy | Self::ArcChallenge => lines::<Arc>(&path)?.into_iter().map(Arc::item).collect(),
            Self::Boolq => lines::<Boolq>(&path)?.into_iter().map(Boolq::item).collect(),
            Self::Hellaswag => lines::<Hellaswag>(&path)?.into_iter().map(Hellaswag::item).collect(),
            Self::Winogrande => lines::<Winogrande>(&path)?.into_iter().map(Winogrande::item).collect(),
            Self::Lambada => lines::<Lambada>(&path)?.into_iter().map(Lambada::item).collect(),
        };
        check(&path, items, if self.has_choices() { 2 } else { 1 })
    }

    fn path(self, data_dir: Option<&Path>) -> Result<PathBuf, DataError> {
        let files = self.files();
        let paths = data_dir.iter().flat_map(|dir| files.iter().map(|file| dir.join("tasks").join(file)));
        let missing =
            || DataError::MissingTask { name: self.name(), file: files[0], data_dir: data_dir.map(Path::to_path_buf) };
        paths.into_iter().find(|path| path.is_file()).ok_or_else(missing)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|task| task.name() == text).ok_or_else(|| format!("must be one of {names}"))
    }
}

/// The lines of a JSON Lines file.
fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, DataError> {
    let parse = |(number, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| DataError::corrupt(path, format!("line {}: {error}", number + 1)))
    };
    read_text(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

/// Rejects invalid items, such as those with fewer choices.
fn check(path: &Path, items: Vec<Item>, least_choices: usize) -> Result<Vec<Item>, DataError> {
    if items.is_empty() {
        return Err(DataError::corrupt(path, "no items"));
    }
    for (idx, Item { choices, gold }) in items.iter().enumerate() {
        let has_text = |choice: &Choice| !choice.context.is_empty() && !choice.continuation.trim().is_empty();
        if choices.len() < least_choices || *gold >= choices.len() || !choices.iter().all(has_text) {
            let reason = format!("item {}: {} choices, the right one is number {gold}", idx + 1, choices.len());
            return Err(DataError::corrupt(path, reason));
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_load(task: Task, files: &[(&str, &str)], contexts: &[&str], continuations: &[&str], gold: usize) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tasks")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join("tasks").join(name), text).unwrap();
        }
        let items = task.load(Some(dir.path())).unwrap();
        let [Item { choices, gold: found }] = &items[..] else { panic!("{items:?}") };
        assert_eq!(choices.iter().map(|choice| &*choice.context).collect::<Vec<_>>(), contexts);
        assert_eq!(choices.iter().map(|choice| &*choice.continuation).collect::<Vec<_>>(), continuations);
        assert_eq!(*found, gold);
    }

    #[test]
    fn prompts_are_the_harness_s() {
        let piqa = r#"{"goal": "dresser", "sol1": "one", "sol2": "two "}"#;
        let context = "Question: dresser\nAnswer:";
        let files = [("piqa.valid.jsonl", piqa), ("piqa.valid-labels.lst", "1\n")];
        check_load(Task::Piqa, &files, &[context; 2], &[" one", " two "], 1);
        let arc = r#"{"question": "Why?", "choices": ["a", "b", "c"], "gold": 2}"#;
        let context = "Question: Why?\nAnswer:";
        check_load(Task::ArcEasy, &[("arc_easy.test.jsonl", arc)], &[context; 3], &[" a", " b", " c"], 2);
        let boolq = r#"{"query": "Passage: It is.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 1}"#;
        let context = "It is.\nQuestion: is it?\nAnswer:";
        check_load(Task::Boolq, &[("boolq.validation.jsonl", boolq)], &[context; 2], &[" no", " yes"], 1);
        let winogrande = r#"{"context_options": ["So Ann", "So Bea"], "continuation": "won.", "gold": 0}"#;
        let file = [("winogrande.validation.jsonl", winogrande)];
        check_load(Task::Winogrande, &file, &["So Ann", "So Bea"], &[" won."; 2], 0);
        let lambada = r#"{"text": "He saw a  dog and\nthe dog"}"#;
        let file = [("lambada.test.jsonl", lambada)];
        check_load(Task::Lambada, &file, &["He saw a  dog and\nthe"], &[" dog"], 0);
        let hellaswag = r#"{"activity_label": "Roof", "ctx_a": "A man [header] sits [title] Up.", "ctx_b": "he HAS",
            "endings": ["goes [substeps] on.", "ends ["], "label": 1}"#
            .replace('\n', "");
        let file = [("hellaswag.val-1000.jsonl", &*hellaswag)];
        let context = "Roof: A man sits. Up. He has";
        check_load(Task::Hellaswag, &file, &[context; 2], &[" goes on.", " ends ["], 1);
    }

    #[test]
    fn published_files_are_read_as_they_are() {
        let arc = r#"{"id": "M_1", "question": {"stem": "Why?", "choices": [{"text": "a", "label": "A"},
            {"text": "b", "label": "B"}]}, "answerKey": "B"}"#
            .replace('\n', "");
        let context = "Question: Why?\nAnswer:";
        check_load(Task::ArcChallenge, &[("arc_challenge.test.jsonl", &arc)], &[context; 2], &[" a", " b"], 1);
        let boolq = r#"{"question": "is it", "title": "It", "answer": true, "passage": "It is."}"#;
        let context = "It -- It is.\nQuestion: is it?\nAnswer:";
        check_load(Task::Boolq, &[("boolq.validation.jsonl", boolq)], &[context; 2], &[" no", " yes"], 1);
        let winogrande =
            r#"{"qID": "1", "sentence": "So _ won the cup.", "option1": "Ann", "option2": "Bea", "answer": "2"}"#;
        let file = [("winogrande.validation.jsonl", winogrande)];
        check_load(Task::Winogrande, &file, &["So Ann", "So Bea"], &[" won the cup."; 2], 1);
    }

    #[test]
    fn broken_files_are_named() {
        #[track_caller]
        fn check(text: &str, expected: &str) {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("tasks")).unwrap();
            std::fs::write(dir.path().join("tasks/arc_easy.test.jsonl"), text).unwrap();
            let error = Task::ArcEasy.load(Some(dir.path())).expect_err("must be refused").to_string();
            assert!(error.contains("arc_easy.test.jsonl") && error.contains(expected), "{error}");
        }
        check("", "no items");
        check("{\"question\": \"Why?\"}", "line 1: neither ARC's own item nor question, choices and gold");
        check("{\"question\": \"Why?\", \"choices\": [\"a\"], \"gold\": 0}", "item 1: 1 choices");
        check("{\"question\": \"Why?\", \"choices\": [\"a\", \"b\"], \"gold\": 2}", "the right one is number 2");
        let error = Task::Piqa.load(Some(Path::new("nowhere"))).expect_err("must be refused").to_string();
        assert!(error.contains("piqa.valid.jsonl") && error.contains("--data-dir"), "{error}");
        assert_eq!("arc".parse::<Task>().expect_err("no task").split(", ").count(), Task::ALL.len());
        assert!(Task::ALL.into_iter().all(|task| task.to_string().parse() == Ok(task)));
    }
}
