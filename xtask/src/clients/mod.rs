//! `cargo xtask clients`: files that we export, proved by the programs that run them.
//!
//! Models are rounded to nearest by every scheme, exported in every format, and opened by each program in an environment of its own. What
//! counts is that the program computes our logits.

mod environments;
mod exports;
mod perplexity;
mod programs;
mod report;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use oq_recipe::find;

use self::exports::{Made, Packed};
use self::programs::{Job, PROGRAMS, Program};
use self::report::{Outcome, Row, is_packed, is_yardstick};
use crate::{locate, process, program};

/// Options of the task.
#[derive(Args)]
pub struct ClientsArgs {
    /// Only these programs, comma-separated: transformers, gptqmodel, auto-round, vllm, mlx, llama.cpp, mistral.rs.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,

    /// Where environments, models, exports and the table go.
    #[arg(long, default_value = "out/clients")]
    dir: PathBuf,

    /// Also write the table to benches/record/MACHINE/clients.md.
    #[arg(long, value_name = "MACHINE")]
    record: Option<String>,
}

/// Does all of it. Fails at the end if a program computes something else.
pub fn run(args: &ClientsArgs) -> Result<()> {
    let start = Instant::now();
    let programs = chosen(&args.only)?;
    let dir = locate::repository().join(&args.dir);
    let environments = dir.join("environments");
    fs::create_dir_all(&environments).with_context(|| format!("cannot make {}", environments.display()))?;
    program::build()?;

    let files = exported(&programs, &dir)?;
    let mut places = vec![dir.join("clients.md")];
    places.extend(
        args.record.as_ref().map(|name| locate::repository().join("benches/record").join(name).join("clients.md")),
    );
    let mut rows = Vec::new();
    for &program in &programs {
        rows.extend(answered(program, &files, &environments)?);
        // A run takes an hour: what there is of it is on disk.
        write(&places[..1], &report::markdown(&rows))?;
    }
    let mut text = report::markdown(&rows);
    let mut other_perplexities = 0;
    if let Some(vllm) = programs.iter().find(|program| program.name == "vllm") {
        match perplexity::text(locate::process_env) {
            Some(data) if has_smollm2()? => {
                let compared = perplexity::compare(vllm, &data, &dir, &environments)?;
                other_perplexities = compared.iter().filter(|row| !row.is_equal()).count();
                text += &perplexity::markdown(&compared, vllm);
            }
            _ => eprintln!("no perplexities: the cache has no SmolLM2, or OMNIQUANT_DATA no wikitext2/wiki.test.raw"),
        }
    }
    std::io::stdout().write_all(text.as_bytes())?;
    write(&places, &text)?;
    let (computed, equal) = report::count(&rows);
    eprintln!("{equal} of {computed} equal, {}", process::took(start.elapsed()));
    ensure!(equal == computed, "{} of {computed} files give other logits", computed - equal);
    ensure!(other_perplexities == 0, "{other_perplexities} files give another perplexity");
    Ok(())
}

/// Writes the table into each file.
fn write(places: &[PathBuf], text: &str) -> Result<()> {
    for place in places {
        fs::write(place, text).with_context(|| format!("cannot write {}", place.display()))?;
        eprintln!("table: {}", place.display());
    }
    Ok(())
}

/// The programs of these names, or all.
fn chosen(only: &[String]) -> Result<Vec<&'static Program>> {
    if let Some(unknown) = only.iter().find(|name| PROGRAMS.iter().all(|program| program.name != **name)) {
        let names: Vec<_> = PROGRAMS.iter().map(|program| program.name).collect();
        bail!("there is no program named {unknown} here; there are {}", names.join(", "));
    }
    Ok(PROGRAMS.iter().filter(|program| only.is_empty() || only.iter().any(|name| name == program.name)).collect())
}

/// An export, or why there is none.
struct Exported {
    model: &'static str,
    scheme: String,
    format: &'static str,
    made: Made<Job>,
}

/// Quantizes every model by its schemes, and exports it in every format that one of `programs` opens.
fn exported(programs: &[&'static Program], dir: &Path) -> Result<Vec<Exported>> {
    let formats: BTreeSet<&'static str> = programs.iter().flat_map(|program| program.formats).copied().collect();
    let formats: Vec<&'static str> = formats.into_iter().collect();
    let mut files = Vec::new();
    for model in exports::models(has_smollm2()?) {
        let ids = exports::ids(model.name, dir)?;
        for scheme in model.schemes {
            eprintln!("{} {scheme}", model.name);
            let jobs = match exports::packed(model.name, &scheme, &ids, dir)? {
                Made::Ready(packed) => jobs(&packed, &scheme, &formats, &ids, dir)?,
                Made::Refused(said) => formats.iter().map(|_| Made::Refused(said.clone())).collect(),
                Made::Failed(said) => formats.iter().map(|_| Made::Failed(said.clone())).collect(),
            };
            let file = |(&format, made)| Exported { model: model.name, scheme: scheme.clone(), format, made };
            files.extend(formats.iter().zip(jobs).map(file));
        }
    }
    Ok(files)
}

/// A packed model in each format, with the logits to compare.
fn jobs(packed: &Packed, scheme: &str, formats: &[&str], ids: &Path, dir: &Path) -> Result<Vec<Made<Job>>> {
    let job = |path, ours| Job { path, tokenizer: packed.folder.join("tokenizer.json"), ids: ids.to_owned(), ours };
    let made = |(format, made): (&&str, Made<PathBuf>)| {
        Ok(match made {
            Made::Ready(path) if *format == "gguf" && exports::is_mixture(scheme) => {
                exports::logits_of_gguf(&path, ids)?.map(|ours| job(path, ours))
            }
            made => made.map(|path| job(path, packed.logits.clone())),
        })
    };
    formats.iter().zip(exports::export(packed, formats, dir)?).map(made).collect()
}

/// Whether the cache has SmolLM2, which takes longer than all others.
fn has_smollm2() -> Result<bool> {
    let entry = find("smollm2-135m").context("configs/ has SmolLM2")?;
    Ok(entry.wheel_file(&locate::cache_dir()?).is_some_and(|file| file.is_file()))
}

/// What `program` makes of the files that it opens: packed ones, and then what their weights cost it when they are not packed.
fn answered(program: &'static Program, files: &[Exported], environments: &Path) -> Result<Vec<Row>> {
    let files: Vec<&Exported> = files.iter().filter(|file| program.formats.contains(&file.format)).collect();
    let row = |file: &&Exported| Row {
        program,
        model: file.model,
        scheme: file.scheme.clone(),
        format: file.format,
        outcome: match &file.made {
            Made::Ready(_) => Outcome::NotAsked,
            Made::Refused(said) => Outcome::Refused(said.clone()),
            Made::Failed(said) => Outcome::NotWritten(said.clone()),
        },
    };
    let mut rows: Vec<Row> = files.iter().map(row).collect();
    for is_next in [is_packed, is_yardstick] {
        let next: Vec<usize> = (0..rows.len()).filter(|&i| is_next(&rows, &rows[i])).collect();
        let asked: Vec<(usize, Job)> =
            next.into_iter().filter_map(|i| Some((i, files[i].made.ready()?.clone()))).collect();
        let jobs: Vec<Job> = asked.iter().map(|(_, job)| job.clone()).collect();
        for ((i, _), answer) in asked.iter().zip(programs::ask(program, environments, &jobs)?) {
            rows[*i].outcome = Outcome::Asked(answer);
        }
    }
    Ok(rows)
}
