//! Two graphs compared by what they compute, and digests of it.
//!
//! Names of nodes and inner values, the order of nodes, doc strings, metadata, the place where weights are kept and
//! whether a constant is an initializer or a Constant node don't count. Everything else does, from the names and types
//! of the graph's inputs and outputs down to default values of attributes that one graph spells out and the other
//! leaves out: nothing is rewritten before it is compared. Anything that no node and no output uses is ignored, except
//! nodes, which count.

mod compare;
mod constants;
mod fingerprint;
mod matching;
mod tensors;

use rayon::prelude::*;

pub use compare::{Difference, What};
pub use matching::Matching;
pub use tensors::TensorDifference;

use super::{canonical::Canonical, hash::Hash};
use crate::{
    analysis::modules::{Modules, modules},
    hex::hex,
    ir::Graph,
    observer::{Observer, Progress, Stage},
    onnx::OnnxError,
};
use fingerprint::{Fingerprints, Hashed};

/// Whether weights are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightComparison {
    /// Every element of every tensor counts.
    #[default]
    Compared,
    /// Of weights only type and dimensions count. Integer, boolean and text tensors (shapes, axes, indices) and single
    /// numbers are no weights and still count.
    Ignored,
}

/// SHA-256 digests of a model, in hexadecimal: equal for graphs between which [`diff`] finds nothing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Digests {
    /// Of the structure, with [`WeightComparison::Ignored`].
    pub structure: String,
    /// Of structure and weights.
    pub weights: String,
}

/// Computes both digests. Weights are read in parallel, in pieces.
///
/// # Errors
/// [`OnnxError`] if a tensor or a function of the model is broken or missing, or `observer` says stop.
pub fn digests(graph: &Graph, observer: &dyn Observer) -> Result<Digests, OnnxError> {
    let canonical = Canonical::new(graph)?;
    let constants = constants::constants(graph)?;
    let contents = constants::contents(graph, &constants, Progress::new(observer, Stage::Digesting))?;
    let digest = |contents: &[Option<Hash>]| -> Result<String, OnnxError> {
        let hashed = Hashed { graph, canonical: &canonical, constants: &constants, contents };
        Ok(hex(&hashed.whole(&hashed.fingerprints()?)))
    };
    let structural: Vec<Option<Hash>> = constants
        .iter()
        .zip(&contents)
        .map(|(constant, content)| content.filter(|_| constant.as_ref().is_some_and(|c| c.is_structural())))
        .collect();
    Ok(Digests { structure: digest(&structural)?, weights: digest(&contents)? })
}

/// The differences between two graphs.
#[derive(Clone, Debug)]
pub struct Diff {
    /// Number of nodes of the first graph, Constant nodes not counted.
    pub nodes_a: usize,
    /// Number of nodes of the second graph, Constant nodes not counted.
    pub nodes_b: usize,
    /// Number of nodes that are in both, changed or not.
    pub matched: usize,
    /// The differences: of the graph, then of the first graph's nodes in their order, then what the second has more.
    pub differences: Vec<Difference>,
    /// Which node is which.
    pub matching: Matching,
    /// The modules of the first graph.
    pub modules: Modules,
}

impl Diff {
    /// Returns whether the graphs compute the same in the same way.
    pub fn is_same(&self) -> bool {
        self.differences.is_empty()
    }
}

/// Compares two graphs. Tensors that lie in the very same bytes of a file are equal without being read; others are
/// read in parallel, in pieces.
///
/// # Errors
/// [`OnnxError`] if a tensor or a function of a model is broken or missing, or `observer` says stop.
pub fn diff(
    a: &Graph,
    b: &Graph,
    weights: WeightComparison,
    observer: &dyn Observer,
) -> Result<Diff, OnnxError> {
    let progress = Progress::new(observer, Stage::Comparing);
    let graphs = [a, b];
    let [constants_a, constants_b] = [constants::constants(a)?, constants::constants(b)?];
    let constants = [&constants_a, &constants_b];
    let structural =
        [constants::structural_contents(a, &constants_a)?, constants::structural_contents(b, &constants_b)?];
    let contents = match weights {
        WeightComparison::Compared => {
            constants::shared_contents((a, &constants_a), (b, &constants_b), progress)?
        }
        WeightComparison::Ignored => structural.clone(),
    };
    observer.check()?;
    let canonical = [Canonical::new(a)?, Canonical::new(b)?];
    let fingerprints = |side: usize, contents: &[Option<Hash>]| -> Result<Fingerprints, OnnxError> {
        Hashed { graph: graphs[side], canonical: &canonical[side], constants: constants[side], contents }
            .fingerprints()
    };
    let of_side = |side: usize| -> Result<(Fingerprints, Fingerprints, Modules), OnnxError> {
        let structure = fingerprints(side, &structural[side])?;
        let full = match weights {
            WeightComparison::Compared => fingerprints(side, &contents[side])?,
            WeightComparison::Ignored => structure.clone(),
        };
        Ok((structure, full, modules(graphs[side])))
    };
    let mut prepared: Vec<_> = [0, 1].into_par_iter().map(of_side).collect::<Result<Vec<_>, _>>()?;
    observer.check()?;
    let matching = {
        let [side_a, side_b] = [0, 1].map(|side| {
            let (structure, weights, modules) = &prepared[side];
            matching::Side { graph: graphs[side], modules, structure, weights }
        });
        matching::matching(&side_a, &side_b)
    };
    observer.check()?;
    let differences = compare::Comparison {
        graphs,
        constants: [&constants_a, &constants_b],
        contents: [&contents[0], &contents[1]],
        canonical: [&canonical[0], &canonical[1]],
        fingerprints: [&prepared[0].1, &prepared[1].1],
        modules: [&prepared[0].2, &prepared[1].2],
        matching: &matching,
        progress,
    }
    .differences()?;
    Ok(Diff {
        nodes_a: fingerprint::compared(a).count(),
        nodes_b: fingerprint::compared(b).count(),
        matched: matching.of_a.iter().flatten().count(),
        differences,
        matching,
        modules: prepared.swap_remove(0).2,
    })
}
