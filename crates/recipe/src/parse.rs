//! Parses TOML, with errors that point at the line. The only module that depends on the parser's wording.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::RecipeError;

/// Parses `text`; errors name `file`, which is not opened.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T, RecipeError> {
    toml::from_str(text).map_err(|error| locate(&error, text, file))
}

/// Turns a parser error into one with a position and a snippet.
fn locate(error: &toml::de::Error, text: &str, file: &Path) -> RecipeError {
    let span = error.span().unwrap_or(0..0);
    let before = text.get(..span.start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let content = text[line_start..].lines().next().unwrap_or_default();
    let indent = &before[line_start..];
    let marked = text.get(span).and_then(|marked| marked.lines().next()).unwrap_or_default();

    let number = line.to_string();
    let margin = " ".repeat(number.len());
    // Tabs are kept, so that the carets are aligned.
    let padding: String = indent.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let carets = "^".repeat(marked.chars().count().max(1));
    RecipeError::Toml {
        file: file.to_owned(),
        line,
        column: indent.chars().count() + 1,
        message: explain(error.message()),
        snippet: format!("{margin} |\n{number} | {content}\n{margin} | {padding}{carets}"),
    }
}

/// Rewords serde's messages for users.
fn explain(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let (true, [unknown, allowed @ ..]) = (message.starts_with("unknown field"), &quoted[..]) {
        return unknown_word("key", unknown, allowed);
    }
    if let (true, [unknown, allowed @ ..]) = (message.starts_with("unknown variant"), &quoted[..]) {
        return unknown_word("value", unknown, allowed);
    }
    if let Some(key) = message.strip_prefix("missing field ") {
        return format!("missing key {key}");
    }
    match message.split_once(", expected ") {
        Some((had, "usize" | "u64")) => format!("{had}, expected a whole number, 0 or more"),
        Some((had, "f64")) => format!("{had}, expected a number"),
        Some((had, "a sequence")) => format!("{had}, expected a list such as [\"norm\", \"vo\"]"),
        Some((had, "a boolean")) => format!("{had}, expected true or false"),
        Some((had, wanted)) if wanted.starts_with("struct ") => format!("{had}, expected a table"),
        _ if message == "wanted string or table" => "expected a name in quotes".to_owned(),
        _ => message.to_owned(),
    }
}

fn unknown_word(kind: &str, unknown: &str, allowed: &[&str]) -> String {
    let mut message = format!("unknown {kind} `{unknown}`; allowed here: {}", allowed.join(", "));
    if let Some(near) = closest(unknown, allowed) {
        message.push_str(&format!("; did you mean `{near}`?"));
    }
    message
}

/// The word that `typed` is most likely a typo of: at most a third of its letters differ.
fn closest<'a>(typed: &str, words: &[&'a str]) -> Option<&'a str> {
    let (slips, word) = words.iter().map(|word| (distance(typed, word), *word)).min()?;
    (slips * 3 <= typed.chars().count().max(3)).then_some(word)
}

/// Levenshtein distance: letters inserted, deleted or replaced.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelEntry, Recipe, RecipeFile};

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let error = parse::<RecipeFile>(text, Path::new("my.toml")).expect_err("must be refused");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn unknown_key() {
        check(
            "scheme = \"w4a16\"\n[learn]\nepoch = 20\n",
            "my.toml:3:1: unknown key `epoch`; allowed here: epochs, lwc_lr, aug_loss, loss, start, rounding, expert_tokens; did you mean `epochs`?\n  \
             |\n3 | epoch = 20\n  | ^^^^^",
        );
    }

    #[test]
    fn unknown_key_far_from_any() {
        check(
            "scheme = \"w4a16\"\nturbo = true\n",
            "my.toml:2:1: unknown key `turbo`; allowed here: scheme, method, calibration, learn, let, tune, rotate, bits, outer, override, share, when\n  \
             |\n2 | turbo = true\n  | ^^^^^",
        );
    }

    #[test]
    fn unknown_method() {
        check(
            "scheme = \"w4a16\"\nmethod = \"omniqant\"\n",
            "my.toml:2:10: unknown value `omniqant`; allowed here: omniquant, smoothquant, rtn; did you mean `omniquant`?\n  \
             |\n2 | method = \"omniqant\"\n  |          ^^^^^^^^^^",
        );
    }

    #[test]
    fn unknown_site() {
        check(
            "scheme = \"w4a4\"\nlet.sites = [\"norm\", \"kq\"]\n",
            "my.toml:2:22: unknown value `kq`; allowed here: norm, vo, qk, updown\n  \
             |\n2 | let.sites = [\"norm\", \"kq\"]\n  |                      ^^^^",
        );
    }

    #[test]
    fn wrong_type() {
        check(
            "scheme = \"w4a16\"\ncalibration.samples = \"128\"\n",
            "my.toml:2:23: invalid type: string \"128\", expected a whole number, 0 or more\n  \
             |\n2 | calibration.samples = \"128\"\n  |                       ^^^^^",
        );
        check(
            "scheme = \"w4a16\"\n[calibration]\n\tsamples = -1",
            "my.toml:3:12: invalid value: integer `-1`, expected a whole number, 0 or more\n  \
             |\n3 | \tsamples = -1\n  | \t          ^^",
        );
        check(
            "scheme = \"w4a16\"\nlearn.aug_loss = 1",
            "my.toml:2:18: invalid type: integer `1`, expected true or false\n  \
             |\n2 | learn.aug_loss = 1\n  |                  ^",
        );
        check(
            "scheme = \"w4a16\"\nlearn.lwc_lr = \"1e-2\"",
            "my.toml:2:16: invalid type: string \"1e-2\", expected a number\n  \
             |\n2 | learn.lwc_lr = \"1e-2\"\n  |                ^^^^^^",
        );
    }

    #[test]
    fn wrong_kind() {
        check(
            "scheme = \"w4a16\"\nmethod = 3",
            "my.toml:2:10: expected a name in quotes\n  |\n2 | method = 3\n  |          ^",
        );
        check(
            "scheme = \"w4a16\"\nlet.sites = \"vo\"",
            "my.toml:2:13: invalid type: string \"vo\", expected a list such as [\"norm\", \"vo\"]\n  \
             |\n2 | let.sites = \"vo\"\n  |             ^^^^",
        );
        check(
            "scheme = \"w4a16\"\nlearn = 3",
            "my.toml:2:9: invalid type: integer `3`, expected a table\n  |\n2 | learn = 3\n  |         ^",
        );
    }

    #[test]
    fn scheme_that_is_none() {
        check(
            "scheme = \"int4\"",
            "my.toml:1:10: `int4` is not a setting: expected w<bits>a<bits>[g<group>][sym|full|-int8], such as \
             w4a16g128, w3a16 or w8a8, or a name such as q4_k_m or mxfp4 (no w<bits>)\n  |\n1 | scheme = \"int4\"\n  |          ^^^^^^",
        );
    }

    #[test]
    fn missing_key() {
        check(
            "bits = { choices = [3] }\n",
            "my.toml:1:8: missing key `average`\n  |\n1 | bits = { choices = [3] }\n  |        ^^^^^^^^^^^^^^^^^",
        );
        let error = parse::<Recipe>("", Path::new("my.toml")).expect_err("must be refused");
        assert_eq!(error.to_string(), "my.toml:1:1: missing key `scheme`\n  |\n1 | \n  | ^");
    }

    #[test]
    fn not_toml_at_all() {
        let error = parse::<RecipeFile>("scheme = \"w4a16\"\r\nmethod \"rtn\"\r\n", Path::new("my.toml"));
        let shown = error.expect_err("must be refused").to_string();
        assert!(shown.starts_with("my.toml:2:"), "{shown}");
        assert!(shown.contains("2 | method \"rtn\"\n"), "{shown}");
    }

    #[test]
    fn unknown_source() {
        let text = "[config]\n[source.hug]\nrepo = \"a/b\"\n";
        let shown = parse::<ModelEntry>(text, Path::new("model.toml")).expect_err("must be refused").to_string();
        assert!(shown.contains("unknown value `hug`; allowed here: hub, wheel, path; did you mean `hub`?"), "{shown}");
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("sample", "samples"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(closest("seed", &["data", "seqlen"]), None);
    }
}
