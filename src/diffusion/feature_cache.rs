//! The cache of deep features (DeepCache): which calls of a network run as a whole, and which its shallow part alone, with
//! what a whole run has kept.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{PipelineError, sampler::Row};
use crate::{
    analysis::shapes::{self, Shapes},
    engine::{DeviceTensor, HostTensor, Session, TensorInfo},
    ir::Graph,
    onnx,
    plan::{CACHE_NAMES, Cache, During},
};

/// How a call runs a network that keeps features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CachedCall {
    /// As a whole, and nothing is kept.
    Outside,
    /// As a whole, or only its shallow part if it kept something in the same stretch of calls.
    Within {
        /// The number of the stretch.
        stretch: usize,
        /// Whether it runs as a whole in any case: the first call of a stretch.
        first: bool,
    },
}

/// Returns how each row of a sampler table runs its networks.
///
/// Calls are counted as diffusers' `DeepCacheSDHelper` does, by the first place of their timestep among the timesteps of
/// all calls, from the first one in `during` on; those whose count is divisible by `every` run as a whole. Where two calls
/// share a timestep (the two halves of Heun's steps, PNDM's second), they share a count, and some counts are left out. So
/// the helper may never run the whole network again (Heun, `every: 2`); here it runs when the last time is twice as many
/// counts ago as it should be.
pub fn cached_calls(cache: &Cache, rows: &[Row]) -> Vec<CachedCall> {
    let every = cache.every.get() as usize;
    let count = |row: &Row| rows.iter().position(|other| other.timestep == row.timestep).unwrap_or_default();
    let (mut start, mut last, mut stretch) = (None, None, 0);
    let call = |row: &Row| {
        if !is_during(cache.during, row) {
            return CachedCall::Outside;
        }
        let count = count(row);
        let count = count.saturating_sub(*start.get_or_insert(count));
        let is_new = count % every == 0 || last.is_none_or(|last| count >= last + every.saturating_mul(2));
        let first = is_new || last == Some(count);
        if is_new && last != Some(count) {
            stretch += 1;
            last = Some(count);
        }
        CachedCall::Within { stretch, first }
    };
    rows.iter().map(call).collect()
}

pub(super) fn is_during(during: During, row: &Row) -> bool {
    match during {
        During::Fraction { from, to } => (from..=to).contains(&row.fraction),
        During::Sigma { low, high } => (low..=high).contains(&row.sigma),
    }
}

/// Features, in the order of the graph's outputs for them, and the stretch of calls that they are for.
#[derive(Debug)]
pub(super) struct Features<T> {
    pub(super) values: Vec<T>,
    stretch: Option<usize>,
}

impl<T> Default for Features<T> {
    fn default() -> Self {
        Self { values: Vec::new(), stretch: None }
    }
}

impl Features<DeviceTensor> {
    /// Takes room for features.
    pub(super) fn in_room(values: Vec<DeviceTensor>) -> Self {
        Self { values, stretch: None }
    }
}

impl<T> Features<T> {
    /// Returns whether `call` runs the shallow part.
    pub(super) fn serve(&self, call: CachedCall) -> bool {
        match call {
            CachedCall::Within { stretch, first: false } => self.stretch == Some(stretch),
            CachedCall::Within { first: true, .. } | CachedCall::Outside => false,
        }
    }

    /// Notes that they come from a run as a whole in `call`; outside of a cache they are not to be used again.
    pub(super) fn kept_in(&mut self, call: CachedCall) {
        self.stretch = match call {
            CachedCall::Outside => None,
            CachedCall::Within { stretch, .. } => Some(stretch),
        };
    }
}

impl Features<HostTensor> {
    /// Forgets them.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The shallow part of a network.
pub(super) struct Shallow {
    pub(super) session: Box<dyn Session>,
    /// The full graph's file.
    full: PathBuf,
    /// Time spent in it, and its runs.
    pub(super) spent: (Duration, usize),
    /// Dimensions of features by those of the latents and the number of tokens.
    known: BTreeMap<([usize; 4], usize), Vec<Vec<usize>>>,
}

impl Shallow {
    /// Takes the session of the shallow graph beside a full one that keeps `kept`.
    ///
    /// # Errors
    /// [`PipelineError::Graph`] if the two do not fit together.
    pub(super) fn new(
        session: Box<dyn Session>,
        path: &Path,
        full: &Path,
        kept: &[TensorInfo],
    ) -> Result<Self, PipelineError> {
        let missing = kept.iter().find(|info| session.inputs().iter().all(|input| input.name != info.name));
        let extra = session.inputs().iter().find(|input| {
            CACHE_NAMES.contains(&input.name.as_str()) && kept.iter().all(|info| info.name != input.name)
        });
        match missing.or(extra).or(if kept.is_empty() { session.inputs().first() } else { None }) {
            None => Ok(Self {
                session,
                full: full.to_path_buf(),
                spent: Default::default(),
                known: BTreeMap::new(),
            }),
            Some(_) => Err(PipelineError::Graph {
                model: path.display().to_string(),
                what: format!("it is not the shallow graph beside {}", full.display()),
            }),
        }
    }

    /// Returns the dimensions of the features for latents of dimensions `sample`.
    ///
    /// # Errors
    /// [`PipelineError::Graph`] if the full graph does not tell.
    pub(super) fn dims(
        &mut self,
        sample: [usize; 4],
        tokens: usize,
        kept: &[TensorInfo],
    ) -> Result<&[Vec<usize>], PipelineError> {
        if !self.known.contains_key(&(sample, tokens)) {
            let dims = FeatureShapes::of(&self.full)?;
            let dims = kept.iter().map(|info| dims.dims(&info.name, sample, tokens));
            self.known.insert((sample, tokens), dims.collect::<Result<_, _>>()?);
        }
        Ok(self.known.get(&(sample, tokens)).map_or(&[], Vec::as_slice))
    }
}

/// The symbolic shapes of what a full graph keeps.
pub(super) struct FeatureShapes {
    graph: Graph,
    shapes: Shapes,
    model: String,
}

impl FeatureShapes {
    /// Infers them for the graph at `path`.
    ///
    /// # Errors
    /// [`PipelineError::Graph`] if it cannot be read.
    pub(super) fn of(path: &Path) -> Result<Self, PipelineError> {
        let model = path.display().to_string();
        let graph = onnx::open(path).and_then(Graph::load);
        let graph =
            graph.map_err(|error| PipelineError::Graph { model: model.clone(), what: error.to_string() })?;
        let shapes = shapes::shapes(&graph);
        Ok(Self { graph, shapes, model })
    }

    /// Returns the dimensions of the output `name` for latents of dimensions `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// [`PipelineError::Graph`] if there is no such output, or its dimensions are not known.
    pub(super) fn dims(
        &self,
        name: &str,
        [batch, _, height, width]: [usize; 4],
        tokens: usize,
    ) -> Result<Vec<usize>, PipelineError> {
        let [batch, height, width, tokens] = [batch, height, width, tokens].map(|size| size as i64);
        let sizes = shapes::bind_sizes(&self.graph, batch, height, width, tokens);
        let sizes: Vec<(&str, i64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        let found = self.graph.outputs().iter().find(|io| io.info.name() == name);
        let shapes = self.shapes.evaluate(&sizes);
        let dims = found.and_then(|io| shapes.of(io.value));
        let dims = dims.and_then(|dims| dims.iter().map(|dim| usize::try_from(*dim).ok()).collect());
        dims.ok_or_else(|| PipelineError::Graph {
            model: self.model.clone(),
            what: format!("the dimensions of its output `{name}` cannot be told from its inputs'"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::{
        diffusion::sampler::{Config, Table},
        plan::Located,
    };

    fn kinds(class: &str, steps: usize, every: u32, during: During) -> String {
        let config = Config::from_json(&format!(r#"{{"_class_name": "{class}"}}"#)).unwrap();
        let rows = Table::new(&config, steps, 0.0).unwrap().rows().to_vec();
        let mut cache = Cache::at(Located { value: "up_blocks.0.resnets.0".into(), span: 0.into() });
        (cache.every, cache.during) = (NonZeroU32::new(every).unwrap(), during);
        let mut features = Features::<HostTensor>::default();
        let mut one = |call| {
            if features.serve(call) {
                return 's';
            }
            features.kept_in(call);
            if call == CachedCall::Outside { 'f' } else { 'F' }
        };
        cached_calls(&cache, &rows).into_iter().map(&mut one).collect()
    }

    #[test]
    fn every_third_call_is_whole() {
        assert_eq!(kinds("DDIMScheduler", 8, 3, During::default()), "FssFssFs");
        assert_eq!(kinds("DDIMScheduler", 4, 1, During::default()), "FFFF");
    }

    #[test]
    fn outside_of_during_all_are() {
        let during = During::Fraction { from: 0.25, to: 0.75 };
        assert_eq!(kinds("DDIMScheduler", 8, 3, during), "ffFssFsf");
    }

    /// As `list(timesteps).index(t)` counts them: 0, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9 in Heun's steps, 0, 1, 1, 3, 4, 5, 6 in
    /// PNDM's.
    #[test]
    fn calls_that_share_a_timestep_share_a_count() {
        assert_eq!(kinds("HeunDiscreteScheduler", 6, 3, During::default()), "FssFFssssFF");
        assert_eq!(
            kinds("PNDMScheduler\", \"skip_prk_steps\": true, \"_\": \"", 6, 3, During::default()),
            "FssFssF"
        );
        // No count but the first is even, so that the helper would go on with the first features for ever.
        assert_eq!(kinds("HeunDiscreteScheduler", 6, 2, During::default()), "FssssFFssFF");
    }
}
