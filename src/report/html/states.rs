//! States of modules on a page: bypassed, masked, shared, changed.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Anatomy;
use crate::{
    report::CompileReport,
    verify::structure::{self, Diff},
};

/// The state of a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Nothing.
    #[default]
    Untouched,
    /// It is bypassed, or lies in a module that is.
    Bypassed,
    /// Weights in it are masked.
    Masked,
    /// It is what it was, but a module in it is bypassed or changed.
    Partly,
    /// Both branches of a fused graph use it, and it is computed once.
    Shared,
    /// Each branch of a fused graph computes it, at least in part.
    Twice,
    /// Only the second model has it.
    Added,
    /// Only the first model has it.
    Removed,
    /// It computes something else: a rule changes it, or both models have it and something in it is different.
    Changed,
    /// Both models have it as it is.
    Same,
}

impl What {
    /// Returns the state that a difference gives its module.
    pub(super) fn of(what: &structure::What) -> Self {
        match what {
            structure::What::ModuleAdded { .. } | structure::What::Added => Self::Added,
            structure::What::ModuleRemoved { .. } | structure::What::Removed => Self::Removed,
            _ => Self::Changed,
        }
    }
}

/// The state of a module in one view.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct State {
    /// The state.
    pub is: What,
    /// How many of its weights are masked.
    #[serde(skip_serializing_if = "is_zero")]
    pub masked: u64,
    /// How many weights the prune rules have in it.
    #[serde(skip_serializing_if = "is_zero")]
    pub weights: u64,
    /// The prune rules that have weights in it, as indices of the report's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<usize>,
    /// The change that it is gone by, as index of the report's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bypass: Option<usize>,
    /// The change that it computes something else by, as index of the report's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<usize>,
    /// The LoRAs that are merged into its weights, as indices of the report's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora: Vec<usize>,
    /// How many modules in it are gone.
    #[serde(skip_serializing_if = "is_zero")]
    pub bypassed_inside: u64,
    /// How many modules in it compute something else.
    #[serde(skip_serializing_if = "is_zero")]
    pub changed_inside: u64,
    /// How many differences there are in it.
    #[serde(skip_serializing_if = "is_zero")]
    pub differences: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// One of two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    First,
    Second,
}

/// Returns the states where nothing was done to any module.
pub(super) fn plain(model: &Anatomy) -> Vec<State> {
    vec![State::default(); model.modules.len()]
}

/// Returns the state of each module after the compilation that `report` is about.
pub(super) fn compiled(model: &Anatomy, report: &CompileReport) -> Vec<State> {
    let mut weights: BTreeMap<&str, State> = BTreeMap::new();
    for (index, rule) in report.prune.iter().enumerate() {
        for tensor in rule.per_tensor.iter().filter(|tensor| !tensor.bypassed) {
            for path in with_parents(&tensor.module) {
                let state = weights.entry(path).or_default();
                state.masked += tensor.zeros;
                state.weights += tensor.weights;
                if state.rules.last() != Some(&index) {
                    state.rules.push(index);
                }
            }
        }
    }
    let mut bypassed: BTreeMap<&str, usize> = BTreeMap::new();
    let mut changed: BTreeMap<&str, usize> = BTreeMap::new();
    let mut inside: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (index, change) in report.changes.iter().enumerate() {
        let of_its_kind = if change.gone { &mut bypassed } else { &mut changed };
        of_its_kind.insert(&change.module, index);
        for path in with_parents(&change.module).skip(1) {
            let (gone, changed) = inside.entry(path).or_default();
            *(if change.gone { gone } else { changed }) += 1;
        }
    }
    let mut merged: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, rule) in report.lora.iter().enumerate() {
        for tensor in &rule.per_tensor {
            merged.entry(&tensor.module).or_default().push(index);
        }
    }
    for path in merged.keys().flat_map(|module| with_parents(module).skip(1)) {
        inside.entry(path).or_default().1 += 1;
    }
    let shared: BTreeSet<&str> =
        report.fused.iter().flat_map(|fused| &fused.modules_shared).map(String::as_str).collect();
    let state = |path: &str| {
        let mut state = weights.get(path).cloned().unwrap_or_default();
        // The outermost: it takes the others with it.
        state.bypass = with_parents(path).filter_map(|path| bypassed.get(path).copied()).last();
        state.change = changed.get(path).copied();
        state.lora = merged.get(path).cloned().unwrap_or_default();
        (state.bypassed_inside, state.changed_inside) = inside.get(path).copied().unwrap_or_default();
        let is_shared = || shared.contains("") || with_parents(path).any(|path| shared.contains(path));
        state.is = match (&state, &report.fused) {
            (State { bypass: Some(_), .. }, _) => What::Bypassed,
            (State { masked: 1.., .. }, _) => What::Masked,
            (State { change: Some(_), .. }, _) => What::Changed,
            (State { lora, .. }, _) if !lora.is_empty() => What::Changed,
            (_, Some(_)) if is_shared() => What::Shared,
            (_, Some(_)) => What::Twice,
            (State { bypassed_inside: 1.., .. } | State { changed_inside: 1.., .. }, None) => What::Partly,
            (_, None) => What::Untouched,
        };
        state
    };
    model.modules.iter().map(|module| state(&module.path)).collect()
}

/// Returns the state of each module of one of two models that were compared.
pub(super) fn compared(model: &Anatomy, diff: &Diff, side: Side) -> Vec<State> {
    let elsewhere = match side {
        Side::First => What::Added,
        Side::Second => What::Removed,
    };
    let mut whole: BTreeMap<&str, What> = BTreeMap::new();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for difference in &diff.differences {
        let what = What::of(&difference.what);
        if what == elsewhere {
            continue;
        }
        if let structure::What::ModuleAdded { .. } | structure::What::ModuleRemoved { .. } = difference.what {
            whole.insert(&difference.module, what);
        }
        for path in with_parents(&difference.module) {
            *counts.entry(path).or_default() += 1;
        }
    }
    let state = |path: &str| {
        let differences = counts.get(path).copied().unwrap_or(0);
        let whole = with_parents(path).find_map(|path| whole.get(path).copied());
        let is = whole.unwrap_or(if differences > 0 { What::Changed } else { What::Same });
        State { is, differences, ..State::default() }
    };
    model.modules.iter().map(|module| state(&module.path)).collect()
}

/// Returns a dotted path and those of the modules around it, from the inside out.
fn with_parents(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| Some(path.rsplit_once('.')?.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        ChangeReport, FusedReport, LoraReport, MergedReport, PruneReport, TensorReport, html::Part,
    };

    fn model(paths: &[&str]) -> Anatomy {
        let part = |path: &&str| Part { path: path.to_string(), ..Part::default() };
        Anatomy { modules: paths.iter().map(part).collect(), ..Anatomy::default() }
    }

    fn tensor(module: &str, zeros: u64, bypassed: bool) -> TensorReport {
        TensorReport { module: module.into(), weights: 10, zeros, bypassed, ..TensorReport::default() }
    }

    #[test]
    fn a_bypass_goes_before_a_mask_and_a_mask_before_sharing() {
        let model = model(&["a", "a.x", "a.x.y", "a.z", "ab", "c"]);
        let rule = PruneReport {
            per_tensor: vec![tensor("a.x.y", 5, true), tensor("a.z", 3, false)],
            ..PruneReport::default()
        };
        let mut report = CompileReport {
            changes: vec![ChangeReport { module: "a.x".into(), gone: true, ..ChangeReport::default() }],
            prune: vec![rule],
            ..CompileReport::default()
        };
        let is = |report: &CompileReport| {
            compiled(&model, report).iter().map(|state| state.is).collect::<Vec<_>>()
        };
        use What::{Bypassed, Changed, Masked, Partly, Shared, Twice, Untouched};
        assert_eq!(is(&report), [Masked, Bypassed, Bypassed, Masked, Untouched, Untouched]);
        let states = compiled(&model, &report);
        assert_eq!((states[0].masked, states[0].weights, states[0].bypassed_inside), (3, 10, 1));
        assert_eq!((states[2].bypass, &states[3].rules), (Some(0), &vec![0]));
        report.fused = Some(FusedReport { modules_shared: vec!["ab".into()], ..FusedReport::default() });
        assert_eq!(is(&report), [Masked, Bypassed, Bypassed, Masked, Shared, Twice]);
        report.prune.clear();
        report.fused = None;
        assert_eq!(is(&report)[0], Partly);
        let merged = |module: &str| MergedReport { module: module.into(), ..MergedReport::default() };
        let per_tensor = vec![merged("a.z"), merged("c")];
        report.lora = vec![LoraReport { per_tensor, ..LoraReport::default() }];
        assert_eq!(is(&report), [Partly, Bypassed, Bypassed, Changed, Untouched, Changed]);
        let states = compiled(&model, &report);
        assert_eq!((states[0].changed_inside, &states[3].lora), (1, &vec![0]));
        report.fused = Some(FusedReport { modules_shared: vec!["c".into()], ..FusedReport::default() });
        assert_eq!(is(&report), [Twice, Bypassed, Bypassed, Changed, Twice, Changed]);
    }
}
