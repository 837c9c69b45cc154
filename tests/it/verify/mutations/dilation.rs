//! Convolutions that are not dilated as the plan says.

use crdiff::compile::Target;

use super::*;

const DILATE: &str = "version: 1\nrules:\n  - dilate: { modules: \"up_blocks.0.**.conv{1,2}\", by: 2 }\n";
const OTHER: &str = "/up_blocks.1/resnets.0/conv1/Conv";

/// Gives a convolution other dilations and pads.
fn set(m: &mut ModelProto, of: &str, dilations: [i64; 2], pads: [i64; 4]) {
    attribute(m, of, "dilations").ints = dilations.to_vec();
    attribute(m, of, "pads").ints = pads.to_vec();
}

#[test]
fn dilated_convolutions() {
    let bench = Bench::of(DILATE);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    for (name, message, dilations, pads) in [
        ("3 for 2", "`dilations` = [3, 3], expected [2, 2]", [3, 3], [3; 4]),
        ("along one axis", "`dilations` = [2, 1], expected [2, 2]", [2, 1], [2, 1, 2, 1]),
        ("one too few", "`dilations` = [1, 1], expected [2, 2]", [1, 1], [1; 4]),
        ("pads as they were", "`pads` = [1, 1, 1, 1], expected [2, 2, 2, 2]", [2, 2], [1; 4]),
        ("pads off by one", "`pads` = [2, 2, 2, 1], expected [2, 2, 2, 2]", [2, 2], [2, 2, 2, 1]),
    ] {
        let first = bench.find(name, message, CONV1_PATH, |m| set(m, CONV1, dilations, pads));
        assert!(first.rule.is_some(), "{name}: the rule is not named");
    }
    bench.find("one too many", "`dilations` = [2, 2], expected [1, 1]", "up_blocks.1.resnets.0.conv1", |m| {
        set(m, OTHER, [2, 2], [2; 4]);
    });
    bench.find("no dilations", "no attribute `dilations`, expected [2, 2]", CONV1_PATH, |m| {
        node(m, CONV1).attribute.retain(|a| a.name() != "dilations");
    });
    bench.find("another stride", "`strides` = [2, 2], expected [1, 1]", CONV1_PATH, |m| {
        attribute(m, CONV1, "strides").ints = vec![2, 2];
    });
}

#[test]
fn the_wrong_copy_of_a_convolution_dilated() {
    let mut bench = Bench::of(DILATE);
    let fused = bench.model.compile_to(Target::Fused, &bench.plan, Weights::Copy).unwrap();
    bench.compiled = decode(&fused);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    let copy = format!("{CONV1}_pruned");
    bench.find("both", "", CONV1_PATH, |m| set(m, CONV1, [2, 2], [2; 4]));
    bench.find("neither", "", CONV1_PATH, |m| set(m, &copy, [1, 1], [1; 4]));
    bench.find("the dense one", "", CONV1_PATH, |m| {
        set(m, CONV1, [2, 2], [2; 4]);
        set(m, &copy, [1, 1], [1; 4]);
    });
}
