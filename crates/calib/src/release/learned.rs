//! The parameters in a file of the release, checked against a model.

use std::collections::BTreeSet;
use std::path::Path;

use oq_formats::Checkpoint;
use oq_let::{MIN_SCALE, Port, Site, Values};
use oq_models::{Decoder, LinearName, ModelError};
use oq_quant_core::{Clip, QuantSpec, QuantizedTensor, SiteKind};
use tch::Tensor;

use super::error::ReleaseError;
use crate::widths::Widths;

/// What the release calls a place that it transforms, the kind of our site there, and which of a layer's sites of that kind it is.
pub(super) const PLACES: [(&str, SiteKind, usize); 4] =
    [("qkv", SiteKind::Norm, 0), ("fc1", SiteKind::Norm, 1), ("out", SiteKind::Vo, 0), ("qkt", SiteKind::Qk, 0)];
/// The clipping strengths of a group: of its maximum and of its minimum.
const BOUNDS: [&str; 2] = ["upbound_factor", "lowbound_factor"];

/// The parameters of a model.
pub(super) struct Learned {
    file: Checkpoint,
    /// Whether clipping was learned, and not the transformation alone.
    is_clipped: bool,
    is_transformed: bool,
}

impl Learned {
    /// Opens the parameters, and compares them with all groups and channels of the model.
    pub(super) fn open(
        path: &Path,
        decoder: &dyn Decoder,
        scheme: QuantSpec,
        widths: &Widths,
    ) -> Result<Self, ReleaseError> {
        let file = Checkpoint::open_file(path)?;
        let has = |part: &str| file.names().any(|name| name.contains(part));
        let (is_clipped, is_transformed) = (has("bound_factor"), has("_smooth_"));
        let this = Self { file, is_clipped, is_transformed };
        let blocks: BTreeSet<&str> = this.file.names().filter_map(|name| Some(name.split_once('.')?.0)).collect();
        let n_layers = decoder.dims().n_layers;
        if blocks.len() != n_layers {
            return Err(ReleaseError::Blocks { got: blocks.len(), expected: n_layers });
        }
        let mut known = BTreeSet::new();
        for block in 0..n_layers {
            for linear in decoder.layer(block).linears {
                let spec = widths.of(block, linear.name).expect("a scheme quantizes all linears");
                let expected = linear.out_features * spec.group.count(linear.in_features);
                for tensor in this.bounds(block, linear.name).into_iter().flatten() {
                    let got = this.len(&tensor)?;
                    if got != expected {
                        return Err(ReleaseError::Groups { tensor, got, expected, scheme });
                    }
                    known.insert(tensor);
                }
            }
            for (place, site) in this.sites(decoder, block)? {
                for tensor in names(block, place, site.kind) {
                    let got = this.len(&tensor)?;
                    if got != site.n_scales {
                        return Err(ReleaseError::Channels { tensor, got, expected: site.n_scales });
                    }
                    known.insert(tensor);
                }
            }
            this.transformation(decoder, block)?;
        }
        if let Some(tensor) = this.file.names().find(|name| !known.contains(*name)) {
            return Err(ReleaseError::Unknown { tensor: tensor.to_owned() });
        }
        Ok(this)
    }

    /// The transformation of a block: its sites, and their scales and shifts. Channels are not tied.
    pub(super) fn transformation(
        &self,
        decoder: &dyn Decoder,
        block: usize,
    ) -> Result<(Vec<Site>, Values), ReleaseError> {
        let mut sites = Vec::new();
        let mut values = Values { scales: Vec::new(), shifts: Vec::new() };
        for (place, site) in self.sites(decoder, block)? {
            let mut names = names(block, place, site.kind);
            values.scales.push(self.scales(names.next().expect("every place has scales"))?);
            values.shifts.push(names.next().map(|shift| self.shifts(shift, &site)).transpose()?.flatten());
            sites.push(site);
        }
        Ok((sites, values))
    }

    /// Quantizes a weight, `[out, in]`, on the clipped ranges of its groups.
    pub(super) fn quantize(
        &self,
        block: usize,
        linear: LinearName,
        weight: &Tensor,
        widths: &Widths,
    ) -> Result<QuantizedTensor, ReleaseError> {
        let spec = widths.of(block, linear).expect("a scheme quantizes all linears");
        let (rows, cols) = weight.size2().expect("weights of linears are matrices");
        let (rows, cols) = (rows as usize, cols as usize);
        let values = Vec::<f32>::try_from(weight.contiguous().view(-1)).expect("a block is loaded in f32");
        let made = match self.bounds(block, linear) {
            None => QuantizedTensor::quantize(&values, rows, cols, spec),
            Some(bounds) => {
                let [hi, lo] = bounds.map(|tensor| self.fractions(&tensor));
                let (hi, lo) = (hi?, lo?);
                QuantizedTensor::quantize_clipped(&values, rows, cols, spec, Clip { hi: &hi, lo: &lo }, None)
            }
        };
        let linear = format!("{block}.{}", linear.0);
        made.map_err(|source| ModelError::Quantize { linear, source }.into())
    }

    /// The places of a block that are transformed, each with the site there.
    fn sites(&self, decoder: &dyn Decoder, block: usize) -> Result<Vec<(&'static str, Site)>, ReleaseError> {
        if !self.is_transformed {
            return Ok(Vec::new());
        }
        let no_place = |reason| ReleaseError::NoPlace { reason };
        let find = |(place, kind, index)| {
            let sites = decoder.sites(block, kind).map_err(no_place)?;
            let site = sites.into_iter().nth(index).ok_or_else(|| no_place("no norm stands before the MLP alone"))?;
            let site = untied(&site).ok_or_else(|| no_place("query heads share key/value heads"))?;
            Ok((place, site))
        };
        PLACES.into_iter().map(find).collect()
    }

    /// Names of the clipping strengths of a linear, if clipping was learned.
    fn bounds(&self, block: usize, linear: LinearName) -> Option<[String; 2]> {
        let name = |bound| format!("{block}.{}.weight_quantizer.{bound}", linear.0);
        self.is_clipped.then(|| BOUNDS.map(name))
    }

    fn len(&self, tensor: &str) -> Result<usize, ReleaseError> {
        if !self.file.contains(tensor) {
            return Err(ReleaseError::Missing { tensor: tensor.to_owned() });
        }
        Ok(self.file.tensor(tensor)?.len())
    }

    /// The sigmoids of clipping strengths.
    fn fractions(&self, tensor: &str) -> Result<Vec<f32>, ReleaseError> {
        Ok(self.file.values(tensor)?.into_iter().map(|strength| 1.0 / (1.0 + (-strength).exp())).collect())
    }

    /// The release keeps scales of either sign away from zero.
    fn scales(&self, tensor: String) -> Result<Tensor, ReleaseError> {
        let mut scales = self.file.values(&tensor)?;
        if let Some(channel) = scales.iter().position(|scale| *scale == 0.0) {
            return Err(ReleaseError::Zero { tensor, channel });
        }
        for scale in &mut scales {
            *scale = scale.abs().max(MIN_SCALE as f32).copysign(*scale);
        }
        Ok(Tensor::from_slice(&scales))
    }

    /// The shifts of a site; none if all are 0, as the release writes them for models that it does not shift.
    fn shifts(&self, tensor: String, site: &Site) -> Result<Option<Tensor>, ReleaseError> {
        let shifts = self.file.values(&tensor)?;
        if shifts.iter().all(|shift| *shift == 0.0) {
            return Ok(None);
        }
        if !site.can_shift {
            return Err(ReleaseError::Shift { tensor });
        }
        Ok(Some(Tensor::from_slice(&shifts)))
    }
}

/// Names of a place's scales and, except between queries and keys, shifts.
fn names(block: usize, place: &'static str, kind: SiteKind) -> impl Iterator<Item = String> {
    let parts = if kind == SiteKind::Qk { &["scale"][..] } else { &["scale", "shift"] };
    parts.iter().map(move |part| format!("{block}.{place}_smooth_{part}"))
}

/// The site with a scale for each channel; none if its modules have different numbers of channels.
fn untied(site: &Site) -> Option<Site> {
    let n_scales = site.ports.first()?.channels.len();
    let free = |port: &Port| {
        let channels = port.channels.iter().enumerate().map(|(scale, &channel)| (channel as usize, scale));
        (port.channels.len() == n_scales).then(|| Port::some(port.module, port.action, channels))
    };
    let ports = site.ports.iter().map(free).collect::<Option<Vec<_>>>()?;
    Some(Site { kind: site.kind, n_scales, ports, can_shift: site.can_shift })
}
