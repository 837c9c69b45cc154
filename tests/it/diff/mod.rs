//! `diff` and `digest`: against exporters' own copies of one network, copies changed by hand, and torch's counts of what
//! a plan masks.

mod changes;
mod cli;
mod rearrange;
mod same;

use std::path::Path;

use crdiff::{
    ir::Graph,
    onnx,
    verify::structure::{Diff, Digests, WeightComparison, diff, digests},
};

fn load(path: &Path) -> Graph {
    Graph::load(onnx::open(path).unwrap()).unwrap()
}

fn compared(a: &Path, b: &Path, weights: WeightComparison) -> Diff {
    diff(&load(a), &load(b), weights, &()).unwrap()
}

fn digest(path: &Path) -> Digests {
    digests(&load(path), &()).unwrap()
}
