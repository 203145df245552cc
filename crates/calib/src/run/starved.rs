//! Experts that too few calibration tokens reach.

use std::collections::BTreeSet;

use oq_let::Site;
use oq_models::{BlockWeights, Context, LinearName};
use oq_recipe::{Start, StarvedExpert};

use super::running::Run;
use crate::block::inputs::{Given, InputOps, Inputs};
use crate::block::routing::RoutingOps;
use crate::block::settled::{Settled, together};
use crate::block::whole::over_ranks;
use crate::disk::states::Store;
use crate::error::CalibError;
use crate::nth::Nth;

/// The experts of a block that too few calibration tokens reach.
#[derive(Default)]
pub(super) struct Starved {
    /// All of them, for the record.
    pub(super) experts: Vec<StarvedExpert>,
    /// Those that a site transforms: they are given all tokens, and stay as they start in the block that learns.
    pub(super) with_sites: BTreeSet<usize>,
    /// The others.
    pub(super) settled: Settled,
}

impl Starved {
    /// The linears that stay as they start in the block that learns.
    pub(super) fn fixed(&self, experts: &[Vec<LinearName>]) -> Vec<LinearName> {
        self.with_sites.iter().flat_map(|&expert| experts[expert].iter().copied()).collect()
    }
}

impl Run<'_> {
    /// What the linears of blocks start from, if they learn.
    pub(super) fn start(&self) -> Option<Start> {
        self.recipe.method.learns().then_some(self.recipe.learn.start)
    }

    /// Finds the starved experts of a block, and quantizes those that no site transforms: as they start from the statistics of all tokens.
    pub(super) fn starved(
        &mut self,
        block_idx: usize,
        (weights, cast): (&BlockWeights, &BlockWeights),
        (linears, sites): (&[LinearName], &[Site]),
        ctx: &Context,
        inputs: &Store<'_>,
    ) -> Result<Starved, CalibError> {
        let experts = self.starved_experts(block_idx, cast, ctx, inputs)?;
        let all = &self.model.decoder().layer(block_idx).experts;
        let has_site = |linear: &LinearName| {
            sites.iter().any(|site| site.readers().chain(site.writers()).any(|port| port.module == linear.0))
        };
        let (with_sites, others): (Vec<usize>, Vec<usize>) =
            experts.iter().map(|starved| starved.expert).partition(|&expert| all[expert].iter().any(has_site));
        let mut settled = Settled::default();
        for group in together(&others, &self.model.decoder().layer(block_idx)) {
            let of_group: Vec<LinearName> = group.iter().flat_map(|&expert| &all[expert]).copied().collect();
            let of_group: Vec<LinearName> = of_group.into_iter().filter(|name| linears.contains(name)).collect();
            let seen = self.inputs_of(block_idx, cast, (&of_group, group), ctx, inputs)?;
            let widths = self.stages.output.widths();
            let specs = |name| widths.of(block_idx, name).expect("linears in full precision were left out");
            settled
                .add(weights, &of_group, &specs, &seen, (self.options.device, &self.options.ranks))
                .map_err(|error| self.learn_error(block_idx, error.into()))?;
        }
        Ok(Starved { experts, with_sites: with_sites.into_iter().collect(), settled })
    }

    /// Statistics of the inputs of experts, over all tokens.
    fn inputs_of(
        &mut self,
        block_idx: usize,
        cast: &BlockWeights,
        (linears, experts): (&[LinearName], Vec<usize>),
        ctx: &Context,
        inputs: &Store<'_>,
    ) -> Result<Inputs, CalibError> {
        let ops =
            InputOps::new(self.full(cast), &[], linears, self.start(), Given::Only(experts.into_iter().collect()));
        if self.start() == Some(Start::Whole) {
            return Ok(ops.finish());
        }
        for x in inputs.iter() {
            self.progress(block_idx)?;
            let _ = self.model.decoder().block(block_idx, &ops, ctx, &x);
        }
        Ok(over_ranks(&self.options.ranks, ops.finish(), cast, &self.model.decoder().layer(block_idx))?)
    }

    /// The experts of a block that too few calibration tokens reach.
    fn starved_experts(
        &mut self,
        block_idx: usize,
        cast: &BlockWeights,
        ctx: &Context,
        inputs: &Store<'_>,
    ) -> Result<Vec<StarvedExpert>, CalibError> {
        let (decoder, enough) = (self.model.decoder(), self.recipe.learn.expert_tokens);
        let experts = decoder.layer(block_idx).experts.len();
        if experts == 0 || enough == 0 || !self.recipe.method.learns() {
            return Ok(Vec::new());
        }
        let ops = RoutingOps::new(self.full(cast), experts);
        for x in inputs.iter() {
            self.progress(block_idx)?;
            let _ = decoder.block(block_idx, &ops, ctx, &x);
        }
        let starved = ops.starved(enough, &self.options.ranks)?;
        if !starved.is_empty() {
            let named = starved.iter().map(|starved| format!("{} ({})", starved.expert, starved.tokens));
            let (block, experts) = (Nth::new(block_idx, self.n_blocks), named.collect::<Vec<_>>().join(", "));
            tracing::warn!(
                %block,
                "fewer than {enough} calibration tokens reach experts {experts}: they start from all tokens, and stay there"
            );
        }
        Ok(starved)
    }
}
