//! Refinement for one image: the amplification w that the objective likes best, and ratios near the plan's.

use std::path::Path;

use miette::SourceSpan;

use super::{
    SearchError,
    compile::TrialGraph,
    objective::{Drawn, Objective},
};
use crate::{
    diffusion::{
        Pipeline,
        pipeline::{Output, Request},
    },
    observer::Observer,
    plan::{self, AmplifyWeight, Glob, Mask, Plan, PlanSource, Ratio, Rule, Selector},
};

/// How far from the plan's w the sweep goes on both sides.
const REACH: f64 = 0.5;

/// An image that was tried.
#[derive(Debug)]
pub struct Tried {
    /// Its w; 0 is the dense network alone.
    pub weight: f64,
    /// The ratio that was moved in the plan for it.
    pub moved: Option<Moved>,
    /// The mean score of the batch.
    pub score: f64,
    /// The image.
    pub output: Output,
}

/// A plan with one ratio moved.
#[derive(Clone, Debug)]
pub struct Moved {
    /// The weights that the ratio is for: a group of CR-Diff, or globs.
    pub of: String,
    /// The plan's ratio.
    pub from: f64,
    /// The ratio that was tried.
    pub to: f64,
    /// The plan, whose text is the other one's but for the ratio.
    pub plan: Plan,
}

/// The pipeline that draws images and the objective that scores them.
pub struct Drawing<'a> {
    /// The pipeline, with the plan's networks.
    pub pipeline: &'a mut Pipeline,
    /// The request, but for w.
    pub request: &'a Request,
    /// The objective.
    pub objective: &'a mut dyn Objective,
    /// A file for images on their way to a program.
    pub scratch: &'a Path,
}

impl Drawing<'_> {
    fn draw(
        &mut self,
        weight: f64,
        moved: Option<Moved>,
        observer: &dyn Observer,
    ) -> Result<Tried, SearchError> {
        let mut request = self.request.clone();
        request.amplify.weight.value = AmplifyWeight::Constant(weight);
        let output = self.pipeline.run(&request, observer)?;
        let mut sum = 0.0;
        for (image, prompt) in output.images.iter().zip(request.prompt_of_each()) {
            sum += self.objective.score(&Drawn::new(image, prompt, self.scratch))?.score;
        }
        Ok(Tried { weight, moved, score: sum / output.images.len().max(1) as f64, output })
    }
}

/// Returns the weights of a sweep: the dense network, then `count` evenly spaced ones around `center`, which is one of
/// them if their number is odd.
pub fn weights(center: f64, count: usize) -> Vec<f64> {
    let spaced = (0..count).map(|at| match count {
        1 => center,
        _ => center - REACH + 2.0 * REACH * at as f64 / (count - 1) as f64,
    });
    std::iter::once(0.0).chain(spaced).collect()
}

/// Draws at each of `weights` and scores it.
///
/// # Errors
/// [`SearchError`] if an image cannot be drawn or scored.
pub fn sweep(
    drawing: &mut Drawing<'_>,
    weights: &[f64],
    observer: &dyn Observer,
) -> Result<Vec<Tried>, SearchError> {
    weights.iter().map(|weight| drawing.draw(*weight, None, observer)).collect()
}

/// Checks that [`climb`] can move the ratios of `plan`.
///
/// # Errors
/// [`SearchError::Values`] if it has none, or one whose text cannot be replaced.
pub fn check_moves(plan: &Plan, step: f64) -> Result<(), SearchError> {
    let count = ratios(plan).len();
    if count == 0 {
        let name = plan.source.name();
        let what =
            format!("{name}: it has no ratio to move; --refine-ratios is for plans that prune by ratio");
        return Err(SearchError::Values(what));
    }
    (0..count).try_for_each(|index| moved(plan, index, step).and(moved(plan, index, -step)).map(|_| ()))
}

/// Moves each ratio of `plan` by `step`, up and, where that doesn't score better, down; a move that scores better than all
/// before stays for those after it. `from` is the image to better, whose w all of them have. `compile` makes a plan's
/// graph. Gives the images in the order in which they were tried.
///
/// # Errors
/// [`SearchError`] if an image cannot be drawn or scored, or a ratio not be moved ([`check_moves`]).
pub fn climb(
    drawing: &mut Drawing<'_>,
    plan: &Plan,
    from: &Tried,
    step: f64,
    compile: &mut dyn FnMut(&Plan) -> Result<TrialGraph, SearchError>,
    observer: &dyn Observer,
) -> Result<Vec<Tried>, SearchError> {
    let (mut current, mut best, mut tried) = (plan.clone(), from.score, Vec::new());
    for index in 0..ratios(plan).len() {
        for by in [step, -step] {
            let Some(moved) = moved(&current, index, by)? else { continue };
            let graph = compile(&moved.plan)?;
            drawing.pipeline.set_unets(graph.unets.clone());
            let next = drawing.draw(from.weight, Some(moved.clone()), observer)?;
            let is_better = next.score > best;
            best = best.max(next.score);
            tried.push(next);
            if is_better {
                current = moved.plan;
                break;
            }
        }
    }
    Ok(tried)
}

/// A ratio of a plan.
struct RatioAt {
    span: SourceSpan,
    value: f64,
    of: String,
}

/// Returns the ratios that a plan's text has, in the order of the text. One that is for several groups is there once.
fn ratios(plan: &Plan) -> Vec<RatioAt> {
    let mut found: Vec<RatioAt> = Vec::new();
    for rule in &plan.rules {
        let Rule::Prune(rule) = rule else { continue };
        let Mask::Ratio { ratio, .. } = rule.mask else { continue };
        let of = match &rule.weights {
            Selector::CrDiff(group) => group.name().to_string(),
            Selector::Globs(globs) => globs.iter().map(Glob::text).collect::<Vec<_>>().join(", "),
        };
        match found.iter_mut().find(|known| known.span == ratio.span) {
            Some(known) => known.of += &format!(", {of}"),
            None => found.push(RatioAt { span: ratio.span, value: ratio.value.get(), of }),
        }
    }
    found.sort_by_key(|ratio| ratio.span.offset());
    found
}

/// Returns `plan` with one of its ratios moved; `None` where that would be no ratio any more.
fn moved(plan: &Plan, index: usize, by: f64) -> Result<Option<Moved>, SearchError> {
    let all = ratios(plan);
    let Some(RatioAt { span, value: from, of }) = all.get(index) else { return Ok(None) };
    let (span, from) = (*span, *from);
    // As a person would write it: 0.35, not 0.35000000000000003.
    let to = ((from + by) * 1e6).round() / 1e6;
    if Ratio::new(to).is_none() {
        return Ok(None);
    }
    let (name, text) = (plan.source.name(), plan.source.text());
    let cannot = || {
        let line = plan.source.line(span);
        SearchError::Values(format!(
            "{name}:{line}: the ratio {from} cannot be moved by itself; write it out as a number"
        ))
    };
    let before = text.get(..span.offset()).ok_or_else(cannot)?;
    let after = text.get(span.offset() + span.len()..).ok_or_else(cannot)?;
    let text = format!("{before}{to}{after}");
    let source = PlanSource::new(name, &text).in_folder(plan.source.folder());
    let plan = plan::of_source(source).map_err(|_| cannot())?;
    // Others move along where they are aliases of it.
    let is_moved = |(at, (old, new)): (usize, (&RatioAt, &RatioAt))| {
        new.value == if at == index { to } else { old.value }
    };
    let moved = ratios(&plan);
    if moved.len() != all.len() || !all.iter().zip(&moved).enumerate().all(is_moved) {
        return Err(cannot());
    }
    Ok(Some(Moved { of: of.clone(), from, to, plan }))
}

/// Returns which one is the best: the first of those with the highest score.
pub fn best(tried: &[Tried]) -> Option<usize> {
    let scores = tried.iter().map(|tried| tried.score).enumerate();
    scores.reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweep_is_around_the_plan_s_weight() {
        assert_eq!(weights(1.5, 5), [0.0, 1.0, 1.25, 1.5, 1.75, 2.0]);
        assert_eq!(weights(1.2, 1), [0.0, 1.2]);
    }

    #[test]
    fn ratios_move_in_the_plan_s_text() {
        let text = "# mine\nversion: 1\ncrdiff: { down: 0.3, up: .97 } # both\nrules:\n  \
                    - prune: { weights: \"mid_block.**\", ratio: 0.1 }\n";
        let plan = plan::parse("plan.yaml", text).unwrap();
        let found: Vec<_> = ratios(&plan).into_iter().map(|ratio| (ratio.of, ratio.value)).collect();
        assert_eq!(found, [("down".into(), 0.3), ("up".into(), 0.97), ("mid_block.**".into(), 0.1)]);
        let up = moved(&plan, 0, 0.05).unwrap().unwrap();
        assert_eq!((up.from, up.to), (0.3, 0.35));
        assert_eq!(up.plan.source.text(), text.replace("0.3", "0.35"));
        assert!(moved(&plan, 1, 0.05).unwrap().is_none(), "1.02");
        let down = moved(&up.plan, 2, -0.05).unwrap().unwrap();
        assert_eq!(down.plan.source.text(), text.replace("0.3", "0.35").replace("0.1", "0.05"));
    }

    #[test]
    fn a_ratio_for_all_groups_moves_once() {
        let result = r#"{"best_global_params_sd3": {"shared_ratio": 0.25}}"#;
        let plan = plan::parse("best.json", result).unwrap();
        let moved = moved(&plan, 0, -0.05).unwrap().unwrap();
        assert_eq!((ratios(&plan).len(), moved.to), (1, 0.2));
        assert_eq!(moved.plan.source.text(), result.replace("0.25", "0.2"));
    }

    #[test]
    fn a_ratio_that_stands_elsewhere_does_not_move() {
        let text = "version: 1\ncrdiff: { down: &r 0.3, up: *r }\n";
        let plan = plan::parse("plan.yaml", text).unwrap();
        let error = check_moves(&plan, 0.05).unwrap_err().to_string();
        assert_eq!(error, "plan.yaml:2: the ratio 0.3 cannot be moved by itself; write it out as a number");
    }

    #[test]
    fn a_plan_without_ratios_has_nothing_to_move() {
        let text = "version: 1\nrules: [{ bypass: mid_block.attentions.0 }]\n";
        let error = check_moves(&plan::parse("plan.yaml", text).unwrap(), 0.05).unwrap_err().to_string();
        assert!(error.starts_with("plan.yaml: it has no ratio to move"), "{error}");
    }
}
