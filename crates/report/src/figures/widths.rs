//! The widths that were chosen under an average of bits.

use crate::linears::{kind_of, short};
use crate::parts::{Cell, Section, Table, heat_table};
use crate::run::{Bits, Run, Unit};
use crate::text::{count, percent, seconds, short as number};

pub(crate) fn section(run: &Run) -> Section {
    let mut section = Section::new("widths", "Chosen widths");
    let Some(bits) = &run.bits else { return section };
    let all: u64 = bits.units.iter().map(|unit| unit.weights).sum();
    let counted = bits.choices.iter().filter_map(|&width| {
        let units = bits.units.iter().filter(|unit| unit.bits == width);
        let weights: u64 = units.map(|unit| unit.weights).sum();
        (weights > 0).then(|| format!("{} have {width} bits", percent(weights as f64 / all.max(1) as f64)))
    });
    section.text.push(format!(
        "Each group of linears got its own width, {:.3} bits on average, by what each width was measured to cost the predictions (in {}). Of \
         the weights, {}.",
        bits.average,
        seconds(bits.wall_secs),
        counted.collect::<Vec<_>>().join(", ")
    ));
    let columns = columns(bits);
    let mut rows: Vec<(usize, Vec<Option<f64>>)> = Vec::new();
    for block in 0..run.n_blocks {
        let mean = |column: &String| {
            let units = || bits.units.iter().filter(|unit| unit.block == block && name(unit) == *column);
            let weights: u64 = units().map(|unit| unit.weights).sum();
            let sum: u64 = units().map(|unit| unit.weights * u64::from(unit.bits)).sum();
            (weights > 0).then(|| sum as f64 / weights as f64)
        };
        rows.push((block, columns.iter().map(mean).collect()));
    }
    section.tables.push(heat_table(
        "Bits of each group of linears; a stronger shade is more",
        &columns,
        &rows,
        width_of,
    ));
    let mut costly: Vec<&Unit> = bits.units.iter().collect();
    costly.sort_by(|a, b| cost(b).total_cmp(&cost(a)));
    let head = ["linears".to_owned(), "bits".to_owned()];
    let costs = bits.choices.iter().map(|width| format!("at {}", count(*width as usize, "bit")));
    section.tables.push(Table {
        caption: "What each width would cost, in nats per token, where it costs most".to_owned(),
        head: head.into_iter().chain(costs).collect(),
        rows: costly
            .iter()
            .take(12)
            .map(|unit| {
                let first = [
                    Cell::text(format!("block {}, {}", unit.block + 1, unit.linears.join(", "))),
                    Cell::number(unit.bits.to_string()),
                ];
                first.into_iter().chain(unit.divergence.iter().map(|&cost| Cell::number(number(cost)))).collect()
            })
            .collect(),
        is_folded: true,
    });
    section
}

/// Means over experts may lie between two widths.
fn width_of(bits: f64) -> String {
    if bits.fract() == 0.0 { format!("{bits}") } else { format!("{bits:.2}") }
}

/// Its cost at the fewest bits.
fn cost(unit: &Unit) -> f64 {
    unit.divergence.iter().copied().fold(0.0, f64::max)
}

fn name(unit: &Unit) -> String {
    unit.linears.iter().map(|linear| short(&kind_of(linear)).to_owned()).collect::<Vec<_>>().join(", ")
}

fn columns(bits: &Bits) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for unit in &bits.units {
        let name = name(unit);
        if !columns.contains(&name) {
            columns.push(name);
        }
    }
    columns
}
