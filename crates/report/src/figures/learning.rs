//! How learning went: losses, and the divergence of tuning.

use crate::parts::{Cell, Section, Table};
use crate::plot::{Axis, AxisKind, Look, Plot, Series, Tone};
use crate::run::Run;
use crate::text::{count, short};

/// The losses of blocks by epoch.
pub(crate) fn section(run: &Run) -> Section {
    let mut section = Section::new("learning", "How learning went");
    let mut losses: Vec<(usize, &[f64])> = run
        .blocks
        .iter()
        .map(|block| (block.index, block.losses.as_slice()))
        .filter(|(_, losses)| !losses.is_empty())
        .collect();
    losses.extend(
        run.current.iter().map(|(block, losses)| (*block, losses.as_slice())).filter(|(_, losses)| !losses.is_empty()),
    );
    let Some(((first, _), (last, _))) = losses.first().zip(losses.last()) else { return section };
    let n = losses.len();
    let epochs = losses.iter().map(|(_, losses)| losses.len()).max().unwrap_or_default();
    let fell = losses.iter().filter(|(_, losses)| losses.last() < losses.first()).count();
    let ends = losses.iter().filter_map(|(block, losses)| Some((*block, *losses.last()?)));
    let (worst, largest) = ends.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
    let about = format!(
        "Mean loss of each epoch, {} of {}. It ends below its first epoch in {fell} of {}. The largest last loss is {} in block {}.",
        count(n, "block"),
        count(epochs, "epoch"),
        count(n, "block"),
        short(largest),
        worst + 1
    );
    section.text.push(about.clone());
    let retries: usize = run.blocks.iter().map(|block| block.retries).sum();
    if retries > 0 {
        section.text.push(format!(
            "Learning restarted {} at a lower rate, because a loss was not finite.",
            count(retries, "time")
        ));
    }
    if epochs > 1 {
        let series = losses.iter().enumerate().map(|(i, (block, losses))| {
            let points = losses.iter().enumerate().map(|(epoch, &loss)| (epoch as f64 + 1.0, loss)).collect();
            let is_end = block == first || block == last;
            Series {
                strength: 0.25 + 0.75 * (i + 1) as f64 / n as f64,
                labels: if is_end { vec![format!("block {}", block + 1)] } else { Vec::new() },
                ..Series::new("", if n <= 6 { Look::Dots } else { Look::Line }, Tone::Made, points)
            }
        });
        let series: Vec<Series> = series.collect();
        let (x, y) = (Axis::new("epoch", AxisKind::Whole), Axis::of_sizes("", &series));
        let title = "Loss by epoch; later blocks are stronger".to_owned();
        section.figures.push(Plot { title, about, x, y, series, band: None, is_small: false }.figure("loss"));
    }
    let by_block = |of: &dyn Fn(&[f64]) -> Option<f64>| -> Vec<(f64, f64)> {
        losses.iter().filter_map(|(block, losses)| Some((*block as f64 + 1.0, of(losses)?))).collect()
    };
    let mut series =
        vec![Series::new("last epoch", Look::Dots, Tone::Made, by_block(&|losses| losses.last().copied()))];
    if epochs > 1 {
        series.insert(
            0,
            Series::new("first epoch", Look::Rings, Tone::Other, by_block(&|losses| losses.first().copied())),
        );
    }
    let (x, y) = (Axis::new("block", AxisKind::Whole), Axis::of_sizes("", &series));
    let about = format!(
        "Loss of the first and the last epoch by block. The largest last loss is {} in block {}.",
        short(largest),
        worst + 1
    );
    let title = "Loss by block".to_owned();
    section.figures.push(Plot { title, about, x, y, series, band: None, is_small: false }.figure("loss-by-block"));
    section.tables.push(Table {
        caption: "Loss of each epoch, and the mean squared error of the block's output at the end".to_owned(),
        head: ["block".to_owned()]
            .into_iter()
            .chain((1..=epochs).map(|epoch| format!("epoch {epoch}")))
            .chain(["squared error".to_owned()])
            .collect(),
        rows: losses
            .iter()
            .map(|(block, losses)| {
                let end = run.blocks.get(*block).and_then(|block| block.final_loss);
                let loss = |epoch: usize| Cell::number(losses.get(epoch).map_or_else(String::new, |&loss| short(loss)));
                let end = Cell::number(end.map_or_else(String::new, short));
                [Cell::text((block + 1).to_string())].into_iter().chain((0..epochs).map(loss)).chain([end]).collect()
            })
            .collect(),
        is_folded: true,
    });
    section
}

/// The divergence of tuning.
pub(crate) fn tuning(run: &Run) -> Section {
    let mut section = Section::new("tuning", "All blocks together");
    let (Some(&first), Some(&last)) = (run.tuning.first(), run.tuning.last()) else { return section };
    let n = run.tuning.len();
    let about = match n {
        1 => format!(
            "In its one epoch of tuning, the predictions' mean divergence from the full-precision model was {} nats.",
            short(first)
        ),
        _ => format!(
            "The predictions' mean divergence from the full-precision model was {} nats in the first epoch of tuning and {} in the last.",
            short(first),
            short(last)
        ),
    };
    section.text.push(format!("{about} Each epoch reads a text of its own."));
    if n > 1 {
        let points =
            run.tuning.iter().enumerate().map(|(epoch, &divergence)| (epoch as f64 + 1.0, divergence)).collect();
        let series = vec![Series::new("", Look::Dots, Tone::Made, points)];
        let (x, y) = (Axis::new("epoch", AxisKind::Whole), Axis::of_sizes("", &series));
        let title = "Divergence by epoch, nats".to_owned();
        section.figures.push(Plot { title, about, x, y, series, band: None, is_small: false }.figure("tuning"));
    }
    section.tables.push(Table {
        caption: "Divergence of each epoch of tuning".to_owned(),
        head: ["epoch", "divergence, nats"].map(str::to_owned).to_vec(),
        rows: run
            .tuning
            .iter()
            .enumerate()
            .map(|(epoch, &divergence)| vec![Cell::text((epoch + 1).to_string()), Cell::number(short(divergence))])
            .collect(),
        is_folded: false,
    });
    section
}
