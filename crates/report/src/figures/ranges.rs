//! Ranges of channels: what linears read, and the learned scales.

use oq_recipe::{BlockDetails, LinearDetails, Quantiles};

use crate::linears::{kind_of, kinds, short};
use crate::parts::{Cell, Section, Table};
use crate::plot::{Axis, AxisKind, Look, Plot, Series, Tone};
use crate::run::Run;
use crate::text;

/// Places of [`oq_recipe::QUANTILES`].
const LEAST: usize = 0;
const TENTH: usize = 2;
const MEDIAN: usize = 3;
const NINE_TENTHS: usize = 4;
const NEARLY_MOST: usize = 5;
const MOST: usize = 6;

/// Numbers of some blocks.
type ByBlock = Vec<(usize, Quantiles)>;

/// The learned scales of channels.
pub(crate) fn scales(run: &Run) -> Section {
    let mut section = Section::new("scales", "Learned scales");
    let mut sites: Vec<(String, &str)> = Vec::new();
    for site in run.details.iter().flat_map(|block| &block.sites) {
        let known = (site.kind.to_string(), site.module.as_str());
        if !sites.contains(&known) {
            sites.push(known);
        }
    }
    if sites.is_empty() {
        return section;
    }
    section.text.push(
        "Channels are divided by a scale where they are written and multiplied by it where they are read. A scale of 1 changes nothing.".to_owned(),
    );
    let mut rows = Vec::new();
    for (i, (kind, module)) in sites.iter().enumerate() {
        let of_block = |block: &BlockDetails| {
            let site = block.sites.iter().find(|site| site.kind.to_string() == *kind && site.module == *module)?;
            Some((block.index, site.scales))
        };
        let by_block: ByBlock = run.details.iter().filter_map(of_block).collect();
        let ends = |at: usize, of: fn(f64, f64) -> f64| {
            by_block.iter().map(|(_, scales)| scales[at]).reduce(of).unwrap_or_default()
        };
        let (least, most) = (ends(LEAST, f64::min), ends(MOST, f64::max));
        let about = format!(
            "Scales of the channels that {module} writes (site {kind}), by block: from {} to {}; the band holds the middle 80 % of a block's scales.",
            text::short(least),
            text::short(most)
        );
        let title = format!("{kind}: {}", short(module));
        section.figures.push(spread(&title, about, &by_block, &[], true).figure(&format!("scales-{i}")));
        for (block, scales) in &by_block {
            rows.push(row(format!("block {}, {kind}: {module}", block + 1), scales));
        }
    }
    section.tables.push(table("Scales by block", "site", rows));
    section
}

/// The ranges of the linears' inputs.
pub(crate) fn inputs(run: &Run) -> Section {
    let mut section = Section::new("inputs", "What the linears read");
    let all = kinds(&run.details);
    // Linears that read the same input have the same numbers; each input is shown once, with its first reader.
    let mut shown: Vec<(Vec<&str>, ByBlock, ByBlock)> = Vec::new();
    for kind in &all {
        let of = |of: fn(&LinearDetails) -> Option<Quantiles>| -> ByBlock {
            run.details.iter().filter_map(|block| Some((block.index, largest(block, kind, of)?))).collect()
        };
        let (plain, rescaled) = (of(|linear| linear.input), of(|linear| linear.input_rescaled));
        if plain.is_empty() {
            continue;
        }
        match shown.iter_mut().find(|(_, known, _)| *known == plain) {
            Some((names, ..)) => names.push(kind),
            None => shown.push((vec![kind], plain, rescaled)),
        }
    }
    if shown.is_empty() {
        return section;
    }
    section.text.push(
        "The largest magnitude of each input channel, on the same tokens. Where a few channels are far above the others, activations are hard to quantize."
            .to_owned(),
    );
    let mut rows = Vec::new();
    for (i, (names, plain, rescaled)) in shown.iter().enumerate() {
        let steepest = plain.iter().max_by(|a, b| outlier(&a.1).total_cmp(&outlier(&b.1)));
        let (block, at) = steepest.copied().unwrap_or_default();
        let title = names.iter().map(|kind| short(kind)).collect::<Vec<_>>().join(", ");
        let about = format!(
            "Largest magnitudes of the input channels of {} by block. In block {} the largest channel is {} times the median one.",
            names.join(", "),
            block + 1,
            text::short(outlier(&at))
        );
        section.figures.push(spread(&title, about, plain, rescaled, true).figure(&format!("inputs-{i}")));
        for (block, input) in plain {
            rows.push(row(format!("block {}, {title}", block + 1), input));
        }
        for (block, input) in rescaled {
            rows.push(row(format!("block {}, {title}, rescaled", block + 1), input));
        }
    }
    section.tables.push(table("Largest magnitudes of input channels", "input of", rows));
    section
}

/// The largest channel relative to the median one.
fn outlier(input: &Quantiles) -> f64 {
    if input[MEDIAN] > 0.0 { input[MOST] / input[MEDIAN] } else { 0.0 }
}

/// Of a block's linears of one kind, the input with the largest channel.
fn largest(block: &BlockDetails, kind: &str, of: fn(&LinearDetails) -> Option<Quantiles>) -> Option<Quantiles> {
    let linears = block.linears.iter().filter(|linear| kind_of(&linear.name) == kind);
    linears.filter_map(of).max_by(|a, b| a[MOST].total_cmp(&b[MOST]))
}

fn spread(
    title: &str,
    about: String,
    plain: &[(usize, Quantiles)],
    rescaled: &[(usize, Quantiles)],
    is_small: bool,
) -> Plot {
    // Nothing on a logarithmic scale is zero.
    let floor = |value: f64| value.max(1e-6);
    let line = |values: &[(usize, Quantiles)], at: usize| -> Vec<(f64, f64)> {
        values.iter().map(|(block, values)| (*block as f64 + 1.0, floor(values[at]))).collect()
    };
    let mut series = vec![
        Series::new("largest channel", Look::Dots, Tone::Made, line(plain, MOST)),
        Series::new("median channel", Look::Line, Tone::Made, line(plain, MEDIAN)),
    ];
    if !rescaled.is_empty() {
        series.push(Series::new("largest, rescaled", Look::Rings, Tone::Other, line(rescaled, MOST)));
        series.push(Series::new("median, rescaled", Look::Dashes, Tone::Other, line(rescaled, MEDIAN)));
    }
    let band =
        plain.iter().map(|(block, values)| (*block as f64 + 1.0, floor(values[TENTH]), floor(values[NINE_TENTHS])));
    let band = Some(("middle 80 %".to_owned(), band.collect()));
    let (x, y) = (Axis::new("", AxisKind::Whole), Axis::new("", AxisKind::Log));
    Plot { title: title.to_owned(), about, x, y, series, band, is_small }
}

fn row(name: String, values: &Quantiles) -> Vec<Cell> {
    let shown = [LEAST, TENTH, MEDIAN, NINE_TENTHS, NEARLY_MOST, MOST].map(|at| Cell::number(text::short(values[at])));
    [Cell::text(name)].into_iter().chain(shown).collect()
}

fn table(caption: &str, first: &str, rows: Vec<Vec<Cell>>) -> Table {
    let head = [first, "least", "10 %", "median", "90 %", "99 %", "most"].map(str::to_owned).to_vec();
    Table { caption: caption.to_owned(), head, rows, is_folded: true }
}
