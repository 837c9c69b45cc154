//! A cache of what images have in common: the text encoders' answers, and the dense network's predictions of the calls
//! before another network first runs.
//!
//! Two images of one prompt, size and seed differ by their plans alone. Until the network that a plan made first runs,
//! the dense one sees the same samples in both: in the first call always, and in all calls before `amplify.during` begins.
//! [`Pipeline::set_cache`](super::Pipeline::set_cache) gives a pipeline a cache, which any number of pipelines may share.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use rustc_hash::FxHashMap;

use super::{
    PipelineError,
    text::{Encoded, HiddenState},
};
use crate::lock::lock;

/// Answers of models by what they depend on: the model's file and all that it was fed. Pipelines that share a cache run the
/// same engine: others round differently.
#[derive(Debug)]
pub struct PredictionCache {
    state: Mutex<State>,
    limit: usize,
}

#[derive(Debug, Default)]
struct State {
    texts: FxHashMap<Text, Encoded>,
    predictions: FxHashMap<PathBuf, FxHashMap<Inputs, Arc<Vec<f32>>>>,
    /// Of the predictions.
    bytes: usize,
}

/// The key of a text encoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Text {
    encoder: PathBuf,
    tokens: Vec<i64>,
    state: HiddenState,
}

/// SHA-256 of what a network is fed in a call.
pub(super) type Inputs = [u8; 32];

/// How often a cache was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// Calls of text encoders, and of the dense network while it ran alone.
    pub asked: u64,
    /// Those among them that the cache answered.
    pub answered: u64,
}

impl Lookups {
    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.asked += other.asked;
        self.answered += other.answered;
    }
}

impl PredictionCache {
    /// Makes a cache that keeps at most `limit` bytes of predictions. Where they are full, those of other networks go; if
    /// there are none, no more are kept.
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::default(), limit }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn prediction(&self, network: &Path, inputs: &Inputs) -> Option<Arc<Vec<f32>>> {
        self.state().predictions.get(network)?.get(inputs).cloned()
    }

    fn keep(&self, network: &Path, inputs: Inputs, prediction: &[f32]) {
        let mut state = self.state();
        let state = &mut *state;
        let bytes = size_of_val(prediction);
        if state.bytes + bytes > self.limit {
            state.predictions.retain(|known, _| known == network);
            let kept = state.predictions.values().flat_map(FxHashMap::values);
            state.bytes = kept.map(|kept| size_of_val(kept.as_slice())).sum();
        }
        if state.bytes + bytes <= self.limit {
            let known = state.predictions.entry(network.to_path_buf()).or_default();
            if known.insert(inputs, Arc::new(prediction.to_vec())).is_none() {
                state.bytes += bytes;
            }
        }
    }
}

/// A cache as one run of a pipeline uses it.
pub(super) struct CachedRun<'a> {
    cache: &'a PredictionCache,
    lookups: Cell<Lookups>,
}

impl<'a> CachedRun<'a> {
    pub(super) fn new(cache: &'a PredictionCache) -> Self {
        Self { cache, lookups: Cell::default() }
    }

    /// Returns how often the cache was asked so far.
    pub(super) fn lookups(&self) -> Lookups {
        self.lookups.get()
    }

    fn count<T>(&self, found: Option<T>) -> Option<T> {
        let mut lookups = self.lookups.get();
        lookups.add(Lookups { asked: 1, answered: found.is_some().into() });
        self.lookups.set(lookups);
        found
    }

    /// Returns what `encoder` says of `tokens`, by `encode` unless it is known.
    pub(super) fn text(
        &self,
        encoder: &Path,
        tokens: &[i64],
        state: HiddenState,
        encode: impl FnOnce() -> Result<Encoded, PipelineError>,
    ) -> Result<Encoded, PipelineError> {
        let key = Text { encoder: encoder.to_path_buf(), tokens: tokens.to_vec(), state };
        let known = self.cache.state().texts.get(&key).cloned();
        if let Some(known) = self.count(known) {
            return Ok(known);
        }
        let encoded = encode()?;
        self.cache.state().texts.insert(key, encoded.clone());
        Ok(encoded)
    }

    /// Returns the prediction of `network` for `inputs`, by `predict` unless it is known.
    pub(super) fn prediction(
        &self,
        network: &Path,
        inputs: Inputs,
        predict: impl FnOnce() -> Result<Vec<f32>, PipelineError>,
    ) -> Result<Vec<f32>, PipelineError> {
        if let Some(known) = self.count(self.cache.prediction(network, &inputs)) {
            return Ok(known.to_vec());
        }
        let prediction = predict()?;
        self.cache.keep(network, inputs, &prediction);
        Ok(prediction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_lets_other_networks_go() {
        let cache = PredictionCache::new(4 * 4);
        let [one, other] = ["one", "other"].map(Path::new);
        let has = |network, input| cache.prediction(network, &[input; 32]).is_some();
        (0..3).for_each(|input| cache.keep(one, [input; 32], &[0.0; 2]));
        assert_eq!([has(one, 0), has(one, 1), has(one, 2)], [true, true, false]);
        cache.keep(other, [0; 32], &[1.0; 2]);
        assert_eq!([has(one, 0), has(one, 1), has(other, 0)], [false, false, true]);
        cache.keep(other, [0; 32], &[1.0; 2]);
        cache.keep(other, [1; 32], &[1.0; 2]);
        assert!(has(other, 1), "what is kept again is counted once");
        cache.keep(one, [0; 32], &[0.0; 5]);
        assert!(!has(one, 0), "it is larger than the cache");
    }
}
