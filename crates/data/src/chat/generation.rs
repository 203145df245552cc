//! `{% generation %}` blocks, with which templates mark what a model is trained on. They render as their content, in a scope of their own,
//! as `{% with %}` does.

/// The template with `with` instead of `generation`.
pub(super) fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let len = if tag.starts_with("{#") {
            end_of(tag, "#}")
        } else if tag.starts_with("{{") {
            end_of_code(tag, "}}")
        } else if tag.starts_with("{%") {
            let word = word_of(tag);
            match &tag[word.clone()] {
                "raw" => end_of_raw(tag),
                name @ ("generation" | "endgeneration") => {
                    out.push_str(&tag[..word.start]);
                    out.push_str(if name == "generation" { "with" } else { "endwith" });
                    rest = &tag[word.end..];
                    continue;
                }
                _ => end_of_code(tag, "%}"),
            }
        } else {
            1
        };
        out.push_str(&tag[..len]);
        rest = &tag[len..];
    }
    out.push_str(rest);
    out
}

/// Position of the first word of a block.
fn word_of(tag: &str) -> std::ops::Range<usize> {
    let code = tag[2..].trim_start_matches(['-', '+']).trim_start();
    let start = tag.len() - code.len();
    let len = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    start..start + len
}

/// Position after `end`, which closes `text`.
fn end_of(text: &str, end: &str) -> usize {
    text[2..].find(end).map_or(text.len(), |at| 2 + at + end.len())
}

/// The same for code with string constants, in which `end` does not count.
fn end_of_code(text: &str, end: &str) -> usize {
    let mut quote = None;
    let mut chars = text.char_indices().skip(2);
    while let Some((at, c)) = chars.next() {
        match quote {
            Some(_) if c == '\\' => drop(chars.next()),
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if text[at..].starts_with(end) => return at + end.len(),
            _ => {}
        }
    }
    text.len()
}

/// End of a raw block.
fn end_of_raw(text: &str) -> usize {
    let mut from = 2;
    while let Some(at) = text[from..].find("{%") {
        let tag = from + at;
        if &text[tag..][word_of(&text[tag..])] == "endraw" {
            return tag + end_of(&text[tag..], "%}");
        }
        from = tag + 2;
    }
    text.len()
}
