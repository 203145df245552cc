//! What a page is made of.

use serde::Serialize;

use crate::plot::Figure;

/// A section of a page.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Section {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) text: Vec<String>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) tables: Vec<Table>,
    /// Text as it is in a file.
    pub(crate) file: Option<String>,
}

impl Section {
    pub(crate) fn new(id: &str, title: &str) -> Self {
        Self { id: id.to_owned(), title: title.to_owned(), ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.figures.is_empty() && self.tables.is_empty() && self.file.is_none()
    }
}

/// A table.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Table {
    pub(crate) caption: String,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<Cell>>,
    /// Whether it is shown on request only.
    pub(crate) is_folded: bool,
}

/// A cell of a table. The first one of a row names it.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Cell {
    pub(crate) text: String,
    /// From 0 to 1, how strong its shade is.
    pub(crate) heat: Option<f64>,
    pub(crate) is_number: bool,
}

impl Cell {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    pub(crate) fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_number: true, ..Self::default() }
    }
}

/// A table of values by block and column, with a stronger shade where they are larger.
pub(crate) fn heat_table(
    caption: impl Into<String>,
    columns: &[String],
    rows: &[(usize, Vec<Option<f64>>)],
    show: impl Fn(f64) -> String,
) -> Table {
    let values = || rows.iter().flat_map(|(_, row)| row).flatten().copied();
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let width = (most - least).max(f64::MIN_POSITIVE);
    let cell = |value: &Option<f64>| Cell {
        text: value.map_or_else(String::new, &show),
        heat: value.map(|value| ((value - least) / width * 1000.0).round() / 1000.0),
        is_number: true,
    };
    Table {
        caption: caption.into(),
        head: ["block".to_owned()].into_iter().chain(columns.iter().cloned()).collect(),
        rows: rows
            .iter()
            .map(|(block, row)| [Cell::text((block + 1).to_string())].into_iter().chain(row.iter().map(cell)).collect())
            .collect(),
        is_folded: false,
    }
}

/// A number that stands out, with what it is.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Fact {
    pub(crate) name: String,
    pub(crate) value: String,
    pub(crate) note: String,
}
