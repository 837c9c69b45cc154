//! Parts of a network that are not at the size that the plan says, or not by its filter.

use crdiff::onnx::proto::attribute_proto::AttributeType;

use super::*;

const SHRINK: &str = "version: 1\nrules:\n  - shrink: { after: down_blocks.0.attentions.0, by: 2 }\n";
const MODULE: &str = "down_blocks.0.attentions.0";
const FRACTION: &str =
    "version: 1\nrules:\n  - dilate: { modules: \"up_blocks.0.resnets.0.conv1\", by: 1.5 }\n";
const CONV1: &str = "/up_blocks.0/resnets.0/conv1/Conv";

/// The names of the nodes that make a part smaller, and larger again.
fn both(m: &mut ModelProto) -> (String, String) {
    let resizes = graph(m).node.iter().filter(|n| n.name().starts_with(&format!("{MODULE}/shrink/Resize")));
    let mut names: Vec<String> = resizes.map(|n| n.name().to_owned()).collect();
    names.sort();
    assert_eq!(names.len(), 2);
    (names.remove(0), names.remove(0))
}

#[test]
fn parts_at_another_size() {
    let bench = Bench::of(SHRINK);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    let node_of = |operator: &str| format!("{MODULE}/shrink/{operator}");
    for (name, attributes, filter) in [
        ("linear for cubic", "mode", "linear"),
        ("nearest for cubic", "mode", "nearest"),
        ("corners aligned", "coordinate_transformation_mode", "align_corners"),
    ] {
        for back in [false, true] {
            bench.find(name, &format!("`{attributes}`"), MODULE, |m| {
                let (there, again) = both(m);
                let of = if back { again } else { there };
                attribute(m, &of, attributes).s = Some(filter.into());
            });
        }
    }
    bench.find("another cubic", "`cubic_coeff_a` = -0.5, expected -0.75", MODULE, |m| {
        let (there, _) = both(m);
        attribute(m, &there, "cubic_coeff_a").f = Some(-0.5);
    });
    bench.find("smoothed", "", MODULE, |m| {
        let (there, _) = both(m);
        let smooth = AttributeProto {
            name: Some("antialias".into()),
            r#type: Some(AttributeType::Int as i32),
            i: Some(1),
            ..AttributeProto::default()
        };
        node(m, &there).attribute.push(smooth);
    });
    // Numbers of the template are shared: the ends of slices.
    for (name, of, slice, slot) in
        [("a third of the size", "Div", "Slice", 2), ("rounded down", "Add", "Slice_3", 1)]
    {
        bench.find(name, "", MODULE, |m| {
            let number = node(m, &node_of(slice)).input[slot].clone();
            node(m, &node_of(of)).input[1] = number;
        });
    }
    bench.find("height for width", "", MODULE, |m| {
        let height = node(m, &node_of("Concat")).input[1].clone();
        node(m, &node_of("Concat")).input[2] = height;
    });
    bench.find("the size of the part for that of the skip", "", MODULE, |m| {
        let (_, again) = both(m);
        let (small, sizes) = (node(m, &again).input[0].clone(), node(m, &again).input[3].clone());
        let concat = graph(m).node.iter().find(|n| n.output[0] == sizes).unwrap().name().to_owned();
        for at in [1, 2] {
            let slice = node(m, &concat).input[at].clone();
            let shape = graph(m).node.iter().find(|n| n.output[0] == slice).unwrap().input[0].clone();
            let shape = graph(m).node.iter_mut().find(|n| n.output[0] == shape).unwrap();
            shape.input[0].clone_from(&small);
        }
    });
    bench.find("the skip for the part", "", MODULE, |m| {
        let (there, again) = both(m);
        let skip = node(m, &there).input[0].clone();
        node(m, &again).input[0] = skip;
    });
    bench.find("not made smaller", "does not run at another size", MODULE, |m| {
        let (there, _) = both(m);
        let (result, value) = (node(m, &there).output[0].clone(), node(m, &there).input[0].clone());
        for input in graph(m).node.iter_mut().flat_map(|n| &mut n.input).filter(|input| **input == result) {
            input.clone_from(&value);
        }
    });
    bench.find("the skip connection too", "", "up_blocks.1", |m| {
        let (there, _) = both(m);
        let (result, value) = (node(m, &there).output[0].clone(), node(m, &there).input[0].clone());
        let is_skip = |n: &&mut NodeProto| n.op_type() == "Concat" && n.input.contains(&value);
        let concat = graph(m).node.iter_mut().find(is_skip).unwrap();
        let slot = concat.input.iter().position(|input| *input == value).unwrap();
        concat.input[slot] = result;
    });
}

#[test]
fn convolutions_dilated_by_a_fraction() {
    let bench = Bench::of(FRACTION);
    let verdict = bench.verify(&bench.compiled);
    assert!(verdict.is_proven(), "{:#?}", verdict.differences);
    let module = "up_blocks.0.resnets.0.conv1";
    let node_of = |operator: &str| format!("{module}/dilate/{operator}");
    bench.find("nearest for linear", "`mode`", module, |m| {
        attribute(m, &node_of("Resize"), "mode").s = Some("nearest".into());
    });
    bench.find("by another fraction", "", module, |m| {
        edit_bytes(operand(m, &node_of("Mul"), 1), |raw| raw[0] = 6);
    });
    bench.find("the fraction alone", "`dilations` = [1, 1], expected [2, 2]", module, |m| {
        attribute(m, CONV1, "dilations").ints = vec![1, 1];
        attribute(m, CONV1, "pads").ints = vec![1; 4];
    });
    bench.find("the dilation alone", "", module, |m| {
        let value = node(m, &node_of("Resize")).input[0].clone();
        node(m, CONV1).input[0] = value;
    });
}
