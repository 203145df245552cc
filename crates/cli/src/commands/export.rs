//! `omniquant export`: writes a packed model in the formats of other programs.

use std::path::{Path, PathBuf};

use anyhow::Result;
use oq_export::{Exported, Format, Options, Subject, check, check_directory, export};
use oq_formats::PackedCheckpoint;
use serde_json::json;

use crate::args::ExportArgs;
use crate::exit::CliError;
use crate::output::{Output, bytes};

pub fn run(args: &ExportArgs, out: &Output) -> Result<()> {
    let options = Options::default().with_shard_bytes(args.shard_size.0);
    let places = places(&args.dir, &args.to, args.out.as_deref())?;
    let exports = export_all(&args.dir, &places, &options, out)?;
    out.result(&json!({"dir": args.dir, "exports": exports}), || text(&exports))
}

/// The directory of each format, all of which can be written to.
pub fn places(dir: &Path, formats: &[&'static Format], out: Option<&Path>) -> Result<Vec<(&'static Format, PathBuf)>> {
    let mut places = Vec::new();
    for &format in formats {
        if places.iter().any(|(other, _): &(&Format, PathBuf)| other.name == format.name) {
            return Err(CliError::Usage(format!("{} is listed twice", format.name)).into());
        }
        let place = match out {
            Some(out) if formats.len() == 1 => out.to_owned(),
            Some(out) => out.join(format.name),
            None => {
                let name = dir.file_name().ok_or_else(|| {
                    CliError::Usage(format!("{}: has no name to add the format to: give --out", dir.display()))
                })?;
                let mut name = name.to_owned();
                name.push(format!("-{}", format.name));
                dir.with_file_name(name)
            }
        };
        check_directory(&place)?;
        places.push((format, place));
    }
    Ok(places)
}

/// Writes the packed model in `dir` in each format, with progress; nothing if one of them cannot hold it.
pub fn export_all(
    dir: &Path,
    places: &[(&'static Format, PathBuf)],
    options: &Options,
    out: &Output,
) -> Result<Vec<Exported>> {
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let model = PackedCheckpoint::open(dir)?;
    let subject = Subject::of(&model)?;
    places.iter().try_for_each(|(format, _)| check(format, &subject))?;
    let mut exports = Vec::new();
    for (format, place) in places {
        let bar = out.bar(format.name);
        exports.push(export(&model, format, place, options, &mut |progress| {
            bar.set(progress.done as usize, progress.total as usize);
            bar.message(progress.tensor.to_owned());
        })?);
    }
    Ok(exports)
}

/// The exports as text.
pub fn text(exports: &[Exported]) -> String {
    let line = |it: &Exported| {
        let files = if it.shards == 1 { "1 file".to_owned() } else { format!("{} files", it.shards) };
        format!("{}: {}, {} in {files}\n", it.dir.display(), it.format, bytes(it.bytes))
    };
    exports.iter().map(line).collect()
}
