//! Writes the page of a run to stdout, or that of several: `cargo run --example show -- RUN [RUN ..]`.

use std::io::Write;
use std::path::Path;

use oq_report::{ReportError, Run, comparison, page};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dirs: Vec<String> = std::env::args().skip(1).collect();
    let runs = dirs.iter().map(|dir| Run::read(Path::new(dir))).collect::<Result<Vec<_>, ReportError>>()?;
    let html = match runs.as_slice() {
        [run] => page(run, false),
        runs => comparison(runs),
    };
    Ok(std::io::stdout().write_all(html.as_bytes())?)
}
