//! Sampling without leaving the device: what [`super::sampler::run`] and [`super::interleave`] do on the host, with
//! every tensor of latent size in the memory that the networks run in.
//!
//! The arithmetic between two runs of a network is a few generated graphs ([`StepGraph`]) that the same engine runs on
//! the same device. The first latents, the text states and an ancestral sampler's noise are copied to the device, and
//! coefficients and timesteps, a few numbers a call; the final latents are copied back. Each network has an input and
//! an output of its own, so that neither sees what the other one wrote, and every sum is written beside what it is made
//! of.

mod graphs;
mod sessions;

use std::collections::VecDeque;

pub use graphs::{
    Branch, Clip, Combine, Input, KeptDifference, Prediction, Rescale, Source, Step, StepGraph, operand_name,
};
pub use sessions::{StepGraphs, StepSessions};

use super::{
    PipelineError,
    amplify::{DifferenceSource, Mix},
    call::{CallPlan, CallTensors, Scope},
    feature_cache::CachedCall,
    interleave::{Batching, Branches, Guidance, NetworkTime, Networks},
    sampler::{Operand, Row, Table},
    unet::{Placed, Unet},
};
use crate::{
    engine::{DeviceTensor, Feed, HostTensor},
    onnx::DataType,
    plan::On,
};

/// Networks, conditioning and buffers on a device.
pub struct DeviceLoop<'a, 'g> {
    networks: &'a mut Networks,
    graphs: StepGraphs<'g>,
    mixes: Vec<Mix>,
    /// For each row; none where nothing is cached.
    calls: Vec<CachedCall>,
    on: On,
    guidance: Guidance,
    sample: [usize; 4],
    guided: bool,
    /// Of the dense (or only) network and of the pruned one.
    places: [Option<Places>; 2],
    /// The last difference that was kept, without and with the prompt.
    kept: [Option<DeviceTensor>; 2],
    time: NetworkTime,
}

/// Where a network runs on which branches.
struct Places {
    unconditional: Option<Placed>,
    conditional: Placed,
    together: Option<Placed>,
}

impl<'a, 'g> DeviceLoop<'a, 'g> {
    /// Moves the conditioning to the device. The arguments are those of [`super::interleave::Interleave::new`].
    ///
    /// # Errors
    /// [`PipelineError`] if a network takes something that the branches don't have, or the engine has no device memory.
    pub fn new(
        networks: &'a mut Networks,
        mut graphs: StepGraphs<'g>,
        mixes: Vec<Mix>,
        on: On,
        guidance: Guidance,
        branches: &Branches,
        sample: [usize; 4],
    ) -> Result<Self, PipelineError> {
        let mut place = |unet: &mut Unet| -> Result<Places, PipelineError> {
            let [batch, channels, height, width] = sample;
            let doubled = [2 * batch, channels, height, width];
            let together = branches.together.as_ref().filter(|_| guidance.batching == Batching::Together);
            let mut one = |conditioning, dims, copies| {
                let prepared = unet.prepare(conditioning, dims)?;
                unet.place(prepared, copies, &mut graphs)
            };
            Ok(Places {
                unconditional: branches.unconditional.as_ref().map(|c| one(c, sample, 1)).transpose()?,
                conditional: one(&branches.conditional, sample, 1)?,
                together: together.map(|c| one(c, doubled, 2)).transpose()?,
            })
        };
        let places = match &mut *networks {
            Networks::One(unet) => [Some(place(unet)?), None],
            Networks::Pair { dense, pruned } => [Some(place(dense)?), Some(place(pruned)?)],
        };
        let guided = branches.unconditional.is_some();
        let (kept, time) = ([None, None], NetworkTime::default());
        let calls = Vec::new();
        Ok(Self { networks, graphs, mixes, calls, on, guidance, sample, guided, places, kept, time })
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

    /// Samples: turns `latents` (standard normal times [`Table::init_noise_sigma`]) into the clean ones, in place.
    /// `noise` fills its buffer with standard normal numbers; `after` is called after each call of the networks, with
    /// its number and what gives the input and output of that call.
    ///
    /// # Errors
    /// The first error of `after`; [`PipelineError`] if an engine fails. The latents are as they were then.
    pub fn run(
        &mut self,
        table: &Table,
        latents: &mut [f32],
        mut noise: impl FnMut(&mut [f32]),
        mut after: impl FnMut(usize, &Row, CallTensors<'_>) -> Result<(), PipelineError>,
    ) -> Result<(), PipelineError> {
        let first = HostTensor::new(self.sample, latents.to_vec())?;
        let mut sample = self.latents()?;
        self.graphs.upload(&first, &mut sample)?;
        let mut buffers = Buffers {
            next: self.latents()?,
            output: self.latents()?,
            kept: [self.latents()?, self.latents()?],
            predictions: (0..=table.depth()).map(|_| self.latents()).collect::<Result<_, _>>()?,
            noise: HostTensor::new(self.sample, vec![0f32; latents.len()])?,
        };
        for (call, row) in table.rows().iter().enumerate() {
            self.call(call, row, &sample, &mut buffers.output)?;
            after(call, row, &mut || {
                let mut input = self.graphs.download(&sample)?.to_f32();
                input.iter_mut().for_each(|value| *value *= row.input_scale as f32);
                Ok([input, self.graphs.download(&buffers.output)?.to_f32()])
            })?;
            if row.draws_noise()
                && let Some(values) = buffers.noise.as_f32_mut()
            {
                noise(values);
            }
            self.step(row, table.depth(), &sample, &mut buffers)?;
            std::mem::swap(&mut sample, &mut buffers.next);
        }
        let last = self.graphs.download(&sample)?;
        if let Some(values) = last.as_f32().filter(|values| values.len() == latents.len()) {
            latents.copy_from_slice(values);
        }
        Ok(())
    }

    /// Returns a buffer for latents.
    fn latents(&mut self) -> Result<DeviceTensor, PipelineError> {
        let (Networks::One(unet) | Networks::Pair { dense: unet, .. }) = &mut *self.networks;
        Ok(unet.device()?.allocate(DataType::FLOAT, &self.sample)?)
    }

    /// Makes what the sampler sees in a call.
    fn call(
        &mut self,
        call: usize,
        row: &Row,
        latents: &DeviceTensor,
        output: &mut DeviceTensor,
    ) -> Result<(), PipelineError> {
        let mix = match &*self.networks {
            Networks::One(_) => Mix::Dense,
            Networks::Pair { .. } => self.mixes.get(call).copied().unwrap_or(Mix::Dense),
        };
        let plan = CallPlan::new(mix, self.on, self.guided);
        let cached = self.calls.get(call).copied().unwrap_or(CachedCall::Outside);
        self.run_network(0, plan.dense, (row, cached), latents)?;
        self.run_network(1, plan.pruned, (row, cached), latents)?;
        self.combine(plan, output)
    }

    /// Runs the dense network (0) or the pruned one (1) on some branches.
    fn run_network(
        &mut self,
        which: usize,
        scope: Scope,
        (row, call): (&Row, CachedCall),
        latents: &DeviceTensor,
    ) -> Result<(), PipelineError> {
        let missing = || PipelineError::Request("there is no pruned network to mix".to_string());
        if scope == Scope::None {
            return Ok(());
        }
        let unet = match (&mut *self.networks, which) {
            (Networks::One(unet) | Networks::Pair { dense: unet, .. }, 0) => unet,
            (Networks::Pair { pruned, .. }, _) => pruned,
            (Networks::One(_), _) => return Err(missing()),
        };
        let places = self.places.get_mut(which).and_then(Option::as_mut).ok_or_else(missing)?;
        let runs: [Option<&mut Placed>; 2] = match (scope, &mut places.together) {
            (Scope::All, Some(together)) => [Some(together), None],
            (scope, _) => [
                places.unconditional.as_mut().filter(|_| scope.has(0)),
                Some(&mut places.conditional).filter(|_| scope.has(1)),
            ],
        };
        for placed in runs.into_iter().flatten() {
            let scale = row.input_scale as f32;
            let time = unet.run_placed(placed, &mut self.graphs, latents, (scale, row.timestep), call)?;
            let (total, count) = match which {
                0 => (&mut self.time.dense, &mut self.time.dense_runs),
                _ => (&mut self.time.pruned, &mut self.time.pruned_runs),
            };
            *total += time;
            *count += 1;
        }
        Ok(())
    }

    /// Mixes what the networks returned, then guides.
    fn combine(&mut self, plan: CallPlan, output: &mut DeviceTensor) -> Result<(), PipelineError> {
        let [dense_places, pruned_places] = [0, 1].map(|i| self.places.get(i).and_then(Option::as_ref));
        let source = |scope: Scope, places: Option<&Places>, branch: usize| match places {
            Some(places) if scope == Scope::All && places.together.is_some() => Source::Half,
            Some(_) if scope.has(branch) => Source::Own,
            _ => Source::Absent,
        };
        let branch = |at: usize| Branch {
            dense: source(plan.dense, dense_places, at),
            pruned: source(plan.pruned, pruned_places, at),
            difference: match plan.amplified {
                Some(amplified) if amplified.scope.has(at) => match amplified.difference {
                    DifferenceSource::FreshAndKept => KeptDifference::Written,
                    DifferenceSource::Kept => KeptDifference::Read,
                    DifferenceSource::Fresh => KeptDifference::Unused,
                },
                _ => KeptDifference::Unused,
            },
        };
        let (dense_type, pruned_type) = match &*self.networks {
            Networks::One(unet) => (unet.output_type(), unet.output_type()),
            Networks::Pair { dense, pruned } => (dense.output_type(), pruned.output_type()),
        };
        let combine = Combine {
            dense: dense_type,
            pruned: pruned_type,
            unconditional: self.guided.then(|| branch(0)),
            conditional: branch(1),
            rescale: if self.guidance.rescale > 0.0 { Rescale::On } else { Rescale::Off },
        };
        let share = self.guidance.rescale;
        let weight = plan.amplified.map_or(0.0, |amplified| amplified.weight);
        let coefficients = HostTensor::new([4], vec![weight, self.guidance.scale, share, 1.0 - share])?;
        let branches = [(0, combine.unconditional), (1, Some(combine.conditional))];

        // A tensor that is being written is taken out, so that nothing can read from it.
        let mut written: Vec<(usize, DeviceTensor)> = Vec::new();
        for (at, branch) in branches {
            if branch.is_some_and(|branch| branch.difference == KeptDifference::Written) {
                let known = self.kept.get_mut(at).and_then(Option::take);
                written.push((at, known.map_or_else(|| self.latents(), Ok)?));
            }
        }
        let [dense_places, pruned_places] = [0, 1].map(|i| self.places.get(i).and_then(Option::as_ref));
        let mut inputs: Vec<(String, &DeviceTensor)> = Vec::new();
        for (at, branch) in branches.iter().filter_map(|(at, branch)| Some((*at, (*branch)?))) {
            let name = BRANCHES.get(at).copied().unwrap_or_default();
            let networks = [("dense", branch.dense, dense_places), ("pruned", branch.pruned, pruned_places)];
            for (network, source, places) in networks {
                let place = places.and_then(|places| match source {
                    Source::Absent => None,
                    Source::Half => places.together.as_ref().map(|place| (network.to_string(), place)),
                    Source::Own => {
                        let own = [places.unconditional.as_ref(), Some(&places.conditional)];
                        own.get(at).copied().flatten().map(|place| (format!("{network}_{name}"), place))
                    }
                });
                if let Some((name, place)) = place
                    && inputs.iter().all(|(known, _)| *known != name)
                {
                    inputs.push((name, place.output()));
                }
            }
            if let (KeptDifference::Read, Some(Some(kept))) = (branch.difference, self.kept.get(at)) {
                inputs.push((format!("kept_{name}"), kept));
            }
        }
        let mut feeds: Vec<(&str, Feed<'_>)> =
            inputs.iter().map(|(name, tensor)| (name.as_str(), Feed::Device(tensor))).collect();
        feeds.push(("coefficients", Feed::Host(&coefficients)));
        let names: Vec<String> = written
            .iter()
            .map(|(at, _)| format!("keep_{}", BRANCHES.get(*at).copied().unwrap_or_default()))
            .collect();
        let mut outputs = vec![("output", output)];
        outputs.extend(names.iter().map(String::as_str).zip(written.iter_mut().map(|(_, tensor)| tensor)));
        self.graphs.run(&StepGraph::Combine(combine), &feeds, &mut outputs)?;
        for (at, tensor) in written {
            if let Some(kept) = self.kept.get_mut(at) {
                *kept = Some(tensor);
            }
        }
        Ok(())
    }

    /// Makes the next sample in `buffers.next`.
    fn step(
        &mut self,
        row: &Row,
        depth: usize,
        sample: &DeviceTensor,
        buffers: &mut Buffers,
    ) -> Result<(), PipelineError> {
        let prediction = if depth > 0 { Prediction::Remembered } else { Prediction::Forgotten };
        let step = Step::of(row, prediction);
        let coefficients = Step::coefficients(row);
        let coefficients = HostTensor::new([coefficients.len()], coefficients)?;
        buffers.predictions.rotate_right(1);
        let Buffers { next, output, kept: [kept, keep], predictions, noise } = buffers;
        // The oldest prediction is forgotten: this one takes its place.
        let mut older = predictions.iter_mut();
        let newest = older.next();
        let older: Vec<&DeviceTensor> = older.map(|tensor| &*tensor).collect();
        let mut names = Vec::new();
        for operand in step.inputs() {
            let feed = match operand {
                Operand::Sample => Some(Feed::Device(sample)),
                Operand::Output => Some(Feed::Device(output)),
                Operand::Kept => Some(Feed::Device(kept)),
                Operand::Noise => Some(Feed::Host(noise)),
                Operand::Prediction(age) => {
                    age.checked_sub(1).and_then(|age| older.get(age)).map(|tensor| Feed::Device(tensor))
                }
            };
            names.extend(feed.map(|feed| (operand_name(operand), feed)));
        }
        let mut feeds: Vec<(&str, Feed<'_>)> =
            names.iter().map(|(name, feed)| (name.as_str(), *feed)).collect();
        feeds.push(("coefficients", Feed::Host(&coefficients)));
        let mut outputs = vec![("next", next)];
        outputs.extend(newest.filter(|_| depth > 0).map(|tensor| ("prediction", tensor)));
        if row.keep.is_some() {
            outputs.push(("keep", keep));
        }
        self.graphs.run(&StepGraph::Step(step), &feeds, &mut outputs)?;
        if row.keep.is_some() {
            buffers.kept.swap(0, 1);
        }
        Ok(())
    }
}

/// Names of the branches in graphs.
const BRANCHES: [&str; 2] = ["unconditional", "conditional"];

/// The tensors that the rows of a table read and write beside the sample.
struct Buffers {
    next: DeviceTensor,
    output: DeviceTensor,
    /// The samples put aside, and room for the next.
    kept: [DeviceTensor; 2],
    /// The newest first.
    predictions: VecDeque<DeviceTensor>,
    /// On the host: it is drawn there.
    noise: HostTensor,
}
