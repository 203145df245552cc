//! What was measured of a model.

use serde_json::Value;

/// What was measured of a model.
pub struct Outcome {
    /// The model, as named on the command line.
    pub model: String,
    /// For scripts.
    pub record: Value,
    /// For people.
    pub text: String,
    /// Names of figures and their values, for a table of several models.
    pub figures: Vec<(String, String)>,
}

/// A row for each figure, a column for each model.
pub fn table(outcomes: &[Outcome]) -> String {
    let names: Vec<&str> = outcomes[0].figures.iter().map(|(name, _)| &**name).collect();
    let mut columns = vec![[""].into_iter().chain(names.iter().copied()).collect::<Vec<&str>>()];
    for outcome in outcomes {
        let value = |name: &&str| outcome.figures.iter().find(|(of, _)| of == name).map_or("", |(_, value)| &**value);
        columns.push([&*outcome.model].into_iter().chain(names.iter().map(value)).collect());
    }
    let widths: Vec<usize> =
        columns.iter().map(|column| column.iter().map(|cell| cell.chars().count()).max().unwrap_or(0)).collect();
    let row = |i: usize| {
        let cell = |(column, width): (&Vec<&str>, &usize)| format!("{:<width$}", column[i]);
        let cells: Vec<String> = columns.iter().zip(&widths).map(cell).collect();
        cells.join("  ").trim_end().to_owned()
    };
    (0..=names.len()).map(row).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_models_stand_side_by_side() {
        let outcome = |model: &str, figures: &[(&str, &str)]| Outcome {
            model: model.to_owned(),
            record: Value::Null,
            text: String::new(),
            figures: figures.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        };
        let outcomes =
            [outcome("full", &[("piqa", "60.00 +- 2.00"), ("boolq", "50.00")]), outcome("w3", &[("boolq", "4.00")])];
        assert_eq!(table(&outcomes), "       full           w3\npiqa   60.00 +- 2.00\nboolq  50.00          4.00");
    }
}
