//! Which programs open which exports, and on which path they compute.

use oq_quant_core::{ActSpec, GroupSize, Symmetry};
use serde::Serialize;

use crate::format::Format;
use crate::subject::Subject;

/// How a statement of [`Program`] is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// The program opened exports and computed the same logits.
    Run,
    /// Its source says so; it needs a device that was not there.
    Read,
}

/// A program that opens a format.
#[derive(Clone, Debug, Serialize)]
pub struct Program {
    #[serde(skip)]
    format: &'static str,
    /// Its name and version.
    pub name: &'static str,
    /// How it computes.
    pub path: &'static str,
    /// How that is known.
    pub evidence: Evidence,
    #[serde(skip)]
    opens: fn(&Subject) -> bool,
}

/// The programs that open the model in `format`, which must hold it.
pub fn programs(format: &Format, subject: &Subject) -> Vec<&'static Program> {
    PROGRAMS.iter().filter(|program| program.format == format.name && (program.opens)(subject)).collect()
}

use Evidence::{Read, Run};

static PROGRAMS: [Program; 0] = [];
