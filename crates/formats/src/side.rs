//! The files of a packed directory besides weights and `config.json`, copied from the model that it was made from.

use std::fs::File;
use std::io;
use std::path::Path;

use serde_json::Value;

use crate::FormatError;
use crate::atomic::{atomic_write, atomic_write_with};
use crate::text::without_mark;

/// What programs read: tokenizers, chat templates, generation defaults.
const READ: [&str; 13] = [
    TOKENIZER_CONFIG,
    TEMPLATE,
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
    "generation_config.json",
    "chat_template.json",
    "preprocessor_config.json",
];
/// The terms of use, which copies of a model have to carry.
const TERMS: [&str; 7] = ["LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt", "USE_POLICY.md"];

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The chat template; the file has precedence over the same key of [`TOKENIZER_CONFIG`].
const TEMPLATE: &str = "chat_template.jinja";
/// Folder of other templates, such as one for tools.
const TEMPLATES: &str = "additional_chat_templates";

/// Copies to `dir` what `source` has of these files. A chat template that is only in `tokenizer_config.json` is written as a file too,
/// where some programs look for it.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy_side_files(source: &Path, dir: &Path) -> Result<(), FormatError> {
    for name in READ.into_iter().chain(TERMS) {
        copy_if_there(&source.join(name), &dir.join(name))?;
    }
    let templates = templates_in(&source.join(TEMPLATES))?;
    for name in &templates {
        let [from, to] = [source, dir].map(|dir| dir.join(TEMPLATES).join(name));
        create_folder_of(&to)?;
        copy_if_there(&from, &to)?;
    }
    if !templates.is_empty() || source.join(TEMPLATE).exists() {
        return Ok(());
    }
    for (name, template) in templates_of(&source.join(TOKENIZER_CONFIG))? {
        let path = match name.as_str() {
            "default" => dir.join(TEMPLATE),
            name => dir.join(TEMPLATES).join(format!("{name}.jinja")),
        };
        create_folder_of(&path)?;
        atomic_write(&path, template.as_bytes())?;
    }
    Ok(())
}

/// Names of the templates in a folder; none if there is no such folder.
fn templates_in(folder: &Path) -> Result<Vec<String>, FormatError> {
    let failed = |source| FormatError::Io { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<Result<_, _>>().map_err(failed)?;
    names.retain(|name| name.ends_with(".jinja"));
    names.sort();
    Ok(names)
}

/// The templates of a `tokenizer_config.json` by name. None if a name could not be that of a file: loaders that find some templates as
/// files read only these.
fn templates_of(path: &Path) -> Result<Vec<(String, String)>, FormatError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FormatError::reading(path, error)),
    };
    // A file that is no JSON stops those who need it, and is copied like the others.
    let config: Value = serde_json::from_slice(without_mark(&bytes)).unwrap_or_default();
    let named = |entry: &Value| {
        let (name, template) = (entry["name"].as_str()?, entry["template"].as_str()?);
        let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) && !name.is_empty();
        is_plain.then(|| (name.to_owned(), template.to_owned()))
    };
    Ok(match &config["chat_template"] {
        Value::String(template) => vec![("default".to_owned(), template.clone())],
        Value::Array(entries) => entries.iter().map(named).collect::<Option<_>>().unwrap_or_default(),
        _ => Vec::new(),
    })
}

fn create_folder_of(path: &Path) -> Result<(), FormatError> {
    let folder = path.parent().expect("a file lies in a folder");
    std::fs::create_dir_all(folder).map_err(|source| FormatError::writing(folder, None, source))
}

fn copy_if_there(from: &Path, to: &Path) -> Result<(), FormatError> {
    match File::open(from) {
        Ok(mut file) => atomic_write_with(to, |out| io::copy(&mut file, out).map(drop)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FormatError::reading(from, error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// The chat templates in a copy of a source with these files: name and text.
    fn copied(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let [source, dir] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        for (name, text) in files {
            let path = source.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        copy_side_files(source.path(), dir.path()).unwrap();
        for (name, text) in files.iter().filter(|(name, _)| READ.contains(name) || TERMS.contains(name)) {
            assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), *text, "{name}");
        }
        let folder = dir.path().join(TEMPLATES);
        let names = templates_in(&folder).unwrap().into_iter().map(|name| format!("{TEMPLATES}/{name}"));
        let names = [TEMPLATE.to_owned()].into_iter().chain(names).filter(|name| dir.path().join(name).exists());
        names.map(|name| (name.clone(), fs::read_to_string(dir.path().join(&name)).unwrap())).collect()
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        assert_eq!(copied(files), expected);
    }

    #[test]
    fn a_template_in_the_config_is_written_as_a_file_too() {
        let config = json!({"chat_template": "{{ a }}"}).to_string();
        check(&[(TOKENIZER_CONFIG, &config)], &[(TEMPLATE, "{{ a }}")]);
        check(&[(TOKENIZER_CONFIG, &format!("\u{feff}{config}"))], &[(TEMPLATE, "{{ a }}")]);
        // The file has precedence.
        check(&[(TOKENIZER_CONFIG, &config), (TEMPLATE, "{{ b }}")], &[(TEMPLATE, "{{ b }}")]);
        check(&[(TOKENIZER_CONFIG, "{}")], &[]);
        check(&[(TOKENIZER_CONFIG, "torn")], &[]);
        check(&[("LICENSE", "yes"), ("tokenizer.model", "\u{1}")], &[]);
    }

    #[test]
    fn several_templates_are_written_all_or_none() {
        let config = |other: &str| {
            let named = |name: &str, template: &str| json!({"name": name, "template": template});
            json!({"chat_template": [named("default", "a"), named(other, "b")]}).to_string()
        };
        let tools = "additional_chat_templates/tool_use.jinja";
        check(&[(TOKENIZER_CONFIG, &config("tool_use"))], &[(TEMPLATE, "a"), (tools, "b")]);
        check(&[(TOKENIZER_CONFIG, &config("../../etc"))], &[]);
        check(&[(TOKENIZER_CONFIG, &config(""))], &[]);
        // Files are copied as they are.
        check(&[(TOKENIZER_CONFIG, &config("rag")), (tools, "c")], &[(tools, "c")]);
    }
}
