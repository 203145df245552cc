//! Learned clipping and rounding.

use oq_recipe::{CLIP_BINS, LinearDetails};

use crate::linears::{columns, kind_of, kinds, short, table};
use crate::parts::{Cell, Section, Table, heat_table};
use crate::plot::{Axis, AxisKind, Look, Plot, Series, Tone};
use crate::run::Run;
use crate::text::percent;

/// How much of the range of weights is kept.
pub(crate) fn section(run: &Run) -> Section {
    let mut section = Section::new("clipping", "Learned clipping");
    if run.details.is_empty() {
        return section;
    }
    let kinds = kinds(&run.details);
    let all = |of: fn(&LinearDetails) -> &[u64; CLIP_BINS]| shares(run, of, None);
    let (max, min) = (all(|linear| &linear.clip_max), all(|linear| &linear.clip_min));
    let about = format!(
        "Share of a group's range that clipping keeps. On average it keeps {} of the largest weight and {} of the smallest; {} and {} of \
         the groups keep nearly all of it (95 % or more).",
        percent(middle(&max)),
        percent(middle(&min)),
        percent(max[CLIP_BINS - 1]),
        percent(min[CLIP_BINS - 1])
    );
    section.text.push(about.clone());
    section
        .figures
        .push(histogram("Share of the range that is kept, % of groups", about, &max, &min, false).figure("clip"));
    for (i, kind) in kinds.iter().enumerate() {
        let of = |of: fn(&LinearDetails) -> &[u64; CLIP_BINS]| shares(run, of, Some(kind));
        let (max, min) = (of(|linear| &linear.clip_max), of(|linear| &linear.clip_min));
        let about = format!(
            "{kind}: clipping keeps {} of the largest weight on average, and {} of the smallest.",
            percent(middle(&max)),
            percent(middle(&min))
        );
        section.figures.push(
            histogram(&format!("{}, % of groups", short(kind)), about, &max, &min, true).figure(&format!("clip-{i}")),
        );
    }
    let rows = kinds.iter().map(|kind| {
        let of = |of: fn(&LinearDetails) -> &[u64; CLIP_BINS]| percent(middle(&shares(run, of, Some(kind))));
        vec![
            Cell::text(kind.clone()),
            Cell::number(of(|linear| &linear.clip_max)),
            Cell::number(of(|linear| &linear.clip_min)),
        ]
    });
    section.tables.push(Table {
        caption: "Mean share that is kept, to half a bin of 5 %".to_owned(),
        head: ["linear", "of the largest weight", "of the smallest weight"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
        is_folded: true,
    });
    section
}

/// Which codes are not the nearest ones.
pub(crate) fn rounding(run: &Run) -> Section {
    let mut section = Section::new("rounding", "Learned rounding");
    let kinds = kinds(&run.details);
    let rows = table(&run.details, &kinds, |linear| linear.moved);
    let (mut moved, mut weights) = (0.0, 0.0);
    for linear in run.details.iter().flat_map(|block| &block.linears) {
        if let Some(share) = linear.moved {
            moved += share * linear.weights as f64;
            weights += linear.weights as f64;
        }
    }
    if weights == 0.0 {
        return section;
    }
    let about = format!("{} of the codes are not the nearest ones on the learned grids.", percent(moved / weights));
    section.text.push(about.clone());
    let points = |column: usize| -> Vec<(f64, f64)> {
        rows.iter().filter_map(|(block, row)| Some((*block as f64 + 1.0, 100.0 * row[column]?))).collect()
    };
    for (i, kind) in kinds.iter().enumerate().filter(|(i, _)| !points(*i).is_empty()) {
        let series = vec![Series::new("", Look::Dots, Tone::Made, points(i))];
        let most = points(i).into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default();
        let about = format!(
            "Codes of {kind} that are not the nearest ones, by block: at most {} in block {}.",
            percent(most.1 / 100.0),
            most.0
        );
        let (x, y) = (Axis::new("", AxisKind::Whole), Axis::new("", AxisKind::FromZero));
        let title = format!("{}, % of codes", short(kind));
        section
            .figures
            .push(Plot { title, about, x, y, series, band: None, is_small: true }.figure(&format!("moved-{i}")));
    }
    let caption = "Codes that are not the nearest ones; a stronger shade is more";
    section.tables.push(Table { is_folded: true, ..heat_table(caption, &columns(&kinds), &rows, percent) });
    section
}

/// A histogram over all blocks, as shares of the groups.
fn shares(run: &Run, of: impl Fn(&LinearDetails) -> &[u64; CLIP_BINS], kind: Option<&str>) -> Vec<f64> {
    let mut sum = [0.0; CLIP_BINS];
    let linears = run.details.iter().flat_map(|block| &block.linears);
    for linear in linears.filter(|linear| kind.is_none_or(|kind| kind_of(&linear.name) == kind)) {
        sum.iter_mut().zip(of(linear)).for_each(|(sum, &n)| *sum += n as f64);
    }
    let all: f64 = sum.iter().sum();
    sum.iter().map(|n| if all > 0.0 { n / all } else { 0.0 }).collect()
}

/// The mean, with each group in the middle of its bin.
fn middle(shares: &[f64]) -> f64 {
    shares.iter().enumerate().map(|(bin, share)| share * (bin as f64 + 0.5) / CLIP_BINS as f64).sum()
}

fn histogram(title: &str, about: String, max: &[f64], min: &[f64], is_small: bool) -> Plot {
    let points = |shares: &[f64]| -> Vec<(f64, f64)> {
        shares.iter().enumerate().map(|(bin, share)| ((bin as f64 + 0.5) / CLIP_BINS as f64, 100.0 * share)).collect()
    };
    let series = vec![
        Series::new("of the largest weight", Look::Steps, Tone::Made, points(max)),
        Series::new("of the smallest weight", Look::DashedSteps, Tone::Other, points(min)),
    ];
    let x = Axis::new(if is_small { "" } else { "share that is kept" }, AxisKind::Share);
    let y = Axis::new("", AxisKind::FromZero);
    Plot { title: title.to_owned(), about, x, y, series, band: None, is_small }
}
