//! Comparison of every pair of tensors that a walk found: most by a pass over their bytes, the pools of ratios by
//! [`threshold_check`] where it can tell.

use std::ops::Range;

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Proof, Violation,
    explain::{self, Names},
    masks::{self, Expected},
    merges::Merges,
    tensors::{self, Comparison},
    threshold_check, value,
    walk::{Reader, TensorPair, Walk},
};
use crate::{
    analysis::weights::Weight,
    ir::{Origin, WeightReader},
    observer::Progress,
    onnx::OnnxError,
    rules::{Mask, WeightEdit},
};

/// The masks and readers by which pairs are compared.
pub(super) struct Pairs<'a, 'g> {
    pub names: &'a Names<'a, 'g>,
    /// The rule of each mask, and the weight's index in it.
    pub masks: &'a [(usize, usize)],
    /// The sums that are added to weights.
    pub merges: &'a Merges<'a>,
    /// The factor on masked weights of the other network, from the scale of their rule.
    pub factor: &'a (dyn Fn(f64) -> f64 + Sync),
    /// Told how many bytes were read.
    pub progress: Progress<'a>,
}

/// The elements that a tensor must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Wanted {
    /// The original's elements, with the sums of LoRAs where there are any.
    Original,
    /// Those, masked.
    Masked(Expected),
    /// Those, masked; it does.
    Proven,
}

/// Weights of one rule whose masks depend on each other, at least one of which is in the compiled graph.
struct RankedPool<'a> {
    edit: &'a WeightEdit,
    /// Whether it is masked in both networks.
    always: bool,
    /// Which of the rule's weights.
    range: Range<usize>,
    /// The mask of each of them, and the pairs that have it.
    weights: Vec<(usize, Vec<TensorPair>)>,
}

impl Pairs<'_, '_> {
    /// Compares the tensors of `walk`.
    ///
    /// # Errors
    /// [`OnnxError`] if elements cannot be read.
    pub fn compare_all(&self, walk: &Walk, differences: &mut Vec<Violation>) -> Result<Proof, OnnxError> {
        let wanted = self.wanted(walk)?;
        let mut known = FxHashSet::default();
        let mut jobs = Vec::new();
        for (pair, reader) in &walk.tensors {
            let mask = pair.edited.mask();
            let wanted = mask.and_then(|mask| wanted.get(&mask)).copied().unwrap_or(Wanted::Original);
            if known.insert((pair.compiled, pair.original, pair.edited.sums(), wanted)) {
                jobs.push((pair, *reader, wanted));
            }
        }
        let results: Vec<_> = jobs
            .par_iter()
            .map(|(pair, reader, wanted)| self.compare(pair, *reader, *wanted))
            .collect::<Result<_, _>>()?;
        let mut proof = Proof::default();
        for ((pair, _, wanted), (comparison, difference)) in jobs.iter().zip(results) {
            match comparison {
                Comparison::Shared => proof.shared += 1,
                Comparison::Equal if *wanted != Wanted::Original => proof.masked += 1,
                Comparison::Equal if pair.edited.sums().is_some() => proof.merged += 1,
                Comparison::Equal => proof.identical += 1,
                Comparison::Unequal(_) => {}
            }
            differences.extend(difference);
        }
        Ok(proof)
    }

    /// Returns the elements that the tensors of each mask must hold.
    fn wanted(&self, walk: &Walk) -> Result<FxHashMap<usize, Wanted>, OnnxError> {
        let pools = self.pools(walk);
        let mut claims = Vec::new();
        for (index, pool) in pools.iter().enumerate() {
            claims.extend(self.claim(pool)?.map(|claim| (index, claim)));
        }
        let (of, claims): (Vec<usize>, Vec<threshold_check::PoolCheck>) = claims.into_iter().unzip();
        let found = threshold_check::proven(&claims, self.progress)?;
        let proven: FxHashSet<usize> =
            of.into_iter().zip(found).filter_map(|(pool, is_right)| is_right.then_some(pool)).collect();
        let mut wanted = FxHashMap::default();
        for (index, pool) in pools.iter().enumerate() {
            let masks = pool.weights.iter().map(|(mask, _)| *mask);
            if proven.contains(&index) {
                wanted.extend(masks.map(|mask| (mask, Wanted::Proven)));
                continue;
            }
            let elements = |weight: &Weight| self.elements_of(weight);
            let expected =
                masks::expected(pool.edit, pool.range.clone(), self.factor(pool), elements, self.progress)?;
            let masked = masks.zip(expected);
            wanted.extend(masked.filter_map(|(mask, expected)| Some((mask, Wanted::Masked(expected?)))));
        }
        Ok(wanted)
    }

    fn pools(&self, walk: &Walk) -> Vec<RankedPool<'_>> {
        let mut pairs: FxHashMap<usize, Vec<TensorPair>> = FxHashMap::default();
        let mut known = FxHashSet::default();
        for (pair, _) in &walk.tensors {
            if let (Some(mask), true) = (pair.edited.mask(), known.insert(*pair)) {
                pairs.entry(mask).or_default().push(*pair);
            }
        }
        let mut pools = Vec::new();
        let mut first = 0;
        let always = self.names.edits.always.weights().count();
        for (index, edit) in self.names.edits.weights().enumerate() {
            for range in masks::pools(edit) {
                let mask = |weight: usize| first + weight;
                let weights: Vec<_> = range
                    .clone()
                    .map(|weight| (mask(weight), pairs.remove(&mask(weight)).unwrap_or_default()))
                    .collect();
                if weights.iter().any(|(_, pairs)| !pairs.is_empty()) {
                    pools.push(RankedPool { edit, always: index < always, range, weights });
                }
            }
            first += edit.weights.len();
        }
        pools
    }

    /// Returns the claim of `pool`; `None` if it is not of a ratio, or has a form that cannot be checked as one.
    fn claim(&self, pool: &RankedPool<'_>) -> Result<Option<threshold_check::PoolCheck>, OnnxError> {
        let Mask::Ratio { ratio, ties, .. } = pool.edit.mask else { return Ok(None) };
        let scale = masks::scale(pool.edit, self.factor(pool));
        let mut members = Vec::with_capacity(pool.weights.len());
        for (weight, (_, pairs)) in
            pool.edit.weights.get(pool.range.clone()).into_iter().flatten().zip(&pool.weights)
        {
            let original = self.elements_of(weight)?;
            let form = match pairs.as_slice() {
                [] => threshold_check::Form::Gone,
                [pair] => match self.form(weight, pair, scale)? {
                    Some(form) => form,
                    None => return Ok(None),
                },
                _ => return Ok(None),
            };
            members.push(threshold_check::Member { original, float: masks::float_of(weight)?, form });
        }
        let n = members.iter().map(|m| m.original.len() / m.float.size() as u64).sum();
        let k = masks::rank(n, ratio.value.get());
        Ok((k > 0).then_some(threshold_check::PoolCheck { members, k, ties, scale }))
    }

    /// Returns the elements of `weight` before they are masked.
    fn elements_of(&self, weight: &Weight) -> Result<WeightReader, OnnxError> {
        self.merges.merged_weight(weight, masks::elements_of(self.names.original.graph, weight)?)
    }

    fn factor(&self, pool: &RankedPool<'_>) -> &(dyn Fn(f64) -> f64 + Sync) {
        if pool.always { &|scale| scale } else { self.factor }
    }

    fn form(
        &self,
        weight: &Weight,
        pair: &TensorPair,
        scale: f32,
    ) -> Result<Option<threshold_check::Form>, OnnxError> {
        let (original, compiled) = (self.names.original.graph, self.names.compiled.graph);
        if original.value(pair.original).origin != Origin::Initializer(weight.initializer) {
            return Ok(None);
        }
        let (wanted, found) =
            (value::tensor(original, pair.original)?, value::tensor(compiled, pair.compiled)?);
        let Some(mask) = found.mask else { return Ok(Some(threshold_check::Form::Stored(found.elements))) };
        if scale != 0.0 {
            return Ok(None);
        }
        let shared = tensors::is_same_range(&wanted.elements, &found.elements)?;
        Ok(Some(threshold_check::Form::Computed { t: mask.t, copy: (!shared).then_some(found.elements) }))
    }

    fn compare(
        &self,
        pair: &TensorPair,
        reader: Reader,
        wanted: Wanted,
    ) -> Result<(Comparison, Option<Violation>), OnnxError> {
        let (original, compiled) = (self.names.original.graph, self.names.compiled.graph);
        let (plain, found) =
            (value::tensor(original, pair.original)?, value::tensor(compiled, pair.compiled)?);
        let sums = pair.edited.sums();
        let mut tensor = plain.clone();
        if let Some(sums) = sums {
            tensor.elements = self.merges.merged(sums, tensor.elements)?;
        }
        let (comparison, expected) = match wanted {
            Wanted::Proven => (Comparison::Equal, None),
            Wanted::Original => (tensors::compare(&tensor, &found, None, self.progress)?, None),
            Wanted::Masked(expected) => {
                (tensors::compare(&tensor, &found, Some(expected), self.progress)?, Some(expected))
            }
        };
        let mut difference = Violation {
            module: self.names.module_of(reader),
            expected: Some(explain::describe(original, pair.original)),
            found: Some(explain::describe(compiled, pair.compiled)),
            tensor: Some(found.name.clone()),
            rule: self.names.rule_of(reader),
            rank: self.names.rank_of(reader),
            ..Violation::default()
        };
        let (_, reads) = self.names.reader(reader);
        if let Some(merge) = sums.and_then(|sums| self.merges.first(sums)) {
            difference.module = Some(merge.weight.path.clone());
            difference.rule = self.names.merge_rule(merge);
        }
        let masked = pair.edited.mask().and_then(|mask| self.masks.get(mask));
        if let Some((edit, weight)) = masked
            && let Some((change, edit)) = self.names.weight_edit(*edit)
        {
            difference.module = edit.weights.get(*weight).map(|w| w.path.clone());
            difference.rule = Some(change.span);
        }
        // A tensor that a caller feeds instead would be masked too.
        let masked_too = wanted == Wanted::Original && found.input.is_some() && tensor.mask != found.mask;
        let overridable = tensor.input != found.input || masked_too;
        let Comparison::Unequal(unequal) = &comparison else {
            difference.message = match (&tensor.input, &found.input) {
                (Some(name), Some(_)) => format!("{reads} masks whatever is fed to the input `{name}`"),
                (Some(name), _) => format!("{reads} can no longer be overridden by the input `{name}`"),
                (None, Some(name)) => format!("{reads} can be overridden by the input `{name}`"),
                (None, None) => String::new(),
            };
            return Ok((comparison, overridable.then_some(difference)));
        };
        let what = match &difference.module {
            Some(path) if expected.is_some() => format!("the masked weight of `{path}`"),
            Some(path) if sums.is_some() => format!("the merged weight of `{path}`"),
            _ => reads,
        };
        let holds = |tensor| -> Result<bool, OnnxError> {
            Ok(!matches!(tensors::compare(tensor, &found, None, self.progress)?, Comparison::Unequal(_)))
        };
        difference.message = if sums.is_some() && holds(&plain)? {
            format!("{what} is not merged: `{}` holds the original's elements", found.name)
        } else if expected.is_some() && holds(&tensor)? {
            format!("{what} is not masked: `{}` holds the elements before the mask", found.name)
        } else {
            let more = match unequal.count {
                1 => String::new(),
                n => format!(" ({n} elements differ)"),
            };
            let (element, is, must) = (unequal.element, &unequal.found, &unequal.expected);
            format!("{what}: element {element} of `{}` is {is}, expected {must}{more}", found.name)
        };
        difference.element = Some(unequal.element);
        difference.values = Some((unequal.expected.clone(), unequal.found.clone()));
        let threshold = expected.and_then(|e| e.threshold());
        difference.help = threshold.map(|t| format!("weights with magnitudes up to {t:?} are masked"));
        Ok((comparison, Some(difference)))
    }
}
