//! `--compiled`: where compiled plans are kept for the next run.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::{ValueEnum, builder::PossibleValue};

use super::{
    Failure,
    progress::{Bars, Visibility},
};
use crate::{
    observer::{Event, Observer},
    passes::MaskForm,
    plan::Plan,
    plan_cache::{self, Compiled, Place, PlanCache, PlanCacheError},
};

impl ValueEnum for Place {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Cache, Self::Beside]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Cache => PossibleValue::new("cache")
                .help("In the user's cache, beside a copy of the model's weights that all its plans share"),
            Self::Beside => PossibleValue::new("beside")
                .help("Beside the model (model.crdiff-*.onnx), sharing its weights"),
        })
    }
}

impl From<PlanCacheError> for Failure {
    fn from(error: PlanCacheError) -> Self {
        match error {
            PlanCacheError::Compile(error) => error.into(),
            other => Self::Message(other.to_string()),
        }
    }
}

/// An observer that says what is kept, and draws the rest.
struct Told<'a> {
    bars: &'a Bars,
    visibility: Visibility,
}

impl Observer for Told<'_> {
    fn hear(&self, event: Event<'_>) {
        match event {
            Event::Notice(what) if self.visibility == Visibility::Shown => {
                anstream::eprintln!("{what} (`--compiled beside`); `crdiff cache` lists what is kept");
            }
            Event::Warning(what) if self.visibility == Visibility::Shown => {
                anstream::eprintln!("note: {what}");
            }
            event => self.bars.hear(event),
        }
    }

    fn is_stopped(&self) -> bool {
        self.bars.is_stopped()
    }
}

/// Returns the networks that run `plan` for the model at `path`, compiled unless they were before.
///
/// # Errors
/// [`Failure`] if the plan doesn't fit the model, or nothing can be written.
pub fn compiled(
    path: &Path,
    plan: &Plan,
    masks: MaskForm,
    place: Place,
    visibility: Visibility,
) -> Result<Compiled, Failure> {
    with_cache(masks, place, visibility, |cache| cache.networks(path, plan))
}

/// Returns the text encoders among those at `paths` that `plan` changes, by index, compiled unless they were before.
///
/// # Errors
/// As [`compiled`].
pub fn text_encoders(
    paths: &[PathBuf],
    plan: &Plan,
    place: Place,
    visibility: Visibility,
) -> Result<Vec<(usize, PathBuf)>, Failure> {
    with_cache(MaskForm::Stored, place, visibility, |cache| cache.text_encoders(paths, plan))
}

/// Says which LoRAs of `plan` leave the UNet as it is.
pub fn say_text_encoders_alone(plan: &Plan) {
    for file in plan.loras_of_text_encoders().collect::<BTreeSet<_>>() {
        anstream::eprintln!("note: `{file}` is for text encoders alone: the UNet is as it was without it");
    }
}

fn with_cache<T>(
    masks: MaskForm,
    place: Place,
    visibility: Visibility,
    then: impl FnOnce(&PlanCache<'_>) -> Result<T, PlanCacheError>,
) -> Result<T, Failure> {
    let bars = Bars::new(visibility);
    let cache = PlanCache { place, masks, observer: &Told { bars: &bars, visibility } };
    Ok(then(&cache)?)
}

/// Returns the digest of the structure and weights of the model at `path`, which the user's cache remembers.
///
/// # Errors
/// [`Failure`] if the model cannot be read.
pub fn digest(path: &Path, visibility: Visibility) -> Result<String, Failure> {
    let bars = Bars::new(visibility);
    Ok(plan_cache::digest(path, &bars)?)
}
