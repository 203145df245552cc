//! The page: its parts put into the template.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use crate::answer;
use crate::figures::{clipping, layers, learning, machine, ranges, settings, widths};
use crate::parts::{Fact, Section};
use crate::run::Run;

/// Seconds between two looks of a browser at a page that still changes.
const REFRESH_SECS: u32 = 5;

/// What the template is given.
#[derive(Serialize)]
pub(crate) struct Page {
    pub(crate) title: String,
    pub(crate) kicker: String,
    pub(crate) lead: String,
    pub(crate) facts: Vec<Fact>,
    pub(crate) sections: Vec<Section>,
    /// Seconds after which a browser reads the page again.
    pub(crate) refresh: Option<u32>,
    /// From 0 to 1, how much is done.
    pub(crate) done: Option<f64>,
}

/// A run as one HTML page that needs nothing else. With `follows`, the page of a run that is not finished reads itself again every few
/// seconds.
pub fn page(run: &Run, follows: bool) -> String {
    let mut results = Section::new("results", "Measurements");
    results.tables.extend(answer::measured(run));
    let sections = [
        results,
        layers::section(run),
        learning::section(run),
        learning::tuning(run),
        widths::section(run),
        clipping::section(run),
        clipping::rounding(run),
        ranges::scales(run),
        ranges::inputs(run),
        machine::section(run),
        settings::section(run),
    ];
    let steps = run.n_blocks as f64;
    let page = Page {
        title: format!("{} at {}", run.model_name(), run.recipe.scheme),
        kicker: answer::method(run),
        lead: answer::sentences(run),
        facts: answer::facts(run),
        sections: sections.into_iter().filter(|section| !section.is_empty()).collect(),
        refresh: (follows && !run.is_finished).then_some(REFRESH_SECS),
        done: (!run.is_finished).then(|| run.blocks.len() as f64 / steps.max(1.0)),
    };
    page.html()
}

impl Page {
    pub(crate) fn html(&self) -> String {
        let mut environment = Environment::new();
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("the usual marks"),
        );
        environment.add_global("style", include_str!("../templates/style.css"));
        let template = environment.template_from_named_str("page.html", include_str!("../templates/page.html"));
        template
            .and_then(|template| template.render(Serde(self)))
            .expect("the template is correct, and a page has all that it reads")
    }
}
