//! The tables of a recipe, such as `[learn]`, and their patches, in which every key may be absent. A key is declared once for both.

use oq_quant_core::{RotateKind, SiteKind};
use serde::{Deserialize, Serialize};

use crate::{Loss, Rounding, Start};

/// Declares a table, and its patch with the same keys.
macro_rules! section {
    ($(#[$about:meta])* pub struct $table:ident, $patch:ident {
        $($(#[$doc:meta])* pub $key:ident: $value:ty,)+
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $table {
            $($(#[$doc])* pub $key: $value,)+
        }

        #[doc = concat!("[`", stringify!($table), "`], key by key.")]
        #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $patch {
            $($(#[$doc])* pub $key: Option<$value>,)+
        }

        impl $patch {
            /// Sets the keys that are there.
            pub(crate) fn apply_to(&self, table: &mut $table) {
                $(if let Some(value) = &self.$key {
                    table.$key.clone_from(value);
                })+
            }
        }
    };
}

section! {
    /// The text that blocks are run on.
    pub struct Calibration, CalibrationPatch {
        /// A dataset's name such as `wikitext2`, or a text file.
        pub data: String,
        /// Segments, 1 or more.
        pub samples: usize,
        /// Tokens in a segment, 2 or more.
        pub seqlen: usize,
        /// Chooses the segments; at most 2^63 - 1, the largest integer of TOML.
        pub seed: u64,
        /// Segments in one optimizer step, 1 to `samples`.
        pub batch: usize,
    }
}

section! {
    /// How clipping and rounding are learned.
    pub struct Learn, LearnPatch {
        /// Passes over the segments, for each block; 1 or more.
        pub epochs: usize,
        /// AdamW's learning rate for the clipping strengths; positive.
        pub lwc_lr: f64,
        /// Adds the error against the full-precision block on the quantized model's own input.
        pub aug_loss: bool,
        /// What is minimized.
        pub loss: Loss,
        /// Where clipping and rounding start.
        pub start: Start,
        /// How weights are rounded.
        pub rounding: Rounding,
    }
}

section! {
    /// Where and how channels are rescaled (OmniQuant, section 3.3).
    pub struct Transform, TransformPatch {
        /// Where; none means no transformation. No kind stands here twice.
        pub sites: Vec<SiteKind>,
        /// Also shifts channels, which takes linears with biases.
        pub shift: bool,
        /// AdamW's learning rate for scales and shifts; positive.
        pub lr: f64,
        /// Weight of activations against weights where scales start: `s = max|X|^alpha / max|W|^(1 - alpha)`; 0 to 1.
        pub alpha: f64,
    }
}

section! {
    /// Tuning of all blocks together: their scales, norms and biases, down the divergence of the quantized model's predictions from those of
    /// the model in full precision (EfficientQAT, arXiv 2407.11062, section 3.3).
    pub struct Tune, TunePatch {
        /// Passes, each over as many segments as blocks learn from, of its own; 0 for none.
        pub epochs: usize,
        /// AdamW's learning rate at first, which falls linearly to 0: of the logarithms of scales and norms, and of biases in units of
        /// their root mean square; positive.
        pub lr: f64,
    }
}

section! {
    /// Orthogonal matrices that are put into the model before anything else (QuaRot, arXiv 2404.00456).
    #[derive(Copy, Default, Eq)]
    pub struct Rotate, RotatePatch {
        /// Where.
        pub kind: RotateKind,
        /// Decides the matrices; at most 2^63 - 1.
        pub seed: u64,
    }
}
