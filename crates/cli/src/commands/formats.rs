//! `omniquant formats`: which formats hold a model, and which programs open them.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;
use oq_export::{Evidence, FORMATS, Format, Limit, Program, Refusal, Subject, check, limits_of_programs, programs};
use oq_formats::PackedCheckpoint;
use oq_quant_core::QuantSpec;
use serde::Serialize;
use serde_json::json;

use crate::args::FormatsArgs;
use crate::exit::CliError;
use crate::output::Output;

pub fn run(args: &FormatsArgs, out: &Output) -> Result<()> {
    let Some(name) = &args.subject else { return list(out) };
    let subject = subject(name)?;
    let rows: Vec<Row> = FORMATS.iter().map(|format| Row::of(format, &subject)).collect();
    out.result(&json!({"subject": name, "schemes": subject.to_string(), "formats": rows}), || text(&subject, &rows))
}

/// All formats, for no scheme in particular.
fn list(out: &Output) -> Result<()> {
    let rows: Vec<_> = FORMATS.iter().map(|format| json!({"format": format.name, "holds": format.about})).collect();
    out.result(&json!({"formats": rows}), || {
        FORMATS.iter().map(|format| format!("{:<20}{}\n", format.name, format.about)).collect()
    })
}

fn subject(name: &str) -> Result<Subject> {
    if Path::new(name).is_dir() {
        return Ok(Subject::of(&PackedCheckpoint::open(Path::new(name))?)?);
    }
    let spec: QuantSpec = name.parse().map_err(|error| {
        CliError::Usage(format!("{name}: neither the directory of a packed model nor a scheme: {error}"))
    })?;
    Ok(spec.into())
}

/// Whether a format holds the model, and who opens it.
#[derive(Serialize)]
struct Row {
    format: &'static str,
    refusal: Option<Refusal>,
    programs: Vec<&'static Program>,
    /// Programs that open other models in this format, and not this one.
    limits: Vec<&'static Limit>,
}

impl Row {
    fn of(format: &Format, subject: &Subject) -> Self {
        let refusal = check(format, subject).err();
        let (programs, limits) = match refusal {
            None => (programs(format, subject), limits_of_programs(format, subject)),
            Some(_) => (Vec::new(), Vec::new()),
        };
        Self { format: format.name, refusal, programs, limits }
    }
}

fn text(subject: &Subject, rows: &[Row]) -> String {
    let mut text = format!("{subject}\n");
    let mut line = |line: String| writeln!(text, "{line}").expect("writing to a string cannot fail");
    for row in rows {
        match &row.refusal {
            None => line(format!("\n{}: yes", row.format)),
            Some(Refusal { why, instead: None, .. }) => line(format!("\n{}: no, {why}", row.format)),
            Some(Refusal { why, instead: Some(instead), .. }) => {
                line(format!("\n{}: no, {why}; {instead} would do", row.format));
            }
        }
        for program in &row.programs {
            let unproved = if program.evidence == Evidence::Read { " (by its source; not run)" } else { "" };
            line(format!("  {}: {}{unproved}", program.name, program.path));
        }
        for Limit { name, why, instead, .. } in &row.limits {
            line(format!("  {name}: no, {why}; {instead} would do"));
        }
    }
    text
}
