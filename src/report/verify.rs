//! A verification as an [`Outcome`].

use super::{
    outcome::{Finding, Outcome, PlanLocation, Severity},
    text::{bytes, count},
};
use crate::{
    plan::PlanSource,
    verify::conformance::{Verdict, Violation},
};

/// Returns the outcome of verifying the file `compiled` against `original`.
pub fn outcome(original: &str, compiled: &str, plan: &PlanSource, verdict: &Verdict) -> Outcome {
    let proof = &verdict.proof;
    let number = |what: &str, n: usize| (what.to_string(), count(n as u64));
    let notes = verdict.notes.iter().map(|note| Finding {
        message: note.clone(),
        severity: Severity::Note,
        ..Finding::default()
    });
    Outcome {
        command: "verify".into(),
        subject: compiled.to_string(),
        holds: verdict.is_proven(),
        verdict: if verdict.is_proven() { "proven" } else { "not proven" }.into(),
        summary: vec![
            ("original".into(), original.to_string()),
            ("plan".into(), plan.name().to_string()),
            ("form".into(), verdict.form.describe()),
            number("nodes matched", proof.nodes),
            number("tensors shared with the original's files", proof.shared),
            number("tensors identical", proof.identical),
            number("tensors masked as the plan says", proof.masked),
            number("tensors merged as the plan says", proof.merged),
            ("weights read".into(), bytes(proof.bytes_read)),
            ("time".into(), format!("{:.2} s", proof.elapsed.as_secs_f64())),
        ],
        findings: verdict.differences.iter().map(|d| finding(plan, d)).chain(notes).collect(),
    }
}

/// Says first that the compiled file is the original, byte for byte, if that is not what the plan comes to.
pub fn say_untouched(outcome: &mut Outcome) {
    if !outcome.holds {
        let message = "the plan was not applied: the model is the original, byte for byte".to_string();
        outcome.findings.insert(0, Finding { message, ..Finding::default() });
    }
}

fn finding(plan: &PlanSource, difference: &Violation) -> Finding {
    let node = match (&difference.found, &difference.expected) {
        (Some(found), Some(expected)) if found != expected => {
            Some(format!("{found}; in the original {expected}"))
        }
        (found, expected) => found.as_ref().or(expected.as_ref()).cloned(),
    };
    Finding {
        message: difference.message.clone(),
        severity: Severity::Error,
        module: difference.module.clone(),
        node,
        tensor: difference.tensor.clone(),
        plan: difference.rule.map(|span| PlanLocation::of(plan, span)),
        help: difference.help.clone(),
    }
}
