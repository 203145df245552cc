//! The recipe, and what computed it.

use crate::parts::{Cell, Section, Table};
use crate::run::Run;
use crate::text::{date, last_part};

pub(crate) fn section(run: &Run) -> Section {
    let mut section = Section::new("settings", "Settings and versions");
    let mut recipe = run.recipe.clone();
    // The page may be sent to others, and folders are nobody's business.
    recipe.calibration.data = last_part(&recipe.calibration.data).to_owned();
    section.file = recipe.to_toml().ok();
    if let Some(made) = &run.surroundings {
        let rows = [
            ("model", run.model_name().to_owned()),
            ("omniquant", made.version.clone()),
            ("libtorch", made.libtorch.clone()),
            ("tch", made.tch.clone()),
            ("device", made.device.clone()),
            ("products in", made.compute.clone()),
            ("threads", made.threads.to_string()),
            ("started", date(made.started_unix)),
            ("finished", date(made.finished_unix)),
        ];
        section.tables.push(Table {
            caption: "What computed it".to_owned(),
            head: ["", "value"].map(str::to_owned).to_vec(),
            rows: rows.into_iter().map(|(name, value)| vec![Cell::text(name), Cell::text(value)]).collect(),
            is_folded: false,
        });
    }
    section
}
