//! The sizes that an engine is built for.

use std::path::Path;

use crate::{
    cli::{Failure, Size},
    deploy::{Range, Sizes},
    plan,
};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Shapes")]
pub(super) struct SizeArgs {
    /// Heights x widths of images, in pixels; the engine is tuned for the first: 512x512,768x512.
    #[arg(long, value_name = "HxW", value_delimiter = ',')]
    sizes: Vec<Size>,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 77, value_parser = clap::value_parser!(i64).range(1..1 << 20))]
    tokens: i64,
    /// Pixels for each latent, in each direction; 1 for a model that takes images.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(i64).range(1..1 << 10))]
    factor: i64,
    /// The size of another dimension, by its name in the model: --dim channels=4.
    #[arg(long, value_name = "NAME=MIN..MAX", value_parser = named)]
    dim: Vec<(String, Range)>,
}

fn named(text: &str) -> Result<(String, Range), String> {
    let (name, range) = text.split_once('=').ok_or_else(|| format!("`{text}` has no `=`"))?;
    Ok((name.to_string(), range.parse()?))
}

impl SizeArgs {
    /// Returns the requested sizes, if any size of images is given here or in `plan`.
    pub(super) fn with(&self, batch: Range, plan: Option<&Path>) -> Result<Option<Sizes>, Failure> {
        let mut images: Vec<(i64, i64)> = self.sizes.iter().map(|size| (size.height, size.width)).collect();
        if let Some(path) = plan {
            images.push(of_plan(path)?);
        }
        let named = self.dim.iter().cloned().collect();
        let (tokens, factor) = (self.tokens, self.factor);
        Ok((!images.is_empty()).then_some(Sizes { images, batch, tokens, factor, named }))
    }
}

/// Returns the size that the authors' result files have, `model_config.height` and `width`.
fn of_plan(path: &Path) -> Result<(i64, i64), Failure> {
    let plan = plan::load(path)?;
    let config: Option<serde_json::Value> = serde_json::from_str(plan.source.text()).ok();
    let side = |key: &str| config.as_ref()?.get("model_config")?.get(key)?.as_i64().filter(|n| *n > 0);
    side("height").zip(side("width")).ok_or_else(|| {
        Failure::Message(format!(
            "{}: it has no image sizes (only the CR-Diff authors' result files do, in `model_config`); use --sizes",
            path.display()
        ))
    })
}
