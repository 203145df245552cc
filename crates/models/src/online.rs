//! Online rotations: Hadamard matrices that are applied to activations during the forward pass.

use oq_rotation::Orthogonal;
use tch::{Device, Tensor};

use crate::act::ActPoint;
use crate::error::RotateError;
use crate::structure::Dims;

/// The online rotations of a model. Queries and keys are rotated head by head (R3 of SpinQuant), which leaves scores unchanged. The input
/// of the MLP's last linear is rotated too (R4), and that linear's weight contains the inverse.
#[derive(Clone, Debug)]
pub struct Online {
    heads: Orthogonal,
    inner: Orthogonal,
}

impl Online {
    /// For a model of these sizes.
    ///
    /// # Errors
    /// When a width has no Hadamard matrix.
    pub fn new(dims: Dims) -> Result<Self, RotateError> {
        let hadamard = |(what, width)| Orthogonal::hadamard(width).ok_or(RotateError::Width { what, width });
        let [heads, inner] = Self::widths(dims).map(hadamard);
        Ok(Self { heads: heads?, inner: inner? })
    }

    /// The same rotations, of activations on this device.
    pub fn to_device(&self, device: Device) -> Self {
        Self { heads: self.heads.to_device(device), inner: self.inner.to_device(device) }
    }

    /// The rotated activations, with their numbers of channels.
    fn widths(dims: Dims) -> [(&'static str, usize); 2] {
        [("heads", dims.head_dim), ("the MLP", dims.intermediate)]
    }

    /// Checks that [`Self::new`] would succeed, without computing matrices.
    pub(crate) fn check(dims: Dims) -> Result<(), RotateError> {
        match Self::widths(dims).into_iter().find(|&(_, width)| !Orthogonal::has_hadamard(width)) {
            Some((what, width)) => Err(RotateError::Width { what, width }),
            None => Ok(()),
        }
    }

    /// The matrix for the input of the MLP's last linear (R4).
    pub(crate) fn inner(&self) -> &Orthogonal {
        &self.inner
    }

    /// Rotates an activation as its point requires; the shape stays.
    pub fn rotate(&self, point: ActPoint, x: Tensor) -> Tensor {
        match point {
            ActPoint::QueryKey => self.heads.apply(&x),
            ActPoint::Inner => self.inner.apply(&x),
            ActPoint::LinearInput | ActPoint::Value => x,
        }
    }
}

/// [`Online::rotate`], if there are online rotations.
pub(crate) fn rotate_online(online: Option<&Online>, point: ActPoint, x: Tensor) -> Tensor {
    match online {
        Some(online) => online.rotate(point, x),
        None => x,
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    /// Entry of Sylvester's matrix, for any order that is a power of two.
    fn sylvester(i: usize, j: usize) -> f64 {
        if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
    }

    /// Entry of Paley's matrix of order 12, from squares modulo 11, with a first column of ones.
    fn paley(i: usize, j: usize) -> f64 {
        let is_square = |n: usize| [1, 3, 4, 5, 9].contains(&(n % 11));
        match (i, j) {
            (0, _) | (_, 0) => 1.0,
            _ if i == j => -1.0,
            _ if is_square(i + 11 - j) => -1.0,
            _ => 1.0,
        }
    }

    #[test]
    fn queries_keys_and_inner_activations_are_rotated_by_hadamard_matrices() {
        let dims = Dims {
            n_layers: 1,
            hidden: 32,
            intermediate: 96,
            n_heads: 2,
            n_kv_heads: 2,
            head_dim: 16,
            vocab: 8,
            max_positions: 8,
        };
        let online = Online::new(dims).unwrap();
        let dense = |n: usize, sign: &dyn Fn(usize, usize) -> f64| {
            let signs: Vec<f64> = (0..n * n).map(|at| sign(at / n, at % n)).collect();
            Tensor::from_slice(&signs).view([n as i64; 2]) / (n as f64).sqrt()
        };
        let heads = dense(16, &sylvester);
        let inner = dense(96, &|i, j| paley(i / 8, j / 8) * sylvester(i % 8, j % 8));
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
        for (point, x, matrix) in [
            (ActPoint::QueryKey, random(&[1, 2, 5, 16]), Some(heads)),
            (ActPoint::Inner, random(&[1, 5, 96]), Some(inner)),
            (ActPoint::LinearInput, random(&[1, 5, 32]), None),
            (ActPoint::Value, random(&[1, 2, 5, 16]), None),
        ] {
            let expected = matrix.map_or(x.shallow_clone(), |matrix| x.matmul(&matrix));
            let off = (online.rotate(point, x) - expected).abs().max().double_value(&[]);
            assert!(off < 1e-12, "{point:?}: {off:.1e}");
        }
    }
}
