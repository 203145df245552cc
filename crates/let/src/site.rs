//! Sites as data.

use oq_quant_core::SiteKind;

/// A place where channels can be rescaled without changing what a block computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// What is rescaled there.
    pub kind: SiteKind,
    /// Number of free scales. Tied channels share one.
    pub n_scales: usize,
    /// The modules that scales act on.
    pub ports: Vec<Port>,
    /// Whether channels can be shifted too: every module of the site then has a bias that absorbs the shift.
    pub can_shift: bool,
}

/// The channels of one module that a site acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// A linear or a norm, by its name below the block. Its tensors are `<module>.weight` and, if any, `<module>.bias`.
    pub module: &'static str,
    /// What the scales do to it.
    pub action: Action,
    /// Which of its channels they act on, each once.
    pub channels: Vec<i64>,
    /// For each of `channels`, the index of its scale.
    pub scales: Vec<i64>,
}

/// What scales do to a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Outputs are shifted by `-d`, then divided by the scale.
    DivideOutput,
    /// Outputs are multiplied by the scale. A shift could not be undone here.
    MultiplyOutput,
    /// Inputs are multiplied by the scale, and the shift is added back.
    MultiplyInput,
}

impl Port {
    /// Channel `i` of `n` has scale `scale_of(i)`.
    pub fn tied(module: &'static str, action: Action, n: usize, scale_of: impl Fn(usize) -> usize) -> Self {
        Self::some(module, action, (0..n).map(|channel| (channel, scale_of(channel))))
    }

    /// Each of `n` channels has its own scale.
    pub fn free(module: &'static str, action: Action, n: usize) -> Self {
        Self::tied(module, action, n, |channel| channel)
    }

    /// Pairs of a channel and its scale; channels that are not named do not change.
    pub fn some(module: &'static str, action: Action, pairs: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let (channels, scales) = pairs.into_iter().map(|(channel, scale)| (channel as i64, scale as i64)).unzip();
        Self { module, action, channels, scales }
    }

    /// Each channel with its scale.
    pub fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.channels.iter().zip(&self.scales).map(|(&channel, &scale)| (channel as usize, scale as usize))
    }
}

impl Site {
    /// A site of `n` channels, each with its own scale, between the module that writes them and those that read them.
    pub fn free(
        kind: SiteKind,
        n: usize,
        writer: &'static str,
        readers: impl IntoIterator<Item = &'static str>,
        can_shift: bool,
    ) -> Self {
        let mut ports = vec![Port::free(writer, Action::DivideOutput, n)];
        ports.extend(readers.into_iter().map(|reader| Port::free(reader, Action::MultiplyInput, n)));
        Self { kind, n_scales: n, ports, can_shift }
    }

    /// The modules that read the site's channels, each as a [`Port`]; all read the same input.
    pub fn readers(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().filter(|port| port.action == Action::MultiplyInput)
    }

    /// Whether its scales act on what `module` is given.
    pub fn rescales_input_of(&self, module: &str) -> bool {
        self.readers().any(|port| port.module == module)
    }

    /// The modules that write the site's channels.
    pub fn writers(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().filter(|port| port.action != Action::MultiplyInput)
    }
}
