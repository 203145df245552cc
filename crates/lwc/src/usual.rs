//! What gradients of weights usually are, by row and column.

use tch::{Kind, Tensor};

/// The longest step of an offset, in units of its rate: a weight's own gradient says little about how far to go.
pub const LARGEST: f64 = 2.0;

/// Factors whose product scales a weight's gradient to about 1; 0 where all gradients are 0.
pub struct Usual {
    /// `[out]`.
    pub rows: Tensor,
    /// `[in]`.
    pub columns: Tensor,
}

impl Usual {
    /// Of gradients `[out, in]`, as numbers of `kind`.
    pub fn of(grad: &Tensor, kind: Kind) -> Self {
        // The norm converts narrow numbers as it reads them; it does not narrow wide ones.
        let grad = if grad.kind() == Kind::Double { grad.to_kind(kind) } else { grad.shallow_clone() };
        let norms = |axis: i64| grad.norm_scalaropt_dim_dtype(2.0, axis, false, kind);
        Self::of_norms(&norms(1), &norms(0))
    }

    /// Of the norms of rows `[out]` and columns `[in]`.
    pub(crate) fn of_norms(rows: &Tensor, columns: &Tensor) -> Self {
        let height = (rows.size()[0] as f64).sqrt();
        let all = rows.norm_scalaropt_dim(2.0, 0, false);
        Self { rows: finite(&((all / height) / rows)), columns: finite(&(columns.reciprocal() * height)) }
    }

    /// The gradients over what is usual in their row and column, `[out, in]`: about 1, at most 2.
    pub fn steps(&self, grad: &Tensor) -> Tensor {
        (grad * self.rows.unsqueeze(1) * &self.columns).clamp(-LARGEST, LARGEST)
    }
}

/// 0 where a norm was 0.
fn finite(factors: &Tensor) -> Tensor {
    factors.nan_to_num(0.0, 0.0, 0.0)
}
