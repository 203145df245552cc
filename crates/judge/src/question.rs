//! Questions, from the files that people have.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::error::JudgeError;

/// A question to both models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its name in records: `question_id` or `id` of the file, else its line.
    pub id: String,
    /// The text.
    pub text: String,
}

impl Question {
    /// Reads a file: one question per line, as plain text or as a JSON object with the text in `question`, `prompt`, `text` or the first of
    /// `turns` (the forms of Vicuna's questions and of MT-bench). Empty lines count for nothing.
    ///
    /// # Errors
    /// When the file cannot be read, a line has no question, or two have the same name.
    pub fn read(path: &Path) -> Result<Vec<Self>, JudgeError> {
        let text = std::fs::read_to_string(path).map_err(|e| JudgeError::io(path, "read", e))?;
        let questions = Self::parse(&text);
        let questions =
            questions.map_err(|(line, reason)| JudgeError::Questions { path: path.to_owned(), line, reason })?;
        if questions.is_empty() {
            return Err(JudgeError::NoQuestions { path: path.to_owned() });
        }
        Ok(questions)
    }

    /// The same from a text; errors have the line, from 1.
    fn parse(text: &str) -> Result<Vec<Self>, (usize, String)> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut names = BTreeSet::new();
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let questions = lines.map(|(i, line)| {
            let number = i + 1;
            let question = Self::of_line(line.trim(), number).map_err(|reason| (number, reason))?;
            match names.insert(question.id.clone()) {
                true => Ok(question),
                false => Err((number, format!("a second question with the name {}", question.id))),
            }
        });
        questions.collect()
    }

    fn of_line(line: &str, number: usize) -> Result<Self, String> {
        if !line.starts_with('{') {
            return Ok(Self { id: number.to_string(), text: line.to_owned() });
        }
        let json: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
        let texts = [&json["question"], &json["prompt"], &json["text"], &json["turns"][0]];
        let text = texts.into_iter().find_map(Value::as_str).filter(|text| !text.trim().is_empty());
        let id = match [&json["question_id"], &json["id"]].into_iter().find(|id| !id.is_null()) {
            Some(Value::String(id)) => id.clone(),
            Some(id) => id.to_string(),
            None => number.to_string(),
        };
        let text = text.ok_or("no text in question, prompt, text or turns[0]")?;
        Ok(Self { id, text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_come_in_several_forms() {
        let text = "\u{feff}What is rain?\n\n\
            {\"question\": \"Why?\"}\n\
            {\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"First.\", \"Second.\"]}\r\n\
            {\"id\": \"x\", \"prompt\": \"Say so.\"}\n\
            {\"question_id\": 1, \"text\": \"Vicuna's.\"}";
        // The line of a question without a name, and a name, may be the same.
        assert!(Question::parse(text).is_err());
        let questions = Question::parse(&text.replace("\"question_id\": 1,", "\"question_id\": 2,")).unwrap();
        let got: Vec<_> = questions.iter().map(|question| (question.id.as_str(), question.text.as_str())).collect();
        let expected = [("1", "What is rain?"), ("3", "Why?"), ("81", "First."), ("x", "Say so."), ("2", "Vicuna's.")];
        assert_eq!(got, expected);
    }

    #[test]
    fn lines_without_a_question_are_told() {
        assert_eq!(Question::parse("a\n{\"turns\": []}").unwrap_err().0, 2);
        assert_eq!(Question::parse("{\"question\": \" \"}").unwrap_err().0, 1);
        assert_eq!(Question::parse("{\"question\": ").unwrap_err().0, 1);
        assert_eq!(Question::parse(" \n\n").unwrap(), []);
    }
}
