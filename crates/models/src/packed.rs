//! Products with packed weights.

use std::collections::BTreeMap;

use half::bf16;
use oq_formats::Matrix;
use oq_kernels::{Element, KERNELS, Kernel, KernelError, Operands, PackedLinear};
use oq_quant_core::{ActSpec, QuantizedTensor, Stored, WeightSpec};
use tch::{Device, Kind, Tensor};

use crate::act::{ActPoint, quantize_act};
use crate::attention::{Scores, attention};
use crate::block::{BlockOps, Compute, multiply};
use crate::card::CardLinear;
use crate::error::ModelError;
use crate::online::{Online, rotate_online};
use crate::structure::LinearName;
use crate::tensors::bytes_of;

/// A block whose linears stay packed: on the CPU in the layout of its kernels, on a card as they are stored (`oq-cuda`, where the process
/// asked for it). Its other tensors are f32.
///
/// Inputs and outputs of products are f32 for every [`Compute`]. The CPU's kernels round activations themselves
/// ([`oq_kernels::Operands`]). Attention runs in bf16 if `compute` says so.
#[derive(Debug)]
pub struct PackedOps {
    joints: Vec<Joint>,
    /// The matrix that contains each linear.
    places: BTreeMap<LinearName, usize>,
    params: BTreeMap<String, Tensor>,
    act: ActSpec,
    online: Option<Online>,
    compute: Compute,
}

/// What activations of many tokens, such as a prompt's, are rounded to before packed weights are multiplied with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefill {
    /// What [`Compute`] says.
    #[default]
    Auto,
    /// 8 bits ([`oq_kernels::Operands::Int8`]), which is faster and costs some accuracy. A few tokens at a time are as without.
    Int8,
}

impl Prefill {
    /// Its name in records and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Int8 => "int8",
        }
    }

    /// # Errors
    /// When the kernel of this processor does not round so.
    pub(crate) fn check(self) -> Result<(), ModelError> {
        let kernel = Kernel::chosen()?;
        match self {
            Self::Int8 if !kernel.has_int8() => Err(KernelError::Int8 { kernel: kernel.name }.into()),
            Self::Int8 | Self::Auto => Ok(()),
        }
    }
}

/// Linears with the same input, stacked by rows into one matrix.
#[derive(Debug)]
struct Joint {
    /// The linears, each with its number of output channels.
    parts: Vec<(LinearName, usize)>,
    weight: Weight,
}

#[derive(Debug)]
enum Weight {
    Packed(PackedLinear),
    Card(CardLinear),
    /// Of linears without codes that kernels multiply with: the weight in the data type of products, and the bias.
    Dense(Tensor, Option<Tensor>),
}

/// A linear of a packed model as the checkpoint stores it.
pub(crate) struct StoredLinear {
    pub(crate) name: LinearName,
    /// `[out, in]`.
    pub(crate) shape: [usize; 2],
    pub(crate) weight: Matrix,
    /// `[out]`.
    pub(crate) bias: Option<Vec<f32>>,
}

impl Weight {
    fn dense(values: &[f32], shape: [usize; 2], bias: Option<&[f32]>, (device, compute): (Device, Compute)) -> Self {
        let weight = Tensor::from_slice(values).view(shape.map(|n| n as i64)).to_device(device);
        Self::Dense(compute.cast(weight), bias.map(|bias| Tensor::from_slice(bias).to_device(device)))
    }
}

impl StoredLinear {
    /// What linears that are stacked have in common; none if it has no codes.
    fn grid(&self) -> Option<(WeightSpec, Option<f32>)> {
        let Matrix::Codes(codes) = &self.weight else { return None };
        let global = match codes.stored() {
            Stored::E4m3 { global, .. } => Some(*global),
            _ => None,
        };
        Some((codes.spec(), global))
    }
}

impl PackedOps {
    /// Packs the linears of each group, which have the same input, into one matrix.
    pub(crate) fn new(
        groups: impl IntoIterator<Item = Result<Vec<StoredLinear>, ModelError>>,
        params: BTreeMap<String, Tensor>,
        act: ActSpec,
        (device, compute): (Device, Compute),
    ) -> Result<Self, ModelError> {
        let mut joints = Vec::new();
        for group in groups {
            let group = group?;
            let grid = group[0].grid();
            // All rows of a matrix have the same bits and group size.
            let alike = grid.is_some() && group.iter().all(|linear| linear.grid() == grid);
            let parts = if alike { vec![group] } else { group.into_iter().map(|linear| vec![linear]).collect() };
            for part in parts {
                joints.push(Joint::new(part, (device, compute))?);
            }
        }
        PackedLinear::gather(joints.iter_mut().filter_map(|joint: &mut Joint| match &mut joint.weight {
            Weight::Packed(linear) => Some(linear),
            Weight::Card(_) | Weight::Dense(..) => None,
        }));
        let of_joint = |(idx, joint): (usize, &Joint)| joint.parts.iter().map(move |&(name, _)| (name, idx)).collect();
        let places = joints.iter().enumerate().flat_map::<Vec<_>, _>(of_joint).collect();
        Ok(Self { joints, places, params, act, online: None, compute })
    }

    /// The same block with an online rotation of activations.
    pub(crate) fn with_online(self, online: Option<Online>) -> Self {
        Self { online, ..self }
    }

    /// The same block with what activations of many tokens are rounded to.
    pub(crate) fn with_prefill(self, prefill: Prefill) -> Result<Self, ModelError> {
        if prefill == Prefill::Auto {
            return Ok(self);
        }
        let kernel = Kernel::chosen()?;
        let rounded = |joint: Joint| -> Result<Joint, ModelError> {
            Ok(match joint {
                Joint { parts, weight: Weight::Packed(linear) } => {
                    Joint { parts, weight: Weight::Packed(linear.with_kernel(kernel)?.with_int8()?) }
                }
                Joint { weight: Weight::Card(_), .. } => return Err(ModelError::PrefillDense),
                dense => dense,
            })
        };
        Ok(Self { joints: self.joints.into_iter().map(rounded).collect::<Result<_, _>>()?, ..self })
    }

    /// Size in bytes of weights, scales, zero points and other tensors.
    pub fn bytes(&self) -> usize {
        self.joints.iter().map(Joint::bytes).sum::<usize>() + self.params.values().map(bytes_of).sum::<usize>()
    }

    /// Size in bytes of the matrix that contains a linear: those it is stacked with are in it too.
    pub fn bytes_with(&self, name: LinearName) -> usize {
        self.joint(name).bytes()
    }

    /// The matrix that contains a linear.
    fn joint(&self, name: LinearName) -> &Joint {
        let place = self.places.get(&name).unwrap_or_else(|| panic!("{} is not in the block's layout", name.0));
        &self.joints[*place]
    }
}

impl Joint {
    fn new(group: Vec<StoredLinear>, place: (Device, Compute)) -> Result<Self, ModelError> {
        let (device, compute) = place;
        let parts: Vec<_> = group.iter().map(|linear| (linear.name, linear.shape[0])).collect();
        let bias = group.iter().any(|linear| linear.bias.is_some()).then(|| {
            let of_one = |linear: &StoredLinear| linear.bias.clone().unwrap_or_else(|| vec![0.0; linear.shape[0]]);
            group.iter().flat_map(of_one).collect::<Vec<f32>>()
        });
        let bias = bias.as_deref();
        let mut codes = Vec::with_capacity(group.len());
        for StoredLinear { shape, weight, .. } in group {
            match weight {
                Matrix::Codes(weight) => codes.push(weight),
                // Such a linear is alone.
                other => return Ok(Self { parts, weight: Weight::dense(&other.into_values(), shape, bias, place) }),
            }
        }
        let codes = QuantizedTensor::stack(&codes);
        if let Some(linear) = CardLinear::new(&codes, bias, place) {
            return Ok(Self { parts, weight: Weight::Card(linear) });
        }
        let weight = match PackedLinear::new(&codes, bias) {
            Ok(linear) => Weight::Packed(linear.with_kernel(kernel_of(compute)?)?),
            // Grids that no kernel multiplies with.
            Err(KernelError::Storage { .. }) => {
                Weight::dense(&codes.dequantize(), codes.shape(), bias, (device, compute))
            }
            Err(other) => return Err(other.into()),
        };
        Ok(Self { parts, weight })
    }

    fn bytes(&self) -> usize {
        match &self.weight {
            Weight::Packed(linear) => linear.bytes(),
            Weight::Card(linear) => linear.bytes(),
            Weight::Dense(weight, bias) => bytes_of(weight) + bias.as_ref().map_or(0, bytes_of),
        }
    }

    /// The outputs of some of its linears, as views of the output of the whole matrix.
    fn outputs(&self, names: &[LinearName], x: &Tensor) -> Vec<Tensor> {
        let y = match &self.weight {
            Weight::Packed(linear) => multiply_packed(linear, x),
            Weight::Card(linear) => linear.multiply(x),
            Weight::Dense(weight, bias) => {
                multiply(&x.to_kind(weight.kind()), weight, bias.as_ref()).to_kind(Kind::Float)
            }
        };
        let mut start = 0;
        let mut outputs = Vec::with_capacity(names.len());
        for (name, width) in &self.parts {
            if names.contains(name) {
                outputs.push(if self.parts.len() == 1 {
                    y.shallow_clone()
                } else {
                    y.narrow(-1, start, *width as i64)
                });
            }
            start += *width as i64;
        }
        outputs
    }
}

impl BlockOps for PackedOps {
    fn linear(&self, name: LinearName, x: &Tensor) -> Tensor {
        self.joint(name).outputs(&[name], x).remove(0)
    }

    fn linears(&self, names: &[LinearName], x: &Tensor) -> Vec<Tensor> {
        let joint = self.joint(names[0]);
        if joint.parts.iter().map(|(part, _)| part).eq(names) {
            return joint.outputs(names, x);
        }
        names.iter().map(|&name| self.linear(name, x)).collect()
    }

    fn act(&self, point: ActPoint, x: Tensor) -> Tensor {
        quantize_act(self.act, point, rotate_online(self.online.as_ref(), point, x))
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, scores: &Scores<'_>) -> Tensor {
        let [q, k, v] = [q, k, v].map(|x| self.compute.cast(x.shallow_clone()));
        attention(&q, &k, &v, scores)
    }

    fn param(&self, name: &str) -> Tensor {
        let param = self.params.get(name);
        param.unwrap_or_else(|| panic!("{name} is not in the block's layout")).shallow_clone()
    }
}

/// `x [.., in]`, f32 or bf16, times packed weights -> `[.., out]` f32.
///
/// # Panics
/// When `x` is not on the CPU, or its width is not that of the weights.
pub(crate) fn multiply_packed(linear: &PackedLinear, x: &Tensor) -> Tensor {
    let x = x.contiguous();
    match x.kind() {
        Kind::BFloat16 => multiply_as::<bf16>(linear, &x),
        _ => multiply_as::<f32>(linear, &x.to_kind(Kind::Float)),
    }
}

#[allow(unsafe_code, reason = "the kernels read the tensors' memory")]
fn multiply_as<T: Element + oq_slices::Number>(linear: &PackedLinear, x: &Tensor) -> Tensor {
    let mut shape = x.size();
    *shape.last_mut().expect("activations have a last dimension") = linear.shape()[0] as i64;
    // SAFETY: while the slice lives, only a tensor allocated here is written to.
    let x = unsafe { oq_slices::of::<T>(x) };
    let rows = x.len() / linear.shape()[1];
    let [y] = oq_slices::filled([&shape], |[y]: [&mut [f32]; 1]| {
        linear.forward(x, rows, y).expect("the output has the product's shape");
    });
    y
}

/// The kernel for a data type of products. For f32 it is the fastest one that does not round activations to bf16.
pub(crate) fn kernel_of(compute: Compute) -> Result<&'static Kernel, ModelError> {
    let chosen = Kernel::chosen()?;
    let avoids_bf16 = |kernel: &Kernel| kernel.is_available() && kernel.many != Operands::Bf16;
    Ok(match compute {
        Compute::F32 if chosen.many == Operands::Bf16 => {
            KERNELS.iter().find(|kernel| avoids_bf16(kernel)).expect("the last one runs everywhere, in f32")
        }
        Compute::F32 | Compute::Bf16 => chosen,
    })
}
