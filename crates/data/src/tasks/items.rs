//! The items of each task, as their files have them, and the prompts that they become.

use serde::Deserialize;

/// One item of a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Item {
    /// Two or more choices; a single one where a continuation is only predicted.
    pub choices: Vec<Choice>,
    /// Index of the correct one.
    pub gold: usize,
}

/// A possible continuation, and its context.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// The text before. Spaces at its end count as the continuation's.
    pub context: String,
    /// Scored by its likelihood given the context. Begins with a space.
    pub continuation: String,
}

#[derive(Deserialize)]
pub(super) struct Piqa {
    goal: String,
    sol1: String,
    sol2: String,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "neither ARC's own item nor question, choices and gold")]
pub(super) enum Arc {
    Published {
        question: ArcQuestion,
        #[serde(rename = "answerKey")]
        answer_key: String,
    },
    Plain {
        question: String,
        choices: Vec<String>,
        gold: usize,
    },
}

#[derive(Deserialize)]
pub(super) struct ArcQuestion {
    stem: String,
    choices: Vec<ArcChoice>,
}

#[derive(Deserialize)]
pub(super) struct ArcChoice {
    text: String,
    label: String,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "neither BoolQ's own item nor query, choices and gold")]
pub(super) enum Boolq {
    Published { title: String, passage: String, question: String, answer: bool },
    Plain { query: String, choices: Vec<String>, gold: usize },
}

#[derive(Deserialize)]
pub(super) struct Hellaswag {
    activity_label: String,
    ctx_a: String,
    ctx_b: String,
    endings: Vec<String>,
    label: usize,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "neither WinoGrande's own item nor context_options, continuation and gold")]
pub(super) enum Winogrande {
    Published { sentence: String, option1: String, option2: String, answer: String },
    Plain { context_options: Vec<String>, continuation: String, gold: usize },
}

#[derive(Deserialize)]
pub(super) struct Lambada {
    text: String,
}

/// Choices that share one context.
fn after(context: &str, choices: &[String], gold: usize) -> Item {
    let choice = |choice: &String| Choice { context: context.to_owned(), continuation: format!(" {choice}") };
    Item { choices: choices.iter().map(choice).collect(), gold }
}

fn question(question: &str) -> String {
    format!("Question: {question}\nAnswer:")
}

impl Piqa {
    pub(super) fn item(self, gold: usize) -> Item {
        after(&question(&self.goal), &[self.sol1, self.sol2], gold)
    }
}

impl Arc {
    pub(super) fn item(self) -> Item {
        let (text, choices, gold) = match self {
            Self::Published { question: ArcQuestion { stem, choices }, answer_key } => {
                // A key that is none of the labels is rejected as a missing choice.
                let gold = choices.iter().position(|choice| choice.label == answer_key).unwrap_or(choices.len());
                (stem, choices.into_iter().map(|choice| choice.text).collect(), gold)
            }
            Self::Plain { question, choices, gold } => (question, choices, gold),
        };
        after(&question(&text), &choices, gold)
    }
}

impl Boolq {
    pub(super) fn item(self) -> Item {
        match self {
            Self::Published { title, passage, question, answer } => {
                let choices = ["no", "yes"].map(str::to_owned);
                after(&format!("{title} -- {passage}\nQuestion: {question}?\nAnswer:"), &choices, usize::from(answer))
            }
            Self::Plain { query, choices, gold } => {
                let query = query.strip_prefix("Passage: ").unwrap_or(&query);
                after(&format!("{query}\nAnswer:"), &choices, gold)
            }
        }
    }
}

impl Hellaswag {
    pub(super) fn item(self) -> Item {
        let context = format!("{}: {} {}", self.activity_label, self.ctx_a, capitalized(&self.ctx_b));
        let endings: Vec<String> = self.endings.iter().map(|ending| without_marks(ending)).collect();
        after(&without_marks(&context), &endings, self.label)
    }
}

impl Winogrande {
    pub(super) fn item(self) -> Item {
        let (contexts, continuation, gold) = match self {
            Self::Published { sentence, option1, option2, answer } => {
                // Without a gap there is nothing to continue, which is rejected.
                let (before, after) = sentence.split_once('_').unwrap_or((&sentence, ""));
                let contexts = [option1, option2].map(|option| format!("{before}{option}")).to_vec();
                (contexts, after.to_owned(), answer.parse().map_or(usize::MAX, |number: usize| number.wrapping_sub(1)))
            }
            Self::Plain { context_options, continuation, gold } => (context_options, continuation, gold),
        };
        let continuation = format!(" {}", continuation.trim());
        let choice = |context: String| Choice { context, continuation: continuation.clone() };
        Item { choices: contexts.into_iter().map(choice).collect(), gold }
    }
}

impl Lambada {
    pub(super) fn item(self) -> Item {
        // A single word has no context, which is rejected.
        let (context, word) = self.text.rsplit_once(' ').unwrap_or(("", &self.text));
        after(context, &[word.to_owned()], 0)
    }
}

/// Capitalizes the first letter and lowercases the others.
fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters.flat_map(char::to_lowercase)).collect()
}

/// HellaSwag's texts without the tags of those from WikiHow: `[title]`, `[step]`.
fn without_marks(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let (mut kept, mut rest) = (String::with_capacity(text.len()), text.as_str());
    while let Some(start) = rest.find('[') {
        let end = rest[start..].find([']', '\n']).filter(|&end| rest.as_bytes()[start + end] == b']');
        let Some(end) = end else {
            kept.push_str(&rest[..=start]);
            rest = &rest[start + 1..];
            continue;
        };
        kept.push_str(&rest[..start]);
        rest = &rest[start + end + 1..];
    }
    kept.push_str(rest);
    kept.replace("  ", " ")
}
