//! Whether networks run at a size: told from their shapes, before they are loaded.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{PipelineError, interleave::Networks};
use crate::{
    analysis::{
        attention::Divided,
        shapes::{self, Dim, Note, Shapes},
    },
    ir::Graph,
    onnx,
};

/// Most that a size is tried to be a multiple of, in latents.
const MOST: i64 = 512;
/// The steps in which a size that runs is looked for, in latents: powers of two.
const STEPS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// The networks and sizes that were found to fit.
#[derive(Debug, Default)]
pub struct Fitting(BTreeSet<(PathBuf, Asked)>);

/// The sizes that a network is asked to run at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// The batch of latents, `[batch, channels, height, width]`.
    pub sample: [usize; 4],
    /// Tokens of a prompt.
    pub tokens: usize,
    /// Pixels for each latent, in each direction, where that is known.
    pub factor: Option<usize>,
}

impl Asked {
    /// Returns height and width of the latents.
    fn latents(&self) -> [usize; 2] {
        let [_, _, height, width] = self.sample;
        [height, width]
    }

    /// Returns a size of latents as its user knows it, in pixels if it can be.
    fn named(&self, [height, width]: [usize; 2]) -> String {
        match self.factor {
            Some(factor) => {
                format!("{}x{} pixels", height.saturating_mul(factor), width.saturating_mul(factor))
            }
            None => format!("latents of {height}x{width}"),
        }
    }
}

impl Fitting {
    /// Checks that the network at `path` runs at the sizes `asked`, as far as its shapes tell.
    ///
    /// # Errors
    /// [`PipelineError::Request`] if two operands do not fit at these sizes, with a size at which all do.
    pub fn check(&mut self, path: &Path, asked: Asked) -> Result<(), PipelineError> {
        if self.0.contains(&(path.to_path_buf(), asked)) {
            return Ok(());
        }
        // What cannot be read is the engine's to refuse.
        if let Ok(graph) = onnx::open(path).and_then(Graph::load)
            && let Some(misfit) = Misfit::of(&graph, asked)
        {
            return Err(PipelineError::Request(misfit.said(path)));
        }
        self.0.insert((path.to_path_buf(), asked));
        Ok(())
    }

    /// Checks that each of `networks` runs at the sizes `asked`.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_each(&mut self, networks: &Networks, asked: Asked) -> Result<(), PipelineError> {
        let unets = match networks {
            Networks::One(unet) => vec![unet],
            Networks::Pair { dense, pruned } => vec![dense, pruned],
        };
        unets.into_iter().try_for_each(|unet| self.check(unet.file(), asked))
    }
}

/// A node that cannot run at a size at which others can.
struct Misfit<'a> {
    graph: &'a Graph,
    asked: Asked,
    shapes: Shapes,
    note: Note,
}

impl<'a> Misfit<'a> {
    /// Returns the first one. A graph that runs at no size is the engine's to refuse.
    fn of(graph: &'a Graph, asked: Asked) -> Option<Self> {
        let shapes = at(graph, asked, asked.latents());
        let note = shapes.problems().next()?.clone();
        let is_of_size = shapes::shapes(graph).problems().next().is_none();
        is_of_size.then_some(Self { graph, asked, shapes, note })
    }

    /// Says what does not fit, and the next size at which all does.
    fn said(&self, path: &Path) -> String {
        let Self { graph, asked, note, .. } = self;
        let [height, width] = asked.latents();
        let (what, multiples) = self.windows().unwrap_or_else(|| {
            let size = asked.named([height, width]);
            (format!("{}: it cannot run at {size}: {}", path.display(), note.what), [1, 1])
        });
        let up = |size: usize, multiple: usize, step: usize| {
            let shared = multiple.trailing_zeros().min(step.trailing_zeros());
            size.checked_next_multiple_of(multiple * (step >> shared)).unwrap_or(size)
        };
        let mut sizes =
            STEPS.into_iter().map(|step| [up(height, multiples[0], step), up(width, multiples[1], step)]);
        match sizes.find(|latents| at(graph, *asked, *latents).problems().next().is_none()) {
            Some(latents) => format!("{what}; try {}", asked.named(latents)),
            None => what,
        }
    }

    /// Says which attention has a feature map that its windows do not divide, and which multiples of latents it takes.
    fn windows(&self) -> Option<(String, [usize; 2])> {
        let Self { graph, asked, shapes, note } = self;
        let Divided { pixels, windows: [rows, columns] } = Divided::by(graph, shapes, note.node)?;
        let symbolic = shapes::shapes(graph);
        let [_, _, height, width] = &*symbolic.of(pixels)?.dims else { return None };
        let multiple = |dim: &Dim, of: i64| usize::try_from(dim.divisible_where(of, MOST)?).ok();
        let multiples = [multiple(height, rows)?, multiple(width, columns)?];
        let name = &graph.node(note.node).name;
        let module = name.rsplit_once("/attention/").map_or(&**name, |(module, _)| module);
        let wanted = match multiples.map(|multiple| multiple.saturating_mul(asked.factor.unwrap_or(1))) {
            [height, width] if height == width => {
                format!("heights and widths that are multiples of {height}")
            }
            [height, width] => format!("heights that are multiples of {height}, and widths of {width}"),
        };
        let [_, _, height, width] = &*shapes.of(pixels)?.dims else { return None };
        let size = asked.named(asked.latents());
        let what = format!(
            "`{module}` has a feature map of {height}x{width} at {size}, which {rows}x{columns} windows do not divide: it \
             takes {wanted}"
        );
        Some((what, multiples))
    }
}

/// Returns the shapes at a size of latents.
fn at(graph: &Graph, asked: Asked, [height, width]: [usize; 2]) -> Shapes {
    let sizes = [asked.sample[0], height, width, asked.tokens];
    let [batch, height, width, tokens] = sizes.map(|size| size as i64);
    shapes::shapes_at(graph, &shapes::bind_sizes(graph, batch, height, width, tokens))
}
