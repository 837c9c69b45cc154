//! Elements of tensors, masked or not.

use super::*;

#[test]
fn tensors() {
    let bench = Bench::new();
    let found = bench.find("one bit of a weight", "operand 1 of Conv node", CONV1_PATH, |m| {
        edit_bytes(operand(m, CONV1, 1), |raw| raw[4 * 5] ^= 1);
    });
    assert_eq!(
        (found.element, found.tensor.as_deref()),
        (Some(5), Some("up_blocks.0.resnets.0.conv1.weight"))
    );
    let kept = |m: &mut ModelProto| floats(operand(m, TO_Q, 1)).iter().position(|w| *w != 0.0).unwrap();
    let masked = |m: &mut ModelProto| floats(operand(m, TO_Q, 1)).iter().position(|w| *w == 0.0).unwrap();
    bench.find("one element masked too many", "is 0.0, expected", TO_Q_PATH, |m| {
        let at = kept(m);
        set_float(operand(m, TO_Q, 1), at, 0.0);
    });
    let found = bench.find("one element masked too few", "expected 0.0", TO_Q_PATH, |m| {
        let at = masked(m);
        let original = floats(operand(&mut bench.original.clone(), TO_Q, 1));
        set_float(operand(m, TO_Q, 1), at, original[at]);
    });
    assert!(found.rule.is_some() && found.help.unwrap().contains("weights with magnitudes up to"));
    bench.find("a masked element that is -0", "is -0.0, expected 0.0", TO_Q_PATH, |m| {
        let at = masked(m);
        set_float(operand(m, TO_Q, 1), at, -0.0);
    });
    bench.find("a kept element changed", "the masked weight of", TO_Q_PATH, |m| {
        let at = kept(m);
        let weight = operand(m, TO_Q, 1);
        let value = floats(weight)[at];
        set_float(weight, at, value.next_up());
    });
    bench.find("a stale dense copy", "is not masked", TO_Q_PATH, |m| {
        let dense = bytes(operand(&mut bench.original.clone(), TO_Q, 1));
        edit_bytes(operand(m, TO_Q, 1), |raw| raw.copy_from_slice(&dense));
    });
    bench.find("a mask made by operators, off by one ulp", "the masked weight of", TO_Q_PATH, |m| {
        masked_by_operators(m, &bench.original, "Shrink");
        let t = attribute(m, "/shrink", "lambd");
        t.f = t.f.map(f32::next_down);
    });
    bench.find("a weight of another layer", "the masked weight of", TO_Q_PATH, |m| {
        let other = node(m, TO_K).input[1].clone();
        node(m, TO_Q).input[1] = other;
    });
    bench.find("a bias of another layer", "operand 2 of Conv node", CONV1_PATH, |m| {
        node(m, CONV1).input[2] = "up_blocks.0.resnets.0.conv2.bias".into();
    });
    let div = "/up_blocks.0/resnets.0/Div";
    bench.find("another Div constant", "is 2.0, expected 1.0", "up_blocks.0.resnets.0", |m| {
        let constant = node(m, div).input[1].clone();
        let maker = graph(m).node.iter_mut().find(|n| n.output[0] == constant).unwrap();
        maker.attribute[0].t.as_mut().unwrap().raw_data = Some(2f32.to_le_bytes().to_vec().into());
    });
    bench.find("another type of a bias", "is float16[", CONV1_PATH, |m| {
        let bias = operand(m, CONV1, 2);
        let halves = floats(bias).into_iter().flat_map(|x| half::f16::from_f32(x).to_le_bytes());
        bias.raw_data = Some(halves.collect::<Vec<u8>>().into());
        bias.data_type = Some(10);
    });
}

#[test]
fn a_threshold_off_by_one_ulp() {
    let mut bench = Bench::new();
    let weights = floats(operand(&mut bench.original.clone(), TO_Q, 1));
    let text = |t: f32| {
        format!(
            "version: 1\nrules: [{{ prune: {{ weights: {TO_Q_PATH}, threshold: {:?} }} }}]\n",
            f64::from(t)
        )
    };
    let t = weights[10].abs();
    bench.plan = plan(&text(t));
    let right = compiled_with(&bench, &text(t));
    assert!(bench.verify(&right).is_proven());
    let verdict = bench.verify(&compiled_with(&bench, &text(t.next_down())));
    assert_eq!(verdict.differences.len(), 1, "{:#?}", verdict.differences);
    assert_eq!(weights[verdict.differences[0].element.unwrap() as usize].abs(), t);
}

#[test]
fn amplified() {
    let mut bench = Bench::new();
    let rule = "prune: { weights: \"up_blocks.**.attn1.**\", ratio: 0.3";
    let mut compiled = compiled_with(&bench, &format!("version: 1\nrules: [{{ {rule}, scale: -0.5 }} }}]\n"));
    bench.plan =
        plan(&format!("version: 1\nrules: [{{ {rule} }} }}]\namplify: {{ mode: weights, weight: 1.5 }}\n"));
    claim(&mut compiled, &bench.plan, "amplified");
    let verdict = bench.verify(&compiled);
    assert!(verdict.is_proven() && verdict.proof.masked > 0, "{verdict:#?}");
    claim(&mut compiled, &bench.plan, "pruned");
    assert!(!bench.verify(&compiled).is_proven());
}
