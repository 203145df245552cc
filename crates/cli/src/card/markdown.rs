//! Text from outside in Markdown and YAML: it is shown, and is no markup.

use std::fmt::Write;

/// Characters that mean nothing in the middle of a line of Markdown.
const HARMLESS: &str = "-.,/ ";

/// Plain text in a line.
pub fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in one_line(text).chars() {
        let is_markup = c.is_ascii_punctuation() && !HARMLESS.contains(c);
        if is_markup {
            plain.push('\\');
        }
        plain.push(c);
    }
    plain
}

/// Code in a cell of a table.
pub fn code(text: &str) -> String {
    let text = one_line(text).replace('|', "\\|");
    let fence = "`".repeat(longest_run_of_backticks(&text) + 1);
    // A space on both sides is not shown. It separates backticks from the fence.
    let space = if text.starts_with(['`', ' ']) || text.ends_with(['`', ' ']) { " " } else { "" };
    format!("{fence}{space}{text}{space}{fence}")
}

/// A block of code, in a language.
pub fn block(language: &str, text: &str) -> String {
    let fence = "`".repeat(longest_run_of_backticks(text).max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

/// A table, from cells that are Markdown already.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&head.map(str::to_owned));
    writeln!(text, "|{}", "---|".repeat(N)).expect("writing to a string cannot fail");
    rows.into_iter().for_each(|row| text.push_str(&line(&row)));
    text
}

/// A command line for a shell.
pub fn command<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words = words.into_iter().map(|word| {
        let word = one_line(word);
        shlex::try_quote(&word).expect("no NUL is left").into_owned()
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A string of YAML, JSON and Python.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(one_line(text)).to_string()
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || "\u{2028}\u{2029}".contains(c) { '\u{fffd}' } else { c }).collect()
}

fn longest_run_of_backticks(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_is_markup() {
        assert_eq!(plain("tiny-llama v1.5"), "tiny-llama v1.5");
        assert_eq!(plain("<b>*a_|`\n#"), "\\<b\\>\\*a\\_\\|\\`\u{fffd}\\#");
        assert_eq!(code("w4a16"), "`w4a16`");
        assert_eq!(code("a`b``|"), "```a`b``\\|```");
        assert_eq!(code("`a"), "`` `a ``");
        assert_eq!(block("sh", "a ``` b"), "````sh\na ``` b\n````\n");
        assert_eq!(command(["a", "b c", "d'e", "x\ny"]), "a 'b c' \"d'e\" 'x\u{fffd}y'");
        assert_eq!(quoted("a\": b\n- c"), "\"a\\\": b\u{fffd}- c\"");
        assert_eq!(table(["a", ""], [["b".into(), "c".into()]]), "| a |  |\n|---|---|\n| b | c |\n");
    }
}
