//! `omniquant report`: shows runs in an HTML page.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use oq_formats::atomic_write;
use oq_recipe::{Measurement, REPORT};
use oq_report::{Run, comparison, page};
use serde_json::json;

use crate::args::ReportArgs;
use crate::card;
use crate::commands::running::Interrupt;
use crate::exit::CliError;
use crate::output::Output;

/// Time between two looks at a run that is going on.
const BETWEEN_LOOKS: Duration = Duration::from_secs(5);
/// The longest sleep, so that an interruption is noticed.
const NAP: Duration = Duration::from_millis(100);

pub fn run(args: &ReportArgs, out: &Output) -> Result<()> {
    match args.runs.as_slice() {
        [dir] => {
            let path = args.out.clone().unwrap_or_else(|| dir.join(REPORT));
            let mut run = write(dir, &path, args.follow)?;
            if args.follow && !run.is_finished {
                out.note(&format!(
                    "{}: open it in a browser; it follows the run until that ends, or Ctrl-C",
                    path.display()
                ));
                let interrupt = Interrupt::install(None)?;
                run = interrupt.during(|| follow(dir, &path, run, &interrupt))?;
            }
            out.result(&json!({"report": path, "run": run}), || path.display().to_string())
        }
        dirs => {
            let Some(path) = &args.out else {
                let message = "several runs are compared in a page of their own: name it with --out FILE";
                return Err(CliError::Usage(message.to_owned()).into());
            };
            if args.follow {
                return Err(CliError::Usage("--follow: give one run, the one that is going on".to_owned()).into());
            }
            let runs = dirs.iter().map(|dir| Ok(Run::read(dir)?)).collect::<Result<Vec<Run>>>()?;
            atomic_write(path, comparison(&runs).as_bytes())?;
            out.result(&json!({"report": path, "runs": runs}), || path.display().to_string())
        }
    }
}

/// Writes the report of a finished run to its folder, unless it is there as it would be, and returns its path.
pub fn of_finished(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(REPORT);
    let html = page(&Run::read(dir)?, false);
    if std::fs::read(&path).is_ok_and(|there| there == html.as_bytes()) {
        return Ok(path);
    }
    atomic_write(&path, html.as_bytes())?;
    Ok(path)
}

/// Records measurements of the model in `dir` in its run's record, its card and its page, as far as it has them.
pub fn measured(dir: &Path, new: &[Measurement]) -> Result<()> {
    card::record(dir, new)?;
    let has_page = dir.join(REPORT).exists() && Run::read(dir).is_ok();
    if has_page { of_finished(dir).map(drop) } else { Ok(()) }
}

fn write(dir: &Path, path: &Path, follows: bool) -> Result<Run> {
    let run = Run::read(dir)?;
    atomic_write(path, page(&run, follows).as_bytes())?;
    Ok(run)
}

/// Writes the page again and again, until the run ends or the user interrupts; then once more, as a page that does not change.
fn follow(dir: &Path, path: &Path, mut run: Run, interrupt: &Interrupt) -> Result<Run> {
    while !run.is_finished && !interrupt.was_asked() {
        let looked = Instant::now();
        while looked.elapsed() < BETWEEN_LOOKS && !interrupt.was_asked() {
            sleep(NAP);
        }
        run = write(dir, path, !interrupt.was_asked())?;
    }
    Ok(run)
}
