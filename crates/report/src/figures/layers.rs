//! The error before and after learning, by block and by linear.

use oq_recipe::{BlockDetails, Errors};

use crate::linears::{columns, kinds, mean, short, table};
use crate::parts::{Cell, Section, Table, heat_table};
use crate::plot::{Axis, AxisKind, Look, Plot, Series, Tone};
use crate::run::Run;
use crate::text::percent;

/// Linears that are named one by one.
const WORST: usize = 8;

pub(crate) fn section(run: &Run) -> Section {
    let mut section = Section::new("layers", "Where the error is");
    let details = &run.details;
    let Some(first) = details.first() else { return section };
    let quantized = if run.recipe.scheme.act.bits().is_some() { ", with quantized activations" } else { "" };
    section.text.push(format!(
        "How far the output of each block and linear is from full precision when its input is exact{quantized}: the squared error of each \
         token relative to its squared output, on {} tokens of the calibration text. What earlier blocks lost is not counted here.",
        first.tokens
    ));
    let of_blocks = |of: fn(&Errors) -> f64| {
        details.iter().map(|block| (block.index as f64 + 1.0, 100.0 * of(&block.error))).collect()
    };
    let series = two(of_blocks(|e| e.nearest), of_blocks(|e| e.learned));
    let worst = details.iter().max_by(|a, b| a.error.learned.total_cmp(&b.error.learned)).unwrap_or(first);
    let about = format!(
        "Learning takes the mean error of a block's output from {} to {}. The largest is left in block {}: {}, from {}.",
        percent(average(details, |e| e.nearest)),
        percent(average(details, |e| e.learned)),
        worst.index + 1,
        percent(worst.error.learned),
        percent(worst.error.nearest)
    );
    section.text.push(about.clone());
    section.figures.push(plot("Error of each block's output", about, series, false).figure("error"));
    let kinds = kinds(details);
    for (i, kind) in kinds.iter().enumerate() {
        let of = |of: fn(&Errors) -> f64| -> Vec<(f64, f64)> {
            let at = |block: &BlockDetails| {
                Some((block.index as f64 + 1.0, 100.0 * mean(block, kind, |linear| linear.error.as_ref().map(of))?))
            };
            details.iter().filter_map(at).collect()
        };
        let (nearest, learned) = (of(|e| e.nearest), of(|e| e.learned));
        let Some(worst) = learned.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
        let about = format!(
            "Error of the output of {kind} by block, rounded to nearest and learned. The largest learned error is {} in block {}.",
            percent(worst.1 / 100.0),
            worst.0
        );
        section.figures.push(plot(short(kind), about, two(nearest, learned), true).figure(&format!("error-{i}")));
    }
    section.tables.push(worst_linears(details));
    let rows = table(details, &kinds, |linear| linear.error.map(|error| error.learned));
    let caption = "Error of each linear's output after learning; a stronger shade is larger";
    section.tables.push(Table { is_folded: true, ..heat_table(caption, &columns(&kinds), &rows, percent) });
    section
}

fn plot(title: &str, about: String, series: Vec<Series>, is_small: bool) -> Plot {
    let y = Axis { label: String::new(), ..Axis::of_sizes("", &series) };
    let x = Axis::new(if is_small { "" } else { "block" }, AxisKind::Whole);
    let title = format!("{title}, %");
    Plot { title, about, x, y, series, band: None, is_small }
}

fn two(nearest: Vec<(f64, f64)>, learned: Vec<(f64, f64)>) -> Vec<Series> {
    vec![
        Series::new("rounded to nearest", Look::Rings, Tone::Other, nearest),
        Series::new("learned", Look::Dots, Tone::Made, learned),
    ]
}

fn average(details: &[BlockDetails], of: fn(&Errors) -> f64) -> f64 {
    details.iter().map(|block| of(&block.error)).sum::<f64>() / details.len() as f64
}

/// The linears with the largest errors.
fn worst_linears(details: &[BlockDetails]) -> Table {
    let mut all: Vec<_> = details
        .iter()
        .flat_map(|block| block.linears.iter().filter_map(move |linear| Some((block.index, linear, linear.error?))))
        .collect();
    all.sort_by(|a, b| b.2.learned.total_cmp(&a.2.learned));
    let rows = all.iter().take(WORST).map(|(block, linear, error)| {
        vec![
            Cell::text(format!("block {}, {}", block + 1, linear.name)),
            Cell::number(linear.bits.to_string()),
            Cell::number(percent(error.nearest)),
            Cell::number(percent(error.learned)),
        ]
    });
    Table {
        caption: "The linears with the largest error after learning".to_owned(),
        head: ["linear", "bits", "rounded to nearest", "learned"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
        is_folded: false,
    }
}
