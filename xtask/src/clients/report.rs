//! The table of what the programs answered, in Markdown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::programs::{Answer, Program, ROUNDED_ACTIVATIONS};

/// How far above its own error, with the same weights in f16, a program may be.
const OF_ITS_OWN: f64 = 2.0;
/// That own error is rounding to f16 in each of some twenty products, and no more.
const OWN_BAR: f64 = 1e-2;
/// The format of weights that are not packed.
const DENSE: &str = "dense";

/// One file in one program.
pub struct Row {
    pub program: &'static Program,
    pub model: &'static str,
    pub scheme: String,
    pub format: &'static str,
    pub outcome: Outcome,
}

/// What became of it.
pub enum Outcome {
    /// The format does not hold it, as `omniquant` said.
    Refused(String),
    /// `omniquant` failed.
    NotWritten(String),
    /// The yardstick of files that the program does not run.
    NotAsked,
    /// The program's answer.
    Asked(Answer),
}

/// Whether weights are packed: the program is asked about these first.
pub fn is_packed(_: &[Row], row: &Row) -> bool {
    row.format != DENSE
}

/// Whether weights are not packed, and the program runs the same ones packed. If no format holds the model, it is asked whether it has it.
pub fn is_yardstick(rows: &[Row], row: &Row) -> bool {
    let mut of_model = rows.iter().filter(|other| other.model == row.model && other.format != DENSE);
    let is_asked = |other: &Row| matches!(other.outcome, Outcome::Asked(_));
    let is_run = |other: &Row| other.scheme == row.scheme && error(other).is_some();
    row.format == DENSE && (of_model.clone().any(is_run) || !of_model.any(is_asked))
}

/// Whether the program computes what we do, where it is off by `error` and with the same weights in f16 by `own`.
fn is_equal(row: &Row, error: f64, own: Option<f64>) -> bool {
    if row.format == DENSE {
        return error <= OWN_BAR;
    }
    let bar = if row.scheme.contains("a8") { ROUNDED_ACTIVATIONS } else { row.program.bar };
    error <= own.map_or(0.0, |own| OF_ITS_OWN * own.min(OWN_BAR)).max(bar)
}

/// The error of a row that has one.
fn error(row: &Row) -> Option<f64> {
    match row.outcome {
        Outcome::Asked(Answer::Logits { error, .. }) => Some(error),
        _ => None,
    }
}

/// The program's error with the weights of `row`, decoded to f16.
fn own_error(rows: &[Row], row: &Row) -> Option<f64> {
    let is_it = |other: &&Row| (other.model, &other.scheme, other.format) == (row.model, &row.scheme, DENSE);
    rows.iter().filter(|other| other.program.name == row.program.name).find(is_it).and_then(error)
}

/// Rows that were computed, and among them those whose logits are ours.
pub fn count(rows: &[Row]) -> (usize, usize) {
    let computed: Vec<bool> =
        rows.iter().filter_map(|row| Some(is_equal(row, error(row)?, own_error(rows, row)))).collect();
    (computed.len(), computed.iter().filter(|&&is_equal| is_equal).count())
}

/// The whole record.
pub fn markdown(rows: &[Row]) -> String {
    let (computed, equal) = count(rows);
    let mut text = format!(
        "# Exports in the programs that run them: `cargo xtask clients`\n\n\
         Models rounded to nearest, exported, and opened by each program on the CPU. A figure is the largest difference of the program's\n\
         logits from those of `omniquant logits` (the packed model in f32), over the largest logit. It counts as equal up to 1e-3, or up\n\
         to {OF_ITS_OWN} times what the program is off with the same weights in f16 (the column `{DENSE}`, where there is something to compare).\n\
         Auto-round multiplies in f16: 3e-3. mlx-lm makes f16 offsets of AWQ's zero points: 5e-3. mistral.rs rounds activations to 8 bits: 0.1.\n\
         The same holds for schemes with 8-bit activations, whose codes depend on the last digits: transformers takes scales of largest/127.5\n\
         instead of largest/127, and vLLM rounds what f16 has. A dash says that the format does not hold the scheme, a figure in bold that\n\
         something is wrong, and a number in brackets that the program does not run it. `packed, as it is` is what the program is off in its\n\
         own types, where the other columns have it compute in f32: llama.cpp rounds activations to 8 bits, mlx adds up in f16.\n\n\
         {equal} of {computed} computed files are equal.\n"
    );
    let mut notes = Notes::default();
    let mut sections: Vec<(&'static str, &'static str)> = Vec::new();
    for row in rows {
        if sections.last() != Some(&(row.program.name, row.model)) {
            if sections.last().is_none_or(|(program, _)| *program != row.program.name) {
                write!(text, "\n## {}\n", row.program.about).expect("a String can be written");
            }
            sections.push((row.program.name, row.model));
            section(&mut text, rows, row, &mut notes);
        }
    }
    notes.write(&mut text);
    refusals(&mut text, rows);
    text
}

/// What stands behind the dashes: each reason once for a format, with the first scheme that met it.
fn refusals(text: &mut String, rows: &[Row]) {
    let mut refused = BTreeMap::new();
    for row in rows {
        if let Outcome::Refused(said) = &row.outcome {
            let reason = said.split_once(": ").map_or(&**said, |(_, reason)| reason);
            let reason = reason.split(';').next().unwrap_or_default();
            refused.entry((row.format, reason)).or_insert(said);
        }
    }
    if !refused.is_empty() {
        text.push_str("\nWhat formats do not hold, as `omniquant formats` says of the first such scheme:\n\n");
    }
    for ((format, _), said) in refused {
        writeln!(text, "- {format}: {said}").expect("a String can be written");
    }
}

/// The table of a program and a model: schemes by formats.
fn section(text: &mut String, rows: &[Row], first: &Row, notes: &mut Notes) {
    let rows_here: Vec<&Row> =
        rows.iter().filter(|row| (row.program.name, row.model) == (first.program.name, first.model)).collect();
    let has_as_is =
        rows_here.iter().any(|row| matches!(row.outcome, Outcome::Asked(Answer::Logits { as_is: Some(_), .. })));
    let formats = first.program.formats;
    let as_is = if has_as_is { " | packed, as it is" } else { "" };
    write!(text, "\n| {} | {}{as_is} |\n", first.model, formats.join(" | ")).expect("a String can be written");
    writeln!(text, "|{}", "---|".repeat(1 + formats.len() + usize::from(has_as_is))).expect("a String can be written");
    let mut seen = BTreeSet::new();
    for row in &rows_here {
        if !seen.insert(&row.scheme) {
            continue;
        }
        let of_format = |format: &&str| rows_here.iter().find(|r| r.scheme == row.scheme && r.format == *format);
        let cells: Vec<&&Row> = formats.iter().filter_map(of_format).collect();
        if cells.iter().all(|cell| matches!(cell.outcome, Outcome::Refused(_) | Outcome::NotAsked)) {
            continue;
        }
        write!(text, "| {} |", row.scheme).expect("a String can be written");
        for cell in &cells {
            write!(text, " {} |", shown(cell, own_error(rows, cell), notes)).expect("a String can be written");
        }
        if has_as_is {
            let packed = cells.iter().filter(|cell| cell.format != DENSE);
            let as_is = packed.filter_map(|cell| match cell.outcome {
                Outcome::Asked(Answer::Logits { as_is, .. }) => as_is,
                _ => None,
            });
            write!(text, " {} |", as_is.reduce(f64::max).map_or_else(|| "-".to_owned(), figure))
                .expect("a String can be written");
        }
        text.push('\n');
    }
}

/// A cell.
fn shown(row: &Row, own: Option<f64>, notes: &mut Notes) -> String {
    match &row.outcome {
        Outcome::Refused(_) => "-".to_owned(),
        Outcome::NotAsked => String::new(),
        Outcome::NotWritten(said) => notes.number(&format!("not written: {said}")),
        Outcome::Asked(Answer::Failed(said)) => notes.number(said),
        Outcome::Asked(Answer::Logits { error, .. }) if is_equal(row, *error, own) => figure(*error),
        Outcome::Asked(Answer::Logits { error, .. }) => format!("**{}**", figure(*error)),
    }
}

fn figure(error: f64) -> String {
    format!("{error:.1e}")
}

/// What was said, once each, with the number that stands in its place.
#[derive(Default)]
struct Notes(BTreeMap<String, usize>);

impl Notes {
    fn number(&mut self, said: &str) -> String {
        let next = self.0.len() + 1;
        format!("[{}]", self.0.entry(said.to_owned()).or_insert(next))
    }

    fn write(&self, text: &mut String) {
        let mut listed: Vec<_> = self.0.iter().map(|(said, number)| (number, said)).collect();
        listed.sort();
        if !listed.is_empty() {
            text.push_str("\nWhat was said:\n\n");
        }
        for (number, said) in listed {
            writeln!(text, "- [{number}] {said}").expect("a String can be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::programs::PROGRAMS;

    fn row(format: &'static str, scheme: &str, outcome: Outcome) -> Row {
        let program = PROGRAMS.iter().find(|program| program.name == "auto-round").expect("it is there");
        Row { program, model: "m", scheme: scheme.to_owned(), format, outcome }
    }

    fn logits(error: f64) -> Outcome {
        Outcome::Asked(Answer::Logits { error, as_is: None })
    }

    #[test]
    fn a_programs_own_rounding_is_no_fault_of_the_file() {
        let rows = [row("dense", "w4a16", logits(4e-3)), row("auto-round", "w4a16", logits(7e-3))];
        assert_eq!(count(&rows), (2, 2));
        let rows = [row("dense", "w4a16", logits(4e-3)), row("auto-round", "w4a16", logits(9e-3))];
        assert_eq!(count(&rows), (2, 1));
        let rows = [row("auto-round", "w4a16", logits(4e-3))];
        assert_eq!(count(&rows), (1, 0));
    }

    #[test]
    fn yardsticks_are_asked_for_where_there_is_something_to_compare() {
        let refused = || Outcome::Refused("4 bits only".to_owned());
        let failed = || Outcome::Asked(Answer::Failed("no kernel".to_owned()));
        let wanted = |rows: &[Row]| rows.iter().map(|row| is_yardstick(rows, row)).collect::<Vec<_>>();
        let rows = [
            row("dense", "w4a16", Outcome::NotAsked),
            row("auto-round", "w4a16", logits(1e-4)),
            row("dense", "w3a16", Outcome::NotAsked),
            row("auto-round", "w3a16", failed()),
            row("dense", "w2a16", Outcome::NotAsked),
            row("auto-round", "w2a16", refused()),
        ];
        assert_eq!(wanted(&rows), [true, false, false, false, false, false]);
        let nothing_is_held = [row("dense", "w2a16", Outcome::NotAsked), row("auto-round", "w2a16", refused())];
        assert_eq!(wanted(&nothing_is_held), [true, false]);
        let text = markdown(&rows);
        assert!(text.contains("\n| w3a16 |  | [1] |\n") && !text.contains("| w2a16 |"), "{text}");
    }

    #[test]
    fn the_table_has_every_kind_of_cell() {
        let said = || Outcome::Asked(Answer::Failed("no kernel".to_owned()));
        let rows = [
            row("dense", "w4a16", logits(1e-6)),
            row("auto-round", "w4a16", logits(0.25)),
            row("dense", "w3a16", said()),
            row("auto-round", "w3a16", Outcome::Refused("4 bits only".to_owned())),
            row("dense", "w2a16", Outcome::Refused("4 bits only".to_owned())),
            row("auto-round", "w2a16", Outcome::Refused("4 bits only".to_owned())),
        ];
        let text = markdown(&rows);
        for line in ["| m | dense | auto-round |", "| w4a16 | 1.0e-6 | **2.5e-1** |", "| w3a16 | [1] | - |"] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
        }
        assert!(
            text.contains("\n- [1] no kernel\n")
                && text.ends_with("\n- dense: 4 bits only\n")
                && !text.contains("w2a16"),
            "{text}"
        );
        assert!(text.contains("\n1 of 2 computed files are equal.\n"), "{text}");
    }
}
