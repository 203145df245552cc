//! Time and memory by block, with what was planned.

use crate::parts::{Cell, Section, Table};
use crate::plot::{Axis, AxisKind, Look, Plot, Series, Tone};
use crate::run::Run;
use crate::text::{bytes, seconds};

const MIB: f64 = 1_048_576.0;

pub(crate) fn section(run: &Run) -> Section {
    let mut section = Section::new("cost", "Time and memory");
    if run.blocks.is_empty() {
        return section;
    }
    let planned = run.planned;
    let longest = run.blocks.iter().map(|block| block.wall_secs).fold(0.0, f64::max);
    let secs = run.blocks.iter().map(|block| (block.index as f64 + 1.0, block.wall_secs)).collect();
    let mut about = format!(
        "All blocks took {}, the longest one {}.",
        seconds(run.blocks.iter().map(|block| block.wall_secs).sum()),
        seconds(longest)
    );
    let mut series = vec![Series::new("measured", Look::Bars, Tone::Made, secs)];
    if let Some(block_secs) = planned.and_then(|planned| planned.block_secs) {
        about += &format!(" The plan said {} for a block.", seconds(block_secs));
        series.push(line(run, block_secs));
    }
    section.text.push(about.clone());
    let axes = || (Axis::new("block", AxisKind::Whole), Axis::new("", AxisKind::FromZero));
    let plot = |title: &str, about: String, series: Vec<Series>| {
        let (x, y) = axes();
        Plot { title: title.to_owned(), about, x, y, series, band: None, is_small: false }
    };
    section.figures.push(plot("Seconds by block", about, series).figure("seconds"));
    let seen: Vec<(f64, f64)> =
        run.memory.iter().map(|(block, bytes)| (*block as f64 + 1.0, *bytes as f64 / MIB)).collect();
    if let Some(most) = run.memory.values().max() {
        let mut about =
            format!("While blocks were learned, the program took at most {}, as seen after each step.", bytes(*most));
        let mut series = vec![Series::new("measured", Look::Bars, Tone::Made, seen)];
        if let Some(planned) = planned {
            about += &format!(" The plan allowed for {}.", bytes(planned.peak_bytes));
            series.push(line(run, planned.peak_bytes as f64 / MIB));
        }
        section.text.push(about.clone());
        section.figures.push(plot("Memory by block, MiB", about, series).figure("memory"));
    }
    section.tables.extend(against_plan(run));
    section.tables.push(Table {
        caption: "Time and memory of each block".to_owned(),
        head: ["block", "time", "memory"].map(str::to_owned).to_vec(),
        rows: run
            .blocks
            .iter()
            .map(|block| {
                let memory = run.memory.get(&block.index).map_or_else(String::new, |n| bytes(*n));
                vec![
                    Cell::text((block.index + 1).to_string()),
                    Cell::number(seconds(block.wall_secs)),
                    Cell::number(memory),
                ]
            })
            .collect(),
        is_folded: true,
    });
    section
}

/// A level line across all blocks.
fn line(run: &Run, value: f64) -> Series {
    Series::new("planned", Look::Dashes, Tone::Plan, vec![(0.5, value), (run.blocks.len() as f64 + 0.5, value)])
}

/// The plan beside what was measured.
fn against_plan(run: &Run) -> Option<Table> {
    let planned = run.planned?;
    let made = run.surroundings.as_ref()?;
    let row = |name: &str, planned: Option<String>, measured: String| {
        vec![Cell::text(name), Cell::number(planned.unwrap_or_else(|| "unknown".to_owned())), Cell::number(measured)]
    };
    let since = if made.is_resumed { "time since it was resumed" } else { "time" };
    let mut rows = vec![
        row(since, planned.total_secs.map(seconds), seconds(made.wall_secs)),
        row("peak memory", Some(bytes(planned.peak_bytes)), bytes(made.peak_bytes)),
    ];
    rows.extend(run.size.map(|size| row("output", Some(bytes(planned.output_bytes)), bytes(size.bytes))));
    let head = ["", "planned", "measured"].map(str::to_owned).to_vec();
    Some(Table { caption: "The plan, and what it came to".to_owned(), head, rows, is_folded: false })
}
