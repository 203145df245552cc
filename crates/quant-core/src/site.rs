//! Where the channels of a block may be rescaled without changing what it computes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of site for an equivalent transformation (OmniQuant, section 3.3), between the module that writes channels and those that read
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SiteKind {
    /// Between a norm and the linears that read it, at every norm.
    Norm,
    /// Between values and the attention's output projection.
    Vo,
    /// Between queries and keys.
    Qk,
    /// Between an MLP's inner linear and its last one. Not part of the paper.
    Updown,
}

impl SiteKind {
    /// All kinds.
    pub const ALL: [SiteKind; 4] = [SiteKind::Norm, SiteKind::Vo, SiteKind::Qk, SiteKind::Updown];

    /// What recipes and the command line call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Norm => "norm",
            Self::Vo => "vo",
            Self::Qk => "qk",
            Self::Updown => "updown",
        }
    }
}

impl fmt::Display for SiteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is not a site.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a site: sites are norm, vo, qk and updown")]
pub struct UnknownSite(pub String);

impl FromStr for SiteKind {
    type Err = UnknownSite;

    fn from_str(text: &str) -> Result<Self, UnknownSite> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| UnknownSite(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_have_names() {
        for kind in SiteKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "q_k".parse::<SiteKind>().expect_err("must be refused").to_string();
        assert_eq!(error, "`q_k` is not a site: sites are norm, vo, qk and updown");
    }
}
