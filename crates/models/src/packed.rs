//! Packed weights, multiplied as they are.

use std::collections::BTreeMap;

use half::bf16;
use oq_kernels::{Element, KERNELS, Kernel, Operands, PackedLinear};
use oq_quant_core::{ActSpec, QuantizedTensor};
use tch::{Kind, Tensor};

use crate::act::{ActPoint, quantize_act};
use crate::attention::{Scores, attention};
use crate::block::{BlockOps, Compute};
use crate::error::ModelError;
use crate::online::{Online, turn};
use crate::structure::LinearName;

/// A block of packed linears in the layout that kernels compute on, with its other tensors in f32; on the CPU.
///
/// Products and sums are f32 outside, whatever they are computed in: kernels round activations by themselves
/// ([`oq_kernels::Operands`]), and attention takes bf16 where that is asked for.
#[derive(Debug)]
pub struct PackedOps {
    joints: Vec<Joint>,
    params: BTreeMap<String, Tensor>,
    act: ActSpec,
    online: Option<Online>,
    compute: Compute,
}

/// Linears that read one input, one below the other.
#[derive(Debug)]
struct Joint {
    /// With their output channels.
    parts: Vec<(LinearName, usize)>,
    linear: PackedLinear,
}

/// A packed linear as it is stored.
pub(crate) struct Codes {
    pub(crate) name: LinearName,
    pub(crate) weight: QuantizedTensor,
    /// `[out]`.
    pub(crate) bias: Option<Vec<f32>>,
}

impl PackedOps {
    /// `groups`: linears that are asked for together.
    pub(crate) fn new(
        groups: impl IntoIterator<Item = Result<Vec<Codes>, ModelError>>,
        params: BTreeMap<String, Tensor>,
        act: ActSpec,
        compute: Compute,
    ) -> Result<Self, ModelError> {
        let kernel = kernel_of(compute)?;
        let mut joints = Vec::new();
        for group in groups {
            let group = group?;
            let alike = group.iter().all(|codes| codes.weight.spec() == group[0].weight.spec());
            // One matrix has one setting.
            let parts = if alike { vec![group] } else { group.into_iter().map(|codes| vec![codes]).collect() };
            for part in parts {
                joints.push(Joint::new(part, kernel)?);
            }
        }
        Ok(Self { joints, params, act, online: None, compute })
    }

    /// The same block, for activations that are rotated while it runs.
    pub(crate) fn with_online(self, online: Option<Online>) -> Self {
        Self { online, ..self }
    }

    /// Bytes of weights, scales, zero points and other tensors.
    pub fn bytes(&self) -> usize {
        let linears = self.joints.iter().map(|joint| joint.linear.bytes());
        linears.sum::<usize>() + self.params.values().map(bytes_of).sum::<usize>()
    }

    /// The place of a linear.
    fn joint(&self, name: LinearName) -> &Joint {
        let holds = |joint: &&Joint| joint.parts.iter().any(|(part, _)| *part == name);
        self.joints.iter().find(holds).unwrap_or_else(|| panic!("{} is not in the block's layout", name.0))
    }
}

impl Joint {
    fn new(group: Vec<Codes>, kernel: &'static Kernel) -> Result<Self, ModelError> {
        let parts: Vec<_> = group.iter().map(|codes| (codes.name, codes.weight.shape()[0])).collect();
        let bias = group.iter().any(|codes| codes.bias.is_some()).then(|| {
            let of_one = |codes: &Codes| codes.bias.clone().unwrap_or_else(|| vec![0.0; codes.weight.shape()[0]]);
            group.iter().flat_map(of_one).collect::<Vec<f32>>()
        });
        let weights: Vec<QuantizedTensor> = group.into_iter().map(|codes| codes.weight).collect();
        let linear = PackedLinear::new(&QuantizedTensor::stack(&weights), bias.as_deref())?.with_kernel(kernel)?;
        Ok(Self { parts, linear })
    }

    /// The outputs of some of its linears: views of what all of them give.
    fn outputs(&self, names: &[LinearName], x: &Tensor) -> Vec<Tensor> {
        let y = multiply_packed(&self.linear, x);
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
        quantize_act(self.act, turn(self.online.as_ref(), point, x))
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

/// `x [.., in]`, f32 or bf16, times packed weights: `[.., out]` f32.
///
/// # Panics
/// When `x` is not on the CPU, or of another width.
pub(crate) fn multiply_packed(linear: &PackedLinear, x: &Tensor) -> Tensor {
    let x = x.contiguous();
    match x.kind() {
        Kind::BFloat16 => multiply_as::<bf16>(linear, &x),
        _ => multiply_as::<f32>(linear, &x.to_kind(Kind::Float)),
    }
}

#[allow(unsafe_code, reason = "the product is a loop of our own, which reads activations where they lie")]
fn multiply_as<T: Element + oq_slices::Number>(linear: &PackedLinear, x: &Tensor) -> Tensor {
    let mut shape = x.size();
    *shape.last_mut().expect("activations have a last dimension") = linear.shape()[0] as i64;
    // SAFETY: nothing is written meanwhile but a tensor that is made here.
    let x = unsafe { oq_slices::of::<T>(x) };
    let rows = x.len() / linear.shape()[1];
    let [y] = oq_slices::filled([&shape], |[y]: [&mut [f32]; 1]| {
        linear.forward(x, rows, y).expect("the output was made in the product's shape");
    });
    y
}

/// The kernel of a computation: in f32, the fastest that rounds no activations to bf16.
pub(crate) fn kernel_of(compute: Compute) -> Result<&'static Kernel, ModelError> {
    let chosen = Kernel::chosen()?;
    let keeps_digits = |kernel: &Kernel| kernel.is_available() && kernel.many != Operands::Bf16;
    Ok(match compute {
        Compute::F32 if chosen.many == Operands::Bf16 => {
            KERNELS.iter().find(|kernel| keeps_digits(kernel)).expect("the last one runs everywhere, in f32")
        }
        Compute::F32 | Compute::Bf16 => chosen,
    })
}

/// Bytes of a tensor's elements.
pub(crate) fn bytes_of(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}
