//! Applying sites to a block's tensors.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, Tensor};

use crate::site::{Action, Port, Site};

/// Lower bound of the scales, so that nothing is divided by nearly zero.
pub const MIN_SCALE: f64 = 1e-2;

/// Sites of a block, prepared for a device.
#[derive(Debug)]
pub struct Transform {
    sites: Vec<Site>,
    /// Of each site's ports, which scales and which channels they are.
    places: Vec<Vec<Places>>,
    device: Device,
}

/// A port's indices, on the device.
#[derive(Debug)]
struct Places {
    scales: Tensor,
    channels: Tensor,
}

/// Scales and shifts of each site.
#[derive(Debug)]
pub struct Values {
    /// `[n_scales]` of each site.
    pub scales: Vec<Tensor>,
    /// `[n_scales]` of each site that shifts.
    pub shifts: Vec<Option<Tensor>>,
}

impl Values {
    /// The identity: scales of 1, and shifts of 0 if requested and possible.
    pub fn identity(sites: &[Site], shift: bool, kind: Kind, device: Device) -> Self {
        let n = |site: &Site| [site.n_scales as i64];
        Self {
            scales: sites.iter().map(|site| Tensor::ones(n(site), (kind, device))).collect(),
            shifts: sites
                .iter()
                .map(|site| (shift && site.can_shift).then(|| Tensor::zeros(n(site), (kind, device))))
                .collect(),
        }
    }

    /// Scales, then shifts.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.scales.iter().chain(self.shifts.iter().flatten())
    }

    /// Scales, then shifts.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.scales.iter_mut().chain(self.shifts.iter_mut().flatten())
    }

    /// A copy in new tensors, without a graph.
    pub fn copy(&self) -> Self {
        let copy = |tensor: &Tensor| tensor.detach().copy();
        Self {
            scales: self.scales.iter().map(copy).collect(),
            shifts: self.shifts.iter().map(|shift| shift.as_ref().map(copy)).collect(),
        }
    }

    /// A copy whose tensors require gradients.
    pub fn leaves(&self) -> Self {
        let mut leaves = self.copy();
        leaves.tensors_mut().for_each(|tensor| *tensor = tensor.set_requires_grad(true));
        leaves
    }

    /// Raises scales below [`MIN_SCALE`] to it, in place.
    pub fn keep_off_zero(&mut self) {
        for scale in &mut self.scales {
            let _ = scale.clamp_min_(MIN_SCALE);
        }
    }
}

impl Transform {
    /// Takes sites. At most one of them may act on the inputs of a module.
    pub fn new(sites: Vec<Site>, device: Device) -> Self {
        let index = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(device);
        let of_port = |port: &Port| Places { scales: index(&port.scales), channels: index(&port.channels) };
        let places = sites.iter().map(|site| site.ports.iter().map(of_port).collect()).collect();
        Self { sites, places, device }
    }

    /// The sites.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The tensors that the sites change, transformed, by name. `get` looks up the block's tensors: weights `[out, in]`, norms and biases
    /// `[n]`. Differentiable with respect to `values`.
    ///
    /// # Panics
    /// When a module of a site has no weight, or no bias to absorb a shift.
    pub fn apply<'a>(&self, values: &Values, get: impl Fn(&str) -> Option<&'a Tensor>) -> BTreeMap<String, Tensor> {
        let mut changed = BTreeMap::new();
        let modules: BTreeSet<&str> = self.sites.iter().flat_map(|site| &site.ports).map(|port| port.module).collect();
        for module in modules {
            let [weight_name, bias_name] = ["weight", "bias"].map(|part| format!("{module}.{part}"));
            let weight = get(&weight_name).unwrap_or_else(|| panic!("{weight_name} is at a site and not in the block"));
            let ends = self.ends(module, values, weight);
            if let Some(bias) = get(&bias_name) {
                changed.insert(bias_name, ends.bias(weight, bias));
            } else {
                assert!(ends.shifts_none(), "{bias_name} is not there to take a shift up");
            }
            changed.insert(weight_name, ends.weight(weight));
        }
        changed
    }

    /// What all sites together do to a module.
    fn ends(&self, module: &str, values: &Values, weight: &Tensor) -> Ends {
        let mut ends = Ends::default();
        for (idx, site) in self.sites.iter().enumerate() {
            for (port, places) in site.ports.iter().zip(&self.places[idx]).filter(|(port, _)| port.module == module) {
                let scale = values.scales[idx].index_select(0, &places.scales);
                let shift = values.shifts[idx].as_ref().map(|shift| shift.index_select(0, &places.scales));
                let (width, end) = match port.action {
                    Action::MultiplyInput => (weight.size()[1], &mut ends.input),
                    Action::DivideOutput | Action::MultiplyOutput => (weight.size()[0], &mut ends.output),
                };
                let scale = if port.action == Action::DivideOutput { scale.reciprocal() } else { scale };
                let scale = self.spread(&scale, 1.0, places, width);
                end.scale = Some(end.scale.take().map_or(scale.shallow_clone(), |before| before * &scale));
                if let Some(shift) = shift.filter(|_| port.action != Action::MultiplyOutput) {
                    let shift = self.spread(&shift, 0.0, places, width);
                    end.shift = Some(end.shift.take().map_or(shift.shallow_clone(), |before| before + &shift));
                }
            }
        }
        ends
    }

    /// The values at the port's channels, and `rest` at the others: `[width]`.
    fn spread(&self, numbers: &Tensor, rest: f64, places: &Places, width: i64) -> Tensor {
        let all = Tensor::full([width], rest, (numbers.kind(), self.device));
        all.index_copy(0, &places.channels, numbers)
    }
}

/// Factors and shifts of a module's channels.
#[derive(Default)]
struct Ends {
    input: End,
    output: End,
}

#[derive(Default)]
struct End {
    scale: Option<Tensor>,
    shift: Option<Tensor>,
}

impl Ends {
    fn shifts_none(&self) -> bool {
        self.input.shift.is_none() && self.output.shift.is_none()
    }

    /// `diag(output) W diag(input)`; for a norm, `output * w`.
    fn weight(&self, weight: &Tensor) -> Tensor {
        let scaled = self.input.scale.as_ref().map_or_else(|| weight.shallow_clone(), |input| weight * input);
        match &self.output.scale {
            Some(output) if weight.dim() == 2 => scaled * output.unsqueeze(1),
            Some(output) => scaled * output,
            None => scaled,
        }
    }

    /// `(b + W d - e) * output`.
    fn bias(&self, weight: &Tensor, bias: &Tensor) -> Tensor {
        let added = self.input.shift.as_ref().map_or_else(|| bias.shallow_clone(), |shift| bias + weight.mv(shift));
        let shifted = self.output.shift.as_ref().map_or_else(|| added.shallow_clone(), |shift| &added - shift);
        self.output.scale.as_ref().map_or_else(|| shifted.shallow_clone(), |output| &shifted * output)
    }
}

#[cfg(test)]
mod tests;
