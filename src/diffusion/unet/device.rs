//! A UNet whose inputs and output stay on its device.

use std::time::{Duration, Instant};

use super::{Extra, Prepared, SAMPLE, TIMESTEP, Unet, timestep_tensor};
use crate::{
    diffusion::{
        PipelineError,
        device::{Input, StepGraph, StepGraphs},
        feature_cache::{CachedCall, Features},
    },
    engine::{Capture, DeviceSession, DeviceTensor, EngineError, EngineKind, Feed, HostTensor},
    onnx::DataType,
};

/// The tensors that a UNet reads and writes, on its device. They are its own: nothing else writes the inputs, and it
/// writes the output only.
pub struct Placed {
    sample: DeviceTensor,
    /// `None` where the device doesn't compute in its type, and the host gives each call its own.
    timestep: Option<DeviceTensor>,
    extra: Vec<Constant>,
    output: DeviceTensor,
    features: Features<DeviceTensor>,
    input: Input,
    capture: Capture,
    shallow_capture: Capture,
}

/// An input that is the same in each call.
enum Constant {
    OnDevice(DeviceTensor),
    /// Of a type that the device doesn't compute in: the sizes of SDXL, never the text.
    OnHost(HostTensor),
}

impl Constant {
    fn feed(&self) -> Feed<'_> {
        match self {
            Self::OnDevice(tensor) => Feed::Device(tensor),
            Self::OnHost(tensor) => Feed::Host(tensor),
        }
    }
}

impl Placed {
    /// Returns the UNet's last output.
    pub fn output(&self) -> &DeviceTensor {
        &self.output
    }
}

impl Unet {
    /// Returns the type of its output.
    pub(in crate::diffusion) fn output_type(&self) -> DataType {
        self.output.data_type
    }

    /// Moves what doesn't change from call to call to the device. `copies` is how often the batch of latents stands in
    /// the sample.
    ///
    /// # Errors
    /// [`PipelineError::Engine`] if the engine has no device memory, or not enough.
    pub(in crate::diffusion) fn place(
        &mut self,
        prepared: Prepared,
        copies: usize,
        graphs: &mut StepGraphs<'_>,
    ) -> Result<Placed, PipelineError> {
        let dims = prepared.sample.dims().to_vec();
        let batch = dims.first().copied().unwrap_or(1);
        let timestep = timestep_tensor(&self.timestep, 0.0, batch)?;
        let features = self.place_features(&prepared)?;
        let types = (self.sample.data_type, self.timestep.data_type, self.output.data_type);
        let device = self.device()?;
        let extra = prepared.extra.iter().map(|tensor| {
            if !device.computes_in(tensor.data_type()) {
                return Ok(Constant::OnHost(tensor.clone()));
            }
            let mut placed = device.allocate(tensor.data_type(), tensor.dims())?;
            graphs.upload(tensor, &mut placed)?;
            Ok(Constant::OnDevice(placed))
        });
        let extra = extra.collect::<Result<_, PipelineError>>()?;
        let (sample_type, timestep_type, output_type) = types;
        let timestep = device.computes_in(timestep_type).then_some(timestep);
        Ok(Placed {
            sample: device.allocate(sample_type, &dims)?,
            timestep: timestep.as_ref().map(|t| device.allocate(timestep_type, t.dims())).transpose()?,
            extra,
            output: device.allocate(output_type, &dims)?,
            features,
            input: Input {
                sample: sample_type,
                copies,
                timestep: timestep.map(|t| (timestep_type, t.dims().len())),
            },
            capture: Capture::unique(),
            shallow_capture: Capture::unique(),
        })
    }

    /// Makes room for features, if it has a shallow graph.
    fn place_features(&mut self, prepared: &Prepared) -> Result<Features<DeviceTensor>, PipelineError> {
        let Some(shallow) = &mut self.shallow else { return Ok(Features::default()) };
        let sample: [usize; 4] = prepared.sample.dims().try_into().unwrap_or_default();
        let context = self.extra.iter().zip(&prepared.extra).find(|((kind, _), _)| *kind == Extra::Context);
        let tokens = context.and_then(|(_, tensor)| tensor.dims().get(1).copied()).unwrap_or(1);
        let dims = shallow.dims(sample, tokens, &self.kept)?;
        let kind = self.session.kind();
        let device = self.session.device().ok_or_else(|| no_device(kind, &self.model))?;
        let room = self.kept.iter().zip(dims).map(|(info, dims)| device.allocate(info.data_type, dims));
        Ok(Features::in_room(room.collect::<Result<_, _>>()?))
    }

    /// Runs the network on `latents` times `scale`; the result is [`Placed::output`]. Returns the time that the
    /// network itself took.
    ///
    /// # Errors
    /// [`PipelineError::Engine`] if the engine fails, or the output is not of the sample's shape.
    pub(in crate::diffusion) fn run_placed(
        &mut self,
        placed: &mut Placed,
        graphs: &mut StepGraphs<'_>,
        latents: &DeviceTensor,
        (scale, timestep): (f32, f64),
        call: CachedCall,
    ) -> Result<Duration, PipelineError> {
        let batch = placed.sample.dims().first().copied().unwrap_or(1);
        let timestep = timestep_tensor(&self.timestep, timestep, batch)?;
        let scale = HostTensor::new([1], vec![scale])?;
        let mut inputs = vec![("latents", Feed::Device(latents)), ("coefficients", Feed::Host(&scale))];
        let mut outputs = vec![("sample", &mut placed.sample)];
        if let Some(held) = &mut placed.timestep {
            inputs.push(("timestep", Feed::Host(&timestep)));
            outputs.push(("timestep_out", held));
        }
        graphs.run(&StepGraph::Input(placed.input), &inputs, &mut outputs)?;
        let serves = placed.features.serve(call);
        let started = Instant::now();
        let timestep = placed.timestep.as_ref().map_or(Feed::Host(&timestep), Feed::Device);
        let mut inputs = vec![(SAMPLE, Feed::Device(&placed.sample)), (TIMESTEP, timestep)];
        let extra = self.extra.iter().zip(&placed.extra);
        inputs.extend(extra.map(|((_, info), constant)| (info.name.as_str(), constant.feed())));
        let kind = self.session.kind();
        let Features { values, .. } = &mut placed.features;
        let kept = self.kept.iter().map(|info| info.name.as_str());
        let mut outputs = vec![(self.output.name.as_str(), &mut placed.output)];
        if let Some(shallow) = self.shallow.as_mut().filter(|_| serves) {
            inputs.extend(kept.zip(values.iter().map(Feed::Device)));
            let device = shallow.session.device().ok_or_else(|| no_device(kind, &self.model))?;
            device.run_into(&inputs, &mut outputs, Some(placed.shallow_capture))?;
            shallow.spent.0 += started.elapsed();
            shallow.spent.1 += 1;
        } else {
            outputs.extend(kept.zip(values.iter_mut()));
            let device = self.session.device().ok_or_else(|| no_device(kind, &self.model))?;
            device.run_into(&inputs, &mut outputs, Some(placed.capture))?;
            placed.features.kept_in(call);
        }
        Ok(started.elapsed())
    }

    /// Returns its session as one that runs on device memory.
    pub(in crate::diffusion) fn device(&mut self) -> Result<&mut dyn DeviceSession, PipelineError> {
        if !self.fed.is_empty() {
            let what = "it is fed weights in each run, which come from the host";
            return Err(self.graph(what.to_string()));
        }
        let kind = self.session.kind();
        self.session.device().ok_or_else(|| no_device(kind, &self.model).into())
    }
}

fn no_device(engine: EngineKind, model: &str) -> EngineError {
    let what = "it has no device memory that a network could be run in; ONNX Runtime has".to_string();
    EngineError::Run { engine, model: model.to_string(), what }
}
