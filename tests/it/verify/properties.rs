//! No false alarms: random legal plans, compiled, are proven.

use std::cell::Cell;

use crdiff::{
    analysis::Analysis,
    compile::{CompileError, Target},
    plan::Via,
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::support::{Model, Weights, plan, verdict};

/// Compiles and verifies `cases` plans of random bypasses, prune rules, temperatures and FreeU.
fn check(model: &str, cases: u32) {
    let copy = Model::copy(model);
    let graph = copy.load();
    let analysis = Analysis::of(&graph);
    let candidates = analysis.modules.iter().filter(|(id, _)| analysis.is_candidate(*id));
    let bypassable: Vec<String> = candidates.map(|(_, module)| module.path.clone()).collect();
    assert!(analysis.bypass(analysis.modules.named("mid_block").unwrap(), Via::Shortcut).is_ok());
    let prunable: Vec<String> = analysis.weights.editable.iter().map(|weight| weight.path.clone()).collect();
    let attentions = analysis.attentions.all.iter().map(|a| a.module(&analysis.modules));
    let attentions: Vec<String> = attentions.map(|id| analysis.modules.get(id).path.clone()).collect();
    let mask = prop_oneof![
        (0.0..0.95f64).prop_map(|r| format!("ratio: {r}")),
        (0.0..0.95f64).prop_map(|r| format!("ratio: {r}, pool: tensor")),
        (0.0..0.95f64).prop_map(|r| format!("ratio: {r}, ties: exact")),
        (0.0..0.95f64, -2.0..2.0f64).prop_map(|(r, s)| format!("ratio: {r}, scale: {s}")),
        (0.0..0.3f64).prop_map(|t| format!("threshold: {t}")),
        Just("pattern: \"2:4\"".to_string()),
    ];
    let most = bypassable.len() / 2;
    let rules = (
        proptest::sample::subsequence(bypassable, 0..=most),
        proptest::sample::subsequence(prunable.clone(), 0..=prunable.len() / 2),
        proptest::collection::vec(mask, 2),
        proptest::sample::subsequence(attentions, 0..=3),
        any::<[bool; 3]>(),
    );
    let mut runner = TestRunner::new_with_rng(
        Config { cases, failure_persistence: None, ..Config::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let (legal, masked) = (Cell::new(0), Cell::new(0));
    let result = runner.run(&rules, |(bypasses, weights, masks, attentions, [share, freeu, fused])| {
        let mut text = String::from("version: 1\n");
        if freeu {
            text.push_str("always: [{ freeu: { backbone: [1.5], skip: [0.2] } }]\n");
        }
        let without_rules = text.clone();
        text.push_str("rules:\n");
        if !attentions.is_empty() {
            let paths = attentions.join(", ");
            text.push_str(&format!(
                "  - temperature: {{ modules: [{paths}], factor: 0.5, output_factor: 2 }}\n"
            ));
        }
        for path in &bypasses {
            text.push_str(&format!("  - bypass: {path}\n"));
        }
        for (weights, mask) in weights.chunks(weights.len().div_ceil(2).max(1)).zip(&masks) {
            text.push_str(&format!("  - prune: {{ weights: [{}], {mask} }}\n", weights.join(", ")));
        }
        if bypasses.is_empty() && weights.is_empty() && attentions.is_empty() {
            text = without_rules;
        }
        let plan = plan(&text);
        let policy = if share { Weights::Share } else { Weights::Copy };
        let target = if fused && !plan.rules.is_empty() { Target::Fused } else { Target::Pruned };
        let compiled = match copy.compile_to(target, &plan, policy) {
            Ok(compiled) => compiled,
            // A layer whose inputs a pattern does not divide.
            Err(CompileError::Plan(_)) => return Err(TestCaseError::reject("not legal")),
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        let verdict = verdict(&copy.path(), &compiled, &plan);
        prop_assert!(verdict.is_proven(), "{text}{:#?}", verdict.differences);
        legal.set(legal.get() + 1);
        masked.set(masked.get() + verdict.proof.masked);
        Ok(())
    });
    result.unwrap();
    assert!(legal.get() >= cases && masked.get() > 0, "{legal:?} plans, {masked:?} masked tensors");
}

#[test]
fn torchscript() {
    check("sd15-mini/torchscript", 80);
}

#[test]
fn dynamo() {
    check("sd15-mini/dynamo", 40);
}

#[test]
fn without_folding() {
    check("sd15-mini/nofold", 40);
}

#[test]
fn half_precision() {
    check("sd15-mini/torchscript-fp16", 40);
}
