//! How a model is rotated.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a model's channels are rotated before quantization, so that no channel is much larger than the others (QuaRot, arXiv 2404.00456;
/// SpinQuant, arXiv 2405.16406).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RotateKind {
    /// Not at all.
    #[default]
    None,
    /// The residual stream and the values of each head. The matrices are merged into the weights, so the architecture does not change.
    Merged,
    /// Like `Merged`, and also queries, keys and the input of the MLP's last linear, while the model runs.
    Online,
}

impl RotateKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::None, Self::Merged, Self::Online];

    /// As recipes and the command line write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Merged => "merged",
            Self::Online => "online",
        }
    }
}

impl fmt::Display for RotateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RotateKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("must be one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}
