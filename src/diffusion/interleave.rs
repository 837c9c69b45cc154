//! Interleaving: one call of the sampler's network, made of a dense and a pruned network and of the
//! branches with and without the prompt.
//!
//! In a call both networks see the same samples, each in a buffer of its own; what a network returns is never fed to
//! another one. First the difference between the networks is amplified, branch by branch, then guidance combines the
//! branches, and the result goes to the sampler's table.

use std::time::{Duration, Instant};

use super::{
    PipelineError,
    amplify::{DifferenceSource, Mix},
    call::{Amplified, CallPlan, Scope},
    feature_cache::CachedCall,
    guidance::{amplify, guide, rescale, split_batch},
    prediction_cache::CachedRun,
    sampler::Row,
    unet::{Conditioning, Prepared, Unet},
};
use crate::plan::On;

/// The networks of a run.
pub enum Networks {
    /// One for all calls: the dense one, a fused one, or one with amplified weights.
    One(Box<Unet>),
    /// Two to be mixed.
    Pair {
        /// The network as it was exported.
        dense: Box<Unet>,
        /// The one that a plan made of it.
        pruned: Box<Unet>,
    },
}

impl Networks {
    /// Returns the networks, the dense one first.
    pub(super) fn into_unets(self) -> Vec<Unet> {
        match self {
            Self::One(unet) => vec![*unet],
            Self::Pair { dense, pruned } => vec![*dense, *pruned],
        }
    }
}

/// Whether the branches with and without the prompt go through the network as one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Batching {
    /// As one batch, twice as large: what diffusers does, and faster on most machines.
    #[default]
    Together,
    /// One after the other: half the memory for activations.
    InTurn,
}

/// How a call's branches are combined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// Classifier-free guidance.
    pub scale: f32,
    /// `guidance_rescale`; 0 leaves it out.
    pub rescale: f32,
    /// How branches are batched.
    pub batching: Batching,
}

/// The conditioning of the samples: with guidance also the one that they are driven away from.
pub struct Branches {
    /// Without the prompt, or with the negative one; `None` without guidance.
    pub unconditional: Option<Conditioning>,
    /// With the prompt.
    pub conditional: Conditioning,
    /// Both in one batch, the unconditional one first; needed where they go [`Batching::Together`].
    pub together: Option<Conditioning>,
}

/// Time spent in the networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkTime {
    /// In the dense network, or the only one.
    pub dense: Duration,
    /// Runs of it.
    pub dense_runs: usize,
    /// In the pruned network.
    pub pruned: Duration,
    /// Runs of it.
    pub pruned_runs: usize,
    /// The part of the dense network's time that its shallow graph took.
    pub dense_shallow: Duration,
    /// Runs of that, which are runs of the dense network too.
    pub dense_shallow_runs: usize,
    /// The part of the pruned network's time that its shallow graph took.
    pub pruned_shallow: Duration,
    /// Runs of that.
    pub pruned_shallow_runs: usize,
}

impl NetworkTime {
    /// Enters the time of shallow graphs, which `networks` have counted since this was done last.
    pub(super) fn add_shallow(&mut self, networks: &mut Networks) {
        let (dense, pruned) = match networks {
            Networks::One(unet) => (unet, None),
            Networks::Pair { dense, pruned } => (dense, Some(pruned)),
        };
        let (time, runs) = dense.take_shallow_time();
        self.dense_shallow += time;
        self.dense_shallow_runs += runs;
        let (time, runs) = pruned.map(|pruned| pruned.take_shallow_time()).unwrap_or_default();
        self.pruned_shallow += time;
        self.pruned_shallow_runs += runs;
    }
}

/// The network that a sampler sees.
pub struct Interleave<'a> {
    networks: &'a mut Networks,
    mixes: Vec<Mix>,
    /// For each row; none where nothing is cached.
    calls: Vec<CachedCall>,
    on: On,
    guidance: Guidance,
    batch: usize,
    /// Values in a batch of samples.
    length: usize,
    /// Of the dense (or only) network and of the pruned one.
    inputs: [Option<Inputs>; 2],
    guided: bool,
    kept: Option<Vec<f32>>,
    /// Until the pruned network first runs: samples are the plan's own from then on.
    cache: Option<&'a CachedRun<'a>>,
    time: NetworkTime,
}

/// The prepared inputs of one network.
struct Inputs {
    unconditional: Option<Prepared>,
    conditional: Prepared,
    together: Option<Prepared>,
}

/// One of the networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Dense,
    Pruned,
}

impl<'a> Interleave<'a> {
    /// Prepares calls on samples of dimensions `[batch, channels, height, width]`. `mixes` has an entry for each row of
    /// the sampler's table (see [`super::amplify::mixes`]); one network alone doesn't look at it.
    ///
    /// # Errors
    /// [`PipelineError::Graph`] if a network takes something that the branches don't have.
    pub fn new(
        networks: &'a mut Networks,
        mixes: Vec<Mix>,
        on: On,
        guidance: Guidance,
        branches: &Branches,
        sample: [usize; 4],
    ) -> Result<Self, PipelineError> {
        let prepare = |unet: &Unet| -> Result<Inputs, PipelineError> {
            let [batch, channels, height, width] = sample;
            let doubled = [2 * batch, channels, height, width];
            let unconditional =
                branches.unconditional.as_ref().map(|c| unet.prepare(c, sample)).transpose()?;
            let together = branches.together.as_ref().map(|c| unet.prepare(c, doubled)).transpose()?;
            let together = together.filter(|_| guidance.batching == Batching::Together);
            Ok(Inputs { unconditional, conditional: unet.prepare(&branches.conditional, sample)?, together })
        };
        let inputs = match &*networks {
            Networks::One(unet) => [Some(prepare(unet)?), None],
            Networks::Pair { dense, pruned } => [Some(prepare(dense)?), Some(prepare(pruned)?)],
        };
        let guided = branches.unconditional.is_some();
        let (batch, length) = (sample[0], sample.iter().product());
        let time = NetworkTime::default();
        let (kept, cache) = (None, None);
        let calls = Vec::new();
        Ok(Self { networks, mixes, calls, on, guidance, batch, length, inputs, guided, kept, cache, time })
    }

    /// Takes predictions of the dense network from a cache where it has them, and puts them there.
    pub(super) fn with_cache(self, cache: Option<&'a CachedRun<'a>>) -> Self {
        Self { cache, ..self }
    }

    /// Runs the shallow graphs of networks that have one in the calls, one for each row, that say so.
    #[must_use]
    pub fn with_features(self, calls: Vec<CachedCall>) -> Self {
        Self { calls, ..self }
    }

    /// Returns the time spent in the networks so far.
    pub fn time(&mut self) -> NetworkTime {
        self.time.add_shallow(self.networks);
        self.time
    }

    /// Makes the output of call number `call` of the table, `row`, for the scaled samples `input`.
    ///
    /// # Errors
    /// [`PipelineError`] if a network fails.
    pub fn call(
        &mut self,
        call: usize,
        row: &Row,
        input: &[f32],
        output: &mut [f32],
    ) -> Result<(), PipelineError> {
        same_length(input, self.length)?;
        same_length(output, self.length)?;
        let mut mixed = self.mixed(call, row.timestep, input)?;
        if !self.guided {
            output.copy_from_slice(same_length(&mixed, self.length)?);
            return Ok(());
        }
        let (unconditional, conditional) = split_batch(&mut mixed)?;
        guide(unconditional, conditional, self.guidance.scale)?;
        if self.guidance.rescale > 0.0 {
            rescale(unconditional, conditional, self.batch, self.guidance.rescale)?;
        }
        output.copy_from_slice(same_length(unconditional, self.length)?);
        Ok(())
    }

    /// Returns the amplified output of all branches, the unconditional one first.
    fn mixed(&mut self, call: usize, timestep: f64, input: &[f32]) -> Result<Vec<f32>, PipelineError> {
        let mix = match &*self.networks {
            Networks::One(_) => Mix::Dense,
            Networks::Pair { .. } => self.mixes.get(call).copied().unwrap_or(Mix::Dense),
        };
        let plan = CallPlan::new(mix, self.on, self.guided);
        let cached = self.calls.get(call).copied().unwrap_or(CachedCall::Outside);
        let mut mixed = self.run(Which::Dense, plan.dense, (timestep, cached), input)?;
        let pruned = self.run(Which::Pruned, plan.pruned, (timestep, cached), input)?;
        let Some(Amplified { weight, difference, scope }) = plan.amplified else {
            mixed.extend(pruned);
            return Ok(mixed);
        };
        let part = if scope == Scope::All { 0 } else { mixed.len() / 2 };
        let part = mixed.get_mut(part..).unwrap_or_default();
        if difference == DifferenceSource::Kept {
            let kept = same_length(self.kept.as_deref().unwrap_or_default(), part.len())?;
            for (value, difference) in part.iter_mut().zip(kept) {
                *value += weight * difference;
            }
            return Ok(mixed);
        }
        if difference == DifferenceSource::FreshAndKept {
            self.kept = Some(pruned.iter().zip(&*part).map(|(pruned, dense)| pruned - dense).collect());
        }
        let mut out = vec![0.0; part.len()];
        amplify(part, &pruned, weight, &mut out)?;
        part.copy_from_slice(&out);
        Ok(mixed)
    }

    /// Runs a network on some branches; several come out one behind the other.
    fn run(
        &mut self,
        which: Which,
        scope: Scope,
        (timestep, call): (f64, CachedCall),
        input: &[f32],
    ) -> Result<Vec<f32>, PipelineError> {
        if scope == Scope::None {
            return Ok(Vec::new());
        }
        if which == Which::Pruned {
            self.cache = None;
        }
        let cache = self.cache;
        let answered = || cache.map_or(0, |cache| cache.lookups().answered as usize);
        let before = answered();
        let started = Instant::now();
        let (unet, inputs, time, runs) = match (&mut *self.networks, which, &mut self.inputs) {
            (Networks::One(unet) | Networks::Pair { dense: unet, .. }, Which::Dense, [Some(inputs), _]) => {
                (unet, inputs, &mut self.time.dense, &mut self.time.dense_runs)
            }
            (Networks::Pair { pruned, .. }, Which::Pruned, [_, Some(inputs)]) => {
                (pruned, inputs, &mut self.time.pruned, &mut self.time.pruned_runs)
            }
            _ => return Err(PipelineError::Request("there is no pruned network to mix".to_string())),
        };
        let once = |values: &mut [f32]| values.copy_from_slice(input);
        let output = match (scope, &mut inputs.together, &mut inputs.unconditional) {
            (Scope::None, ..) => Vec::new(),
            (Scope::Conditional, ..) | (Scope::All, None, None) => {
                unet.run_call(&mut inputs.conditional, timestep, once, call, cache)?
            }
            (Scope::Unconditional, _, Some(unconditional)) => {
                unet.run_call(unconditional, timestep, once, call, cache)?
            }
            (Scope::Unconditional, _, None) => {
                return Err(PipelineError::Request(
                    "without guidance there is no unconditional branch".to_string(),
                ));
            }
            (Scope::All, Some(together), _) => {
                let twice = |values: &mut [f32]| {
                    values.chunks_exact_mut(input.len()).for_each(|half| half.copy_from_slice(input));
                };
                unet.run_call(together, timestep, twice, call, cache)?
            }
            (Scope::All, None, Some(unconditional)) => {
                let mut output = unet.run_call(unconditional, timestep, once, call, cache)?;
                output.extend(unet.run_call(&mut inputs.conditional, timestep, once, call, cache)?);
                *runs += 1;
                output
            }
        };
        *time += started.elapsed();
        *runs = (*runs + 1).saturating_sub(answered() - before);
        Ok(output)
    }
}

/// Returns `values`, if there are as many as there should be.
fn same_length(values: &[f32], length: usize) -> Result<&[f32], PipelineError> {
    if values.len() == length {
        return Ok(values);
    }
    Err(super::guidance::GuidanceError::Lengths { first: length, second: values.len() }.into())
}
