//! Sizes at which networks cannot run: told before anything is loaded, and those alone that ONNX Runtime refuses.

use std::path::{Path, PathBuf};

use crdiff::{
    diffusion::{
        Pipeline,
        fitting::{Asked, Fitting},
        pipeline::{Request, Unets},
    },
    engine::{Engine, HostTensor, OrtEngine, RtenEngine, Session, SessionOptions},
    plan::{self, Target},
};

use super::support::{Prepared, compile, prepare};
use crate::common::ort::ort_library;

/// The attention at the lower size, half of the latents rounded up.
const BELOW: &str = "mid_block.attentions.0.transformer_blocks.0.attn1";
/// One at the size of the latents.
const ABOVE: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";

fn windows(module: &str, windows: &str) -> String {
    format!("attention: {{ modules: {module}, map: window, windows: {windows} }}")
}

/// Compiles a plan of one rule.
fn compiled(prepared: &Prepared, rule: &str, target: Target) -> PathBuf {
    let plan =
        plan::parse("plan.yaml", &format!("version: 1\nrules: [{{ {rule} }}]\namplify: {{ weight: 1.5 }}"));
    let output = prepared.pruned.with_file_name("sized.onnx");
    compile(&prepared.pipeline, &plan.unwrap(), target, &output);
    output
}

/// Asks for an image of so many pixels, four for each latent.
fn error(prepared: &Prepared, unets: Unets, height: usize, width: usize) -> String {
    let options = SessionOptions::default();
    let mut pipeline = Pipeline::open(&prepared.pipeline, Box::new(RtenEngine), options, unets).unwrap();
    pipeline.run(&Request::new("the cat", height, width), &()).unwrap_err().to_string()
}

#[test]
fn windows_that_do_not_divide_are_named() {
    let prepared = prepare("sd15");
    let halves = compiled(&prepared, &windows(BELOW, "2x2"), Target::Pruned);
    let said = format!(
        "`{BELOW}` has a feature map of 3x2 at 24x16 pixels, which 2x2 windows do not divide: it takes heights and widths \
         that are multiples of 16; try 32x16 pixels"
    );
    assert_eq!(error(&prepared, Unets::WithPruned(halves), 24, 16), said);
    // A graph alone knows it too, in its copies.
    let fused = compiled(&prepared, &windows(BELOW, "2x2"), Target::Fused);
    assert_eq!(error(&prepared, Unets::Instead(fused), 24, 16), said);
    let thirds = compiled(&prepared, &windows(ABOVE, "1x3"), Target::Pruned);
    let said = format!(
        "`{ABOVE}` has a feature map of 6x4 at 24x16 pixels, which 1x3 windows do not divide: it takes heights that are \
         multiples of 4, and widths of 12; try 24x24 pixels"
    );
    assert_eq!(error(&prepared, Unets::WithPruned(thirds), 24, 16), said);
}

#[test]
fn the_sizes_that_are_refused_are_those_that_onnxruntime_refuses() {
    let prepared = prepare("sd15");
    let engine = OrtEngine::open(&ort_library()).unwrap();
    let runs = |session: &mut dyn Session, height: usize, width: usize| {
        let zeros = |dims: &[usize]| HostTensor::new(dims, vec![0f32; dims.iter().product()]).unwrap();
        let timestep = session.inputs().iter().find(|input| input.name == "timestep").unwrap();
        let timestep = HostTensor::new([], vec![0f32]).unwrap().cast(timestep.data_type).unwrap();
        let (sample, context) = (zeros(&[1, 4, height, width]), zeros(&[1, 5, 32]));
        let inputs = [("sample", &sample), ("timestep", &timestep), ("encoder_hidden_states", &context)];
        session.run(&inputs, None).is_ok()
    };
    let check = |path: &Path, rule: &str| {
        let mut session = engine.load(path, &SessionOptions::default()).unwrap();
        let mut found = [0, 0];
        for (height, width) in [3, 4, 6, 12].into_iter().flat_map(|height| [(height, 6), (height, 8)]) {
            let asked = Asked { sample: [1, 4, height, width], tokens: 5, factor: None };
            let fits = Fitting::default().check(path, asked);
            assert_eq!(
                fits.is_ok(),
                runs(&mut *session, height, width),
                "{rule}, {height}x{width}: {fits:?}"
            );
            found[usize::from(fits.is_ok())] += 1;
        }
        assert!(found.into_iter().all(|count| count > 0), "{rule}: {found:?}");
    };
    check(&prepared.pipeline.join("unet/model.onnx"), "none");
    let rules = [
        windows(BELOW, "2x2"),
        windows(ABOVE, "3x1, shift: 0.5"),
        "shrink: { after: down_blocks.0.downsamplers.0, by: 2 }".into(),
        "shrink: { within: mid_block, by: 1.5 }".into(),
        "dilate: { modules: mid_block.resnets.0.conv1, by: 1.5 }".into(),
        "bypass: { modules: [mid_block] }".into(),
    ];
    for rule in rules {
        check(&compiled(&prepared, &rule, Target::Pruned), &rule);
    }
}
