//! Long work is heard of, and stops where it is told to.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use crdiff::{
    compile::{CompileError, Job, compile_file},
    ir::Graph,
    observer::{Event, Observer, Stage},
    onnx::{self, OnnxError, WeightPolicy},
    plan,
    verify::{
        conformance::{VerifyError, verify},
        structure::{WeightComparison, diff, digests},
    },
};

use crate::common::observer::Hears;

const PLAN: &str = "version: 1\nrules: [{ prune: { weights: [mid_block.**], ratio: 0.3 } }]";

fn load(path: &Path) -> Graph {
    Graph::load(onnx::open(path).unwrap()).unwrap()
}

/// The stages that work tells of when it is let go on. It stops at once where it is told to at the first bytes of any of
/// them, and where it was told to before.
fn stages<T>(work: impl Fn(&dyn Observer) -> Result<T, bool>) -> Vec<Stage> {
    let heard = Mutex::new(Vec::new());
    let all = Hears::new(|event| {
        let Event::Bytes(stage, bytes) = event else { panic!("{event:?}") };
        let mut heard = heard.lock().unwrap();
        if bytes > 0 && !heard.contains(&stage) {
            heard.push(stage);
        }
        false
    });
    assert!(work(&all).is_ok());
    let heard = heard.into_inner().unwrap();
    for stage in &heard {
        let told = AtomicBool::new(false);
        let first = Hears::new(|event| {
            assert!(matches!(event, Event::Bytes(..)));
            let is_first = matches!(event, Event::Bytes(other, 1..) if other == *stage);
            told.fetch_or(is_first, Ordering::Relaxed);
            is_first
        });
        assert!(matches!(work(&first), Err(true)), "{stage:?}");
        assert!(told.into_inner());
    }
    assert!(matches!(work(&AtomicBool::new(true)), Err(true)));
    heard
}

#[test]
fn each_stage_is_heard_of_and_can_be_stopped() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sd15-mini/torchscript/unet.onnx");
    let plan = plan::parse("plan", PLAN).unwrap();
    let work = tempfile::tempdir().unwrap();
    let output = work.path().join("out.onnx");
    let job = Job::new(&model, &plan).output(&output).weights(WeightPolicy::Copy);
    let compiling = stages(|observer| {
        std::fs::remove_file(&output).ok();
        let result = compile_file(&job, observer);
        assert_eq!(output.exists(), result.is_ok());
        result.map_err(|error| matches!(error, CompileError::Stopped))
    });
    assert_eq!(compiling, [Stage::Ranking, Stage::Writing]);
    compile_file(&job, &()).unwrap();

    let (original, compiled) = (load(&model), load(&output));
    let proving = stages(|observer| {
        let verdict = verify(&original, &compiled, &plan, None, observer);
        verdict
            .map(|verdict| assert!(verdict.is_proven()))
            .map_err(|error| matches!(error, VerifyError::Stopped))
    });
    assert_eq!(proving, [Stage::Checking]);
    let is_stop = |error| matches!(error, OnnxError::Stopped);
    let comparing =
        stages(|observer| diff(&original, &compiled, WeightComparison::Compared, observer).map_err(is_stop));
    assert_eq!(comparing, [Stage::Comparing]);
    assert_eq!(stages(|observer| digests(&original, observer).map_err(is_stop)), [Stage::Digesting]);
}
