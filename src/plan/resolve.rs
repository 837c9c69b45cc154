//! From paths to ids: what a plan means for one model. All rules are resolved against the model as it came, so their
//! order means nothing, and weights inside a bypassed module still count in their pool.

use miette::SourceSpan;
use rustc_hash::FxHashMap;

use super::{BypassRule, Glob, Mask, Plan, PlanError, PruneRule, Rule, Selector, nearest};
use crate::{
    analysis::{Analysis, modules::ModuleId, skip::Bypass, weights::Weight},
    ir::ValueId,
};

/// A plan whose rules name nodes and tensors of one graph.
#[derive(Clone, Debug)]
pub struct ResolvedPlan {
    /// The modules to bypass, in the order of the graph; each is legal.
    pub bypasses: Vec<ResolvedBypass>,
    /// The weights to mask, one entry a rule; no weight is in two of them.
    pub prunes: Vec<ResolvedPrune>,
}

impl ResolvedPlan {
    /// What takes the place of the outputs of the bypassed modules.
    pub fn skips(&self) -> Skips {
        let mut skips = FxHashMap::default();
        for redirect in self.bypasses.iter().flat_map(|b| &b.bypass.redirects) {
            // A block and the last branch in it end in the same value. The block comes first, and takes the branch
            // with it.
            skips.entry(redirect.from).or_insert(redirect.to);
        }
        Skips(skips)
    }
}

/// What takes the place of the outputs of bypassed modules.
#[derive(Clone, Debug, Default)]
pub struct Skips(FxHashMap<ValueId, ValueId>);

impl Skips {
    /// What is read in place of `value`: itself, unless it is the output of a bypassed module. The skip of one bypassed
    /// module may be the output of another, so they are followed to a value that stays.
    pub fn follow(&self, mut value: ValueId) -> ValueId {
        while let Some(skip) = self.0.get(&value) {
            value = *skip;
        }
        value
    }
}

/// A module to bypass.
#[derive(Clone, Debug)]
pub struct ResolvedBypass {
    /// Its path.
    pub path: String,
    /// The rule that asks for it.
    pub rule: BypassRule,
    /// What to read instead of what.
    pub bypass: Bypass,
}

/// The weights of one prune rule.
#[derive(Clone, Debug)]
pub struct ResolvedPrune {
    /// The rule.
    pub rule: PruneRule,
    /// What it selects, as the plan has it.
    pub selector: String,
    /// The weights, in the order of the graph.
    pub weights: Vec<Weight>,
}

/// Resolves `plan` against an analysed model.
///
/// # Errors
/// [`PlanError`] with everything that is wrong: a selector that matches nothing, a bypass that is not legal, weights
/// that cannot be masked, a weight that two rules mask.
pub fn resolve(plan: &Plan, analysis: &Analysis<'_>) -> Result<ResolvedPlan, PlanError> {
    let mut resolver =
        Resolver { plan, analysis, errors: Vec::new(), bypasses: Vec::new(), prunes: Vec::new() };
    for rule in &plan.rules {
        match rule {
            Rule::Bypass(rule) => resolver.bypass(rule),
            Rule::Prune(rule) => resolver.prune(rule),
        }
    }
    resolver.refuse_overlaps();
    let Resolver { errors, mut bypasses, prunes, .. } = resolver;
    bypasses.sort_by_key(|b| b.bypass.module);
    match PlanError::combine(errors) {
        Some(error) => Err(error),
        None => Ok(ResolvedPlan { bypasses, prunes }),
    }
}

struct Resolver<'a> {
    plan: &'a Plan,
    analysis: &'a Analysis<'a>,
    errors: Vec<PlanError>,
    bypasses: Vec<ResolvedBypass>,
    prunes: Vec<ResolvedPrune>,
}

impl Resolver<'_> {
    fn bypass(&mut self, rule: &BypassRule) {
        let Selector::Globs(globs) = &rule.modules else { return };
        for glob in globs {
            let modules = self.modules(glob);
            if modules.is_empty() {
                self.no_module(glob);
            }
            for module in modules {
                self.bypass_module(rule, glob.span(), module);
            }
        }
    }

    /// The modules that `glob` means: the one that it names, or the blocks among those that it matches.
    fn modules(&self, glob: &Glob) -> Vec<ModuleId> {
        if let Some(module) = self.analysis.modules.named(glob.text()) {
            return vec![module];
        }
        let matched =
            self.analysis.modules.iter().filter(|(_, m)| m.kind.is_block() && glob.matches(&m.path));
        matched.map(|(id, _)| id).collect()
    }

    fn no_module(&mut self, glob: &Glob) {
        let paths = || self.analysis.modules.iter().map(|(_, m)| m);
        let mut near = nearest(glob.text(), paths().filter(|m| m.kind.is_block()).map(|m| m.path.as_str()));
        if near.is_empty() {
            near = nearest(glob.text(), paths().map(|m| m.path.as_str()));
        }
        self.errors.push(PlanError::no_match(&self.plan.source, glob.span(), glob.text(), &near));
    }

    fn bypass_module(&mut self, rule: &BypassRule, at: SourceSpan, module: ModuleId) {
        let path = &self.analysis.modules.get(module).path;
        if let Some(known) = self.bypasses.iter().find(|b| b.bypass.module == module) {
            if known.rule.via != rule.via {
                let reason = "another rule bypasses it by another way";
                self.errors.push(PlanError::illegal_bypass(&self.plan.source, at, path, reason, None));
            }
            return;
        }
        match self.analysis.bypass(module, rule.via) {
            Ok(bypass) => {
                self.bypasses.push(ResolvedBypass { path: path.clone(), rule: rule.clone(), bypass });
            }
            Err(illegal) => {
                let help = self.instead(module);
                self.errors.push(PlanError::illegal_bypass(&self.plan.source, at, path, illegal, help));
            }
        }
    }

    /// What could be bypassed instead of `module`.
    fn instead(&self, module: ModuleId) -> Option<String> {
        const SHOWN: usize = 6;
        let path = |id: &ModuleId| format!("`{}`", self.analysis.modules.get(*id).path);
        let inside = self.analysis.bypassable_within(module);
        if inside.is_empty() {
            let around = std::iter::successors(self.analysis.modules.get(module).parent, |m| {
                self.analysis.modules.get(*m).parent
            });
            let around = around.into_iter().find(|m| self.analysis.is_candidate(*m))?;
            return Some(format!("{} around it can be bypassed", path(&around)));
        }
        let mut names = inside.iter().take(SHOWN).map(path).collect::<Vec<_>>().join(", ");
        if inside.len() > SHOWN {
            names.push_str(&format!(" and {} more", inside.len() - SHOWN));
        }
        Some(format!("these modules in it can be bypassed: {names}"))
    }

    fn prune(&mut self, rule: &PruneRule) {
        let selector = match &rule.weights {
            Selector::Globs(globs) => {
                for glob in globs {
                    self.check_weights(glob.span(), glob.text(), |path| glob.matches(path));
                }
                globs.iter().map(Glob::text).collect::<Vec<_>>().join(", ")
            }
            Selector::CrDiff(group) => {
                let text = format!("crdiff.{}", group.name());
                self.check_weights(rule.span, &text, |path| group.targets(path));
                text
            }
        };
        let selected = self.analysis.weights.editable.iter().filter(|w| rule.weights.matches(&w.path));
        let mut weights: Vec<Weight> = selected.cloned().collect();
        if let Mask::Pattern(pattern) = rule.mask {
            let of = i64::from(pattern.value.of());
            let odd = weights.iter().filter(|w| w.input_len() % of != 0);
            for weight in odd {
                let reason = format!(
                    "its {} inputs cannot be divided into groups of {of}, as the pattern needs",
                    weight.input_len()
                );
                self.errors.push(PlanError::not_editable(
                    &self.plan.source,
                    pattern.span,
                    &weight.path,
                    reason,
                ));
            }
        }
        weights.shrink_to_fit();
        self.prunes.push(ResolvedPrune { rule: rule.clone(), selector, weights });
    }

    /// Reports a selector that matches no weight, or weights that cannot be masked.
    fn check_weights(&mut self, at: SourceSpan, text: &str, matches: impl Fn(&str) -> bool) {
        let source = &self.plan.source;
        let blocked: Vec<_> = self.analysis.weights.blocked.iter().filter(|b| matches(&b.path)).collect();
        if let Some(first) = blocked.first() {
            let more = match blocked.len() {
                1 => String::new(),
                n => format!(" ({} more like it)", n - 1),
            };
            let reason = format!("{}{more}", first.reason);
            self.errors.push(PlanError::not_editable(source, at, &first.path, reason));
        } else if !self.analysis.weights.editable.iter().any(|w| matches(&w.path)) {
            let near = nearest(text, self.analysis.weights.editable.iter().map(|w| w.path.as_str()));
            self.errors.push(PlanError::no_match(source, at, text, &near));
        }
    }

    fn refuse_overlaps(&mut self) {
        let mut owners: FxHashMap<&str, SourceSpan> = FxHashMap::default();
        let mut refused: Vec<(SourceSpan, SourceSpan)> = Vec::new();
        for prune in &self.prunes {
            for weight in &prune.weights {
                let owner = *owners.entry(&weight.path).or_insert(prune.rule.span);
                let pair = (owner, prune.rule.span);
                if owner != prune.rule.span && !refused.contains(&pair) {
                    refused.push(pair);
                    self.errors.push(PlanError::overlap(&self.plan.source, pair.0, pair.1, &weight.path));
                }
            }
        }
    }
}
