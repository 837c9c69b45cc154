//! Which networks a pipeline runs, and which of them stay loaded.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Pipeline, Request, Unets,
    model::{Model, load},
    shapes::{self, Part},
};
use crate::{
    diffusion::{
        PipelineError,
        amplify::Mix,
        fitting::Asked,
        interleave::Networks,
        prediction_cache::PredictionCache,
        text::Prompter,
        unet::{Fed, LoadedFor, Unet},
    },
    engine::SessionOptions,
    observer::{Event, Observer, Stage},
};

impl Pipeline {
    /// Loads the dense network from the file at `path`, a copy of the pipeline's own. Two networks that share a file share
    /// the memory that it is mapped to.
    pub fn set_dense(&mut self, path: PathBuf) {
        self.dense = path;
    }

    /// Loads the text encoder with this index from the file at `path`.
    pub fn set_text_encoder(&mut self, index: usize, path: PathBuf) {
        if let Some(encoder) = self.encoders.get_mut(index) {
            *encoder = Model::new(path);
        }
    }

    /// Runs other UNets from now on. Those that were loaded are let go, but for one that is needed again: with a cache
    /// that is the pipeline's own in any case.
    pub fn set_unets(&mut self, unets: Unets) {
        if unets != self.unets {
            self.unets = unets;
            self.idle.extend(self.networks.take().into_iter().flat_map(Networks::into_unets));
            let mut idle = std::mem::take(&mut self.idle);
            idle.retain(|unet| self.files().contains(&unet.file()) || self.is_kept(unet));
            self.idle = idle;
        }
    }

    /// Takes the files of shallow graphs, by those of the full graphs among the networks: what a plan's `cache` takes. They
    /// run where a request's [`cache`](Request::cache) says so.
    pub fn set_shallow(&mut self, shallow: BTreeMap<PathBuf, PathBuf>) {
        self.shallow = shallow;
    }

    /// Feeds the network that is not the pipeline's own, the pruned one of two, these weights in each run.
    pub fn feed(&mut self, fed: Arc<Fed>) {
        self.fed = fed;
    }

    /// Takes what images have in common from `cache` from now on, and keeps all of the pipeline's own models loaded from
    /// run to run, but for text encoders with [`MemoryMode::Low`](crate::engine::MemoryMode::Low). Runs on a device look up their texts alone.
    pub fn set_cache(&mut self, cache: Arc<PredictionCache>) {
        self.cache = Some(cache);
    }

    /// Returns the files of the UNets, the dense one first.
    fn files(&self) -> Vec<&Path> {
        let own = matches!(self.unets, Unets::Dense | Unets::WithPruned(_)).then_some(&self.dense);
        own.into_iter().chain(self.unets.given()).map(PathBuf::as_path).collect()
    }

    /// Checks that each of the UNets runs on a batch of latents of these dimensions.
    pub(super) fn check_sizes(&mut self, sample: [usize; 4]) -> Result<(), PipelineError> {
        let (tokens, factor) = (self.tokens(), Some(self.folder.vae.factor));
        let files: Vec<PathBuf> = self.files().into_iter().map(Path::to_path_buf).collect();
        files.iter().try_for_each(|file| self.fitting.check(file, Asked { sample, tokens, factor }))
    }

    /// Returns the tokens of a prompt.
    fn tokens(&self) -> usize {
        self.prompters.first().map_or(0, Prompter::length)
    }

    /// Returns whether a network stays loaded while it is not run.
    fn is_kept(&self, unet: &Unet) -> bool {
        self.cache.is_some() && unet.file() == self.dense
    }

    /// Takes the loaded UNets out of the pipeline. On a device, or by an accelerator, they are loaded for the sizes of a
    /// request, and again for others.
    pub(super) fn networks(
        &mut self,
        request: &Request,
        sample: [usize; 4],
        mixes: &[Mix],
        observer: &dyn Observer,
    ) -> Result<Networks, PipelineError> {
        let fits = self.options.has_accelerator() || self.samples_on_device(request);
        let sizes = fits.then(|| shapes::Sizes {
            sample,
            tokens: self.tokens(),
            guided: request.guidance > 1.0,
            batching: request.batching,
            on: request.amplify.on,
            replaces: shapes::Sizes::replaces(mixes),
        });
        if let Some(mut networks) = self.networks.take_if(|_| sizes == self.fitted) {
            match &mut networks {
                Networks::One(unet) | Networks::Pair { pruned: unet, .. } => unet.feed(&self.given()),
            }
            self.load_shallow(&mut networks, request, sizes.as_ref())?;
            return Ok(networks);
        }
        self.idle.extend(self.networks.take().into_iter().flat_map(Networks::into_unets));
        let fitted = |path: &Path, part: Part| {
            let mut options = self.options.clone();
            if let Some(sizes) = &sizes {
                shapes::fit(path, part, sizes, None, &mut options)?;
            }
            Ok::<_, PipelineError>((path.to_path_buf(), options))
        };
        let parts = self.files().into_iter().zip([Part::Dense, Part::Pruned]);
        let wanted = parts.map(|(path, part)| fitted(path, part)).collect::<Result<Vec<_>, _>>()?;
        let is = |unet: &Unet, (path, options): &(PathBuf, SessionOptions)| {
            unet.file() == path && *unet.sizes() == LoadedFor::of(options)
        };
        let mut idle = std::mem::take(&mut self.idle);
        idle.retain(|unet| wanted.iter().any(|wanted| is(unet, wanted)) || self.is_kept(unet));
        if !wanted.iter().all(|wanted| idle.iter().any(|unet| is(unet, wanted))) {
            observer.tell(Event::Begun(Stage::Loading))?;
        }
        let mut unets = Vec::with_capacity(wanted.len());
        for (at, wanted) in wanted.iter().enumerate() {
            let fed = if at + 1 == self.files().len() { self.given() } else { Arc::default() };
            let (path, options) = wanted;
            let unet = match idle.iter().position(|unet| is(unet, wanted)) {
                Some(known) => {
                    let mut unet = idle.swap_remove(known);
                    unet.feed(&fed);
                    unet
                }
                None => {
                    let before = self.loading;
                    let session = load(&*self.engine, path, options, &mut self.loading)?;
                    if *path != self.dense {
                        self.loading_given += self.loading - before;
                    }
                    Unet::fed(session, path, fed, LoadedFor::of(options))?
                }
            };
            unets.push(unet);
        }
        self.idle = idle;
        self.fitted = sizes;
        let none = || PipelineError::Request("there is no network to run".to_string());
        let mut unets = unets.into_iter().map(Box::new);
        let dense = unets.next().ok_or_else(none)?;
        let mut networks = match unets.next() {
            None => Networks::One(dense),
            Some(pruned) => Networks::Pair { dense, pruned },
        };
        let sizes = self.fitted;
        self.load_shallow(&mut networks, request, sizes.as_ref())?;
        Ok(networks)
    }

    /// Loads the shallow graphs that a request asks for and that are not loaded.
    fn load_shallow(
        &mut self,
        networks: &mut Networks,
        request: &Request,
        sizes: Option<&shapes::Sizes>,
    ) -> Result<(), PipelineError> {
        if request.cache.is_none() {
            return Ok(());
        }
        let unets = match networks {
            Networks::One(unet) => vec![(unet, Part::Dense)],
            Networks::Pair { dense, pruned } => vec![(dense, Part::Dense), (pruned, Part::Pruned)],
        };
        for (unet, part) in unets.into_iter().filter(|(unet, _)| !unet.has_shallow()) {
            let path = self.shallow.get(unet.file()).cloned().ok_or_else(|| PipelineError::Graph {
                model: unet.model().to_string(),
                what: "a cache was asked for, but there is no shallow graph beside this one".to_string(),
            })?;
            let mut options = self.options.clone();
            if let Some(sizes) = sizes {
                shapes::fit(&path, part, sizes, Some(unet.file()), &mut options)?;
            }
            let session = load(&*self.engine, &path, &options, &mut self.loading)?;
            unet.set_shallow(session, &path)?;
        }
        Ok(())
    }

    /// Returns what the last of the UNets is fed.
    fn given(&self) -> Arc<Fed> {
        match &self.unets {
            Unets::Dense => Arc::default(),
            Unets::Instead(_) | Unets::WithPruned(_) | Unets::Pair { .. } => Arc::clone(&self.fed),
        }
    }
}
