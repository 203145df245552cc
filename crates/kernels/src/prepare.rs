//! Activations on their way into a kernel: padded like the groups of the layout, and the scale of integers they become.

use crate::element::Element;
use crate::layout::Layout;

/// One row `x [in_features]` as f32 `[groups * padded_group]`: the row itself if it is that already, else `buffer`.
pub(crate) fn padded<'a, A: Element>(layout: &Layout, x: &'a [A], buffer: &'a mut [f32]) -> &'a [f32] {
    match A::as_f32(x) {
        Some(x) if layout.group == layout.padded_group => x,
        _ => {
            pad(layout, x, buffer);
            buffer
        }
    }
}

/// One row `x [in_features]` into `padded [groups * padded_group]`.
pub(crate) fn pad<A: Element>(layout: &Layout, x: &[A], padded: &mut [f32]) {
    let groups = padded.chunks_exact_mut(layout.padded_group).zip(x.chunks_exact(layout.group));
    for (padded, x) in groups {
        let (values, rest) = padded.split_at_mut(layout.group);
        for (value, x) in values.iter_mut().zip(x) {
            *value = x.widen();
        }
        rest.fill(0.0);
    }
}

/// The integers that some activations become.
pub(crate) struct Scale {
    /// Size of a step.
    pub(crate) step: f32,
    /// What activations are multiplied with, before they are rounded.
    pub(crate) inverse: f32,
}

impl Scale {
    /// `largest` becomes the integer `most`.
    pub(crate) fn of(largest: f32, most: f32) -> Self {
        // The inverse of smaller steps would not be a number: such activations count as 0.
        if largest < 1e-30 {
            Self { step: 0.0, inverse: 0.0 }
        } else {
            Self { step: largest / most, inverse: most / largest }
        }
    }
}
