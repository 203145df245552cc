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
        let height = (grad.size()[0] as f64).sqrt();
        let norms = |of: &Tensor, axis: i64| of.norm_scalaropt_dim_dtype(2.0, axis, false, kind);
        let (rows, columns) = (norms(&grad, 1), norms(&grad, 0));
        let rows = (norms(&rows, 0) / height) / rows;
        let columns = columns.reciprocal() * height;
        Self { rows: finite(&rows), columns: finite(&columns) }
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
