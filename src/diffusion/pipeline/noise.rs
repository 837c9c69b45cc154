//! Where first latents and the sampler's noise come from.

use half::f16;

use super::{
    super::{
        PipelineError,
        random::{NumpyRandomState, TorchGenerator},
    },
    request::{Random, Request},
};
use crate::engine::HostTensor;

/// One of a batch's generators.
enum Generator {
    Torch(TorchGenerator),
    /// torch's, for a pipeline that computes in half precision: diffusers draws in that type.
    TorchHalf(TorchGenerator),
    Numpy(NumpyRandomState),
}

impl Generator {
    fn fill(&mut self, values: &mut [f32]) {
        match self {
            Self::Torch(generator) => generator.randn(values),
            Self::TorchHalf(generator) => {
                let mut half = vec![f16::ZERO; values.len()];
                generator.randn_f16(&mut half);
                values.iter_mut().zip(half).for_each(|(value, half)| *value = half.to_f32());
            }
            Self::Numpy(generator) => {
                let mut double = vec![0.0; values.len()];
                generator.randn(&mut double);
                values.iter_mut().zip(double).for_each(|(value, double)| *value = double as f32);
            }
        }
    }
}

/// The precision that a pipeline draws in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precision {
    Single,
    Half,
}

/// The random numbers of one run.
pub(super) struct Noise<'a> {
    generators: Vec<Generator>,
    given: Option<(&'a [f32], usize)>,
}

impl<'a> Noise<'a> {
    /// Returns the generators of the request's seeds, and its noise file, which must have `draws` draws of `sample`'s
    /// size.
    pub(super) fn new(
        request: &'a Request,
        precision: Precision,
        sample: [usize; 4],
        draws: usize,
    ) -> Result<Self, PipelineError> {
        let seeds = request.seeds.len();
        if seeds != 1 && seeds != request.images() {
            let what =
                format!("{seeds} seeds for {} images; give one seed, or one for each", request.images());
            return Err(PipelineError::Request(what));
        }
        let generator = |seed: &u64| match (request.random, precision) {
            (Random::Torch, Precision::Single) => Ok(Generator::Torch(TorchGenerator::new(*seed))),
            (Random::Torch, Precision::Half) => Ok(Generator::TorchHalf(TorchGenerator::new(*seed))),
            (Random::Numpy, _) => {
                u32::try_from(*seed).map(|seed| Generator::Numpy(NumpyRandomState::new(seed))).map_err(|_| {
                    PipelineError::Request(format!("NumPy's seeds go to {}; {seed} is above", u32::MAX))
                })
            }
        };
        let generators = request.seeds.iter().map(generator).collect::<Result<_, _>>()?;
        let given = request.noise.as_ref().map(|noise| given_noise(noise, sample, draws)).transpose()?;
        Ok(Self { generators, given: given.map(|values| (values, 0)) })
    }

    /// Returns the first latents: given ones or random ones, standard normal.
    pub(super) fn first(&mut self, request: &Request, sample: [usize; 4]) -> Result<Vec<f32>, PipelineError> {
        let Some(latents) = &request.latents else {
            let mut values = vec![0.0; sample.iter().product()];
            self.draw(&mut values);
            return Ok(values);
        };
        let [batch, one @ ..] = sample;
        let of_one = latents.dims() == one || latents.dims() == [1, one[0], one[1], one[2]];
        if latents.dims() != sample && !of_one {
            let what = format!("the latents are {:?}; expected {sample:?}, or one image's", latents.dims());
            return Err(PipelineError::Request(what));
        }
        let values = latents.to_f32();
        Ok(if of_one { values.repeat(batch) } else { values })
    }

    /// Fills a batch with standard normal numbers.
    pub(super) fn fill(&mut self, values: &mut [f32]) {
        if let Some((noise, taken)) = &mut self.given {
            let next = noise.get(*taken..).unwrap_or_default();
            values.iter_mut().zip(next).for_each(|(value, given)| *value = *given);
            *taken += values.len();
            return;
        }
        self.draw(values);
    }

    fn draw(&mut self, values: &mut [f32]) {
        let one = values.len() / self.generators.len().max(1);
        for (generator, values) in self.generators.iter_mut().zip(values.chunks_mut(one.max(1))) {
            generator.fill(values);
        }
    }
}

fn given_noise(noise: &HostTensor, sample: [usize; 4], draws: usize) -> Result<&[f32], PipelineError> {
    let wrong = |what: String| Err(PipelineError::Request(what));
    let Some(values) = noise.as_f32() else {
        return wrong(format!("the noise is {}; expected float32", noise.data_type().name()));
    };
    match noise.dims() {
        [steps, one @ ..] if one == sample && *steps >= draws => Ok(values),
        [steps, one @ ..] if one == sample => {
            wrong(format!("the noise has {steps} draws; the sampler makes {draws}"))
        }
        dims => wrong(format!(
            "the noise is {dims:?}; expected [{draws}, {}]",
            sample.map(|n| n.to_string()).join(", ")
        )),
    }
}
