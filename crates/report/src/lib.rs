//! Shows what a run left in its folder as an HTML page ([`page`]), or several runs side by side ([`comparison`]).
//!
//! [`Run::read`] reads the records, whose format is in `oq-recipe`. Each section of a page is made from one kind of record (`figures`), out of
//! plots and tables; a template puts them together. Plots are SVG in the colours of the page's style sheet.

mod answer;
mod compare;
mod figures;
mod linears;
mod page;
mod parts;
mod plot;
mod run;
mod text;

pub use compare::{Point, Trade, comparison};
pub use page::page;
pub use run::{Bits, ReportError, Run, Size, Surroundings, Unit};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
