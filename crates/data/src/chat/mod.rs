//! Chat templates, which turn a conversation into the text format that a model was trained on.
//!
//! A template is a Jinja program written by the model's author. `minijinja` runs it with the variables that Hugging Face's tokenizers
//! provide, and with a limit on its steps that no real template reaches.

mod filters;
mod generation;
mod json;
mod methods;
mod python;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use chrono::Local;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use serde_json::Value;

use self::generation::without_generation;
use crate::error::{DataError, read_optional_json, read_text};
use crate::tokenizer::special::TokenizerConfig;

/// Step limit of a template; real ones take some hundred steps per message.
const FUEL: u64 = 10_000_000;
const NAME: &str = "chat";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// The speaker: `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
    /// `bos_token`, `eos_token` and the like, if they are set.
    tokens: Vec<(&'static str, String)>,
}

impl ChatTemplate {
    /// The template of a model directory: `chat_template.jinja`, else the one in `tokenizer_config.json` (of several, the one named
    /// `default`), else `chat_template.json`.
    ///
    /// # Errors
    /// [`DataError::NoChatTemplate`] if there is none, as for base models.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let tokenizer = TokenizerConfig::open(dir)?;
        let config = &tokenizer.json;
        let of_file = dir.join("chat_template.jinja");
        let (path, source) = if of_file.is_file() {
            let source = read_text(&of_file)?;
            (of_file, source)
        } else if let Some(source) = template_of(&config["chat_template"]) {
            (dir.join("tokenizer_config.json"), source.to_owned())
        } else if let Some(source) = template_of(&read_optional_json(&dir.join("chat_template.json"))?["chat_template"])
        {
            (dir.join("chat_template.json"), source.to_owned())
        } else {
            return Err(DataError::NoChatTemplate { dir: dir.to_owned() });
        };

        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("these are plain switches"));
        // Templates call methods of Python's strings and lists.
        environment.set_unknown_method_callback(methods::method);
        filters::add_to(&mut environment);
        environment.add_function("raise_exception", |message: String| -> Result<Jinja, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let refused = |e: minijinja::Error| DataError::ChatTemplate { path: path.clone(), reason: told(&e) };
        // Jinja2 ends lines with a newline only.
        let source = without_generation(&source.replace("\r\n", "\n").replace('\r', "\n"));
        environment.add_template_owned(NAME, source).map_err(refused)?;
        environment.add_function("strftime_now", |format: String| {
            let mut text = String::new();
            match write!(text, "{}", Local::now().format(&format)) {
                Ok(()) => Ok(text),
                Err(_) => {
                    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("no format of a time: {format}")))
                }
            }
        });
        let tokens = tokenizer.all_named().map(|(key, token)| (key, token.content)).collect();
        Ok(Self { environment, path, tokens })
    }

    /// The text of a conversation; with `ask`, up to where the assistant's answer begins.
    ///
    /// # Errors
    /// When the template rejects the conversation, renders none of it, or fails.
    pub fn render(&self, messages: &[Message], ask: bool) -> Result<String, DataError> {
        let refused = |e: minijinja::Error| DataError::ChatTemplate { path: self.path.clone(), reason: told(&e) };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let mut names: Vec<(&str, Jinja)> =
            self.tokens.iter().map(|(key, token)| (*key, Jinja::from(token.as_str()))).collect();
        names.extend([
            ("messages", Jinja::from(Serde(messages))),
            ("add_generation_prompt", ask.into()),
            // Templates distinguish unused variables from unknown ones.
            ("tools", ().into()),
            ("documents", ().into()),
        ]);
        let text = template.render(Jinja::from_pairs(names)).map_err(refused)?;
        if text.trim().is_empty() {
            let reason = "it renders nothing of the conversation".to_owned();
            return Err(DataError::ChatTemplate { path: self.path.clone(), reason });
        }
        Ok(text)
    }
}

/// A template, or the one named `default` in a list.
fn template_of(value: &Value) -> Option<&str> {
    let named = || value.as_array()?.iter().find(|entry| entry["name"] == "default")?["template"].as_str();
    value.as_str().or_else(named)
}

/// What went wrong, and where in the template.
fn told(error: &minijinja::Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    error.line().map_or_else(|| detail.clone(), |line| format!("{detail} (line {line})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    /// A line with nothing but a block produces no output line.
    const CHATML: &str = "\
{% for m in messages %}
{{ '<|im_start|>' + m['role'] + '\n' + m['content'].strip() + '<|im_end|>' + '\n' }}{% endfor %}
  {% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}{% endif %}
";

    #[test]
    fn a_conversation_is_written_as_its_model_knows_it() {
        let dir = dir(&[("chat_template.jinja", CHATML), ("tokenizer_config.json", "{}")]);
        let template = ChatTemplate::open(dir.path()).unwrap();
        let messages = [message("user", " Hello "), message("assistant", "Hi."), message("user", "Bye")];
        let turns = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n";
        assert_eq!(template.render(&messages, false).unwrap(), turns);
        assert_eq!(template.render(&messages, true).unwrap(), format!("{turns}<|im_start|>assistant\n"));
    }

    #[test]
    fn templates_are_found_where_they_are_published() {
        let source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}";
        let config = |template: Value| {
            serde_json::json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template})
                .to_string()
        };
        let several = serde_json::json!([{"name": "tools", "template": "no"}, {"name": "default", "template": source}]);
        let template = serde_json::json!({"chat_template": source}).to_string();
        for files in [
            vec![("tokenizer_config.json", config(source.into()))],
            vec![("tokenizer_config.json", config(several))],
            vec![("tokenizer_config.json", config(Value::Null)), ("chat_template.json", template)],
            vec![("tokenizer_config.json", config("no".into())), ("chat_template.jinja", source.to_owned())],
        ] {
            let dir = dir(&files.iter().map(|(name, text)| (*name, text.as_str())).collect::<Vec<_>>());
            let template = ChatTemplate::open(dir.path()).unwrap();
            assert_eq!(template.render(&[message("user", "x")], true).unwrap(), "<s>x</s>");
        }
    }

    #[test]
    fn tokens_that_are_not_set_print_as_nothing() {
        let template = ("chat_template.jinja", "{{ bos_token }}x{{ eos_token }}");
        let written = |files: &[(&str, &str)]| {
            ChatTemplate::open(dir(&[&[template], files].concat()).path()).unwrap().render(&[], true).unwrap()
        };
        assert_eq!(written(&[("tokenizer_config.json", r#"{"bos_token": null}"#)]), "x");
        let special = ("special_tokens_map.json", r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#);
        assert_eq!(written(&[special]), "<s>x</s>");
    }

    #[test]
    fn templates_know_the_date() {
        let dir = dir(&[("chat_template.jinja", "{{ strftime_now('%Y-%m-%d') }}")]);
        let today = || Local::now().date_naive().to_string();
        let before = today();
        let written = ChatTemplate::open(dir.path()).unwrap().render(&[], true).unwrap();
        // The day may end meanwhile.
        assert!(written == before || written == today(), "{written}");
        check_refused("{{ strftime_now('%!') }}", "no format of a time: %!");
    }

    #[track_caller]
    fn check_refused(template: &str, expected: &str) {
        let dir = dir(&[("chat_template.jinja", template)]);
        let error = ChatTemplate::open(dir.path()).and_then(|template| template.render(&[message("user", "x")], true));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("chat_template.jinja"), "{error}");
    }

    #[test]
    fn what_cannot_be_run_is_told() {
        check_refused("{% for %}", "line 1");
        check_refused("  \n", "nothing of the conversation");
        check_refused("{{ raise_exception('roles must alternate') }}", "roles must alternate");
        check_refused("{{ messages[0].content.nonsense() }}", "nonsense");
        check_refused("{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}", "fuel");
        let error = ChatTemplate::open(dir(&[]).path()).unwrap_err();
        assert!(matches!(error, DataError::NoChatTemplate { .. }), "{error}");
    }
}
