//! Attention maps that are not what the plan says.

use super::*;

const MAP: &str =
    "{ attention: { modules: mid_block.attentions.0.transformer_blocks.0.attn1, map: identity } }";
const ATTENTION: &str = "mid_block.attentions.0.transformer_blocks.0.attn1";

fn to_out(at: &str) -> String {
    format!("/{at}/to_out.0/MatMul")
}

/// A model, what a plan with the identity makes of it, and what one without it makes.
struct Maps {
    model: Model,
    plan: Plan,
    compiled: ModelProto,
}

impl Maps {
    fn new(section: &str, target: Target) -> Self {
        let model = Model::copy("sd15-mini/torchscript");
        let prune = "{ prune: { weights: 'up_blocks.**.attn1.**', ratio: 0.3 } }";
        let plan = plan(&match section {
            "rules" => format!("version: 1\nrules: [{MAP}, {prune}]\n"),
            _ => format!("version: 1\n{section}: [{MAP}]\nrules: [{prune}]\n"),
        });
        let compiled = decode(&model.compile_to(target, &plan, Weights::Copy).unwrap());
        Self { model, plan, compiled }
    }

    fn verdict(&self, changed: &ModelProto) -> Verdict {
        let path = self.model.folder().join("changed.onnx");
        fs::write(&path, changed.encode_to_vec()).unwrap();
        verdict(&self.model.path(), &path, &self.plan)
    }

    fn find(&self, name: &str, change: impl FnOnce(&mut ModelProto)) -> Violation {
        assert!(self.verdict(&self.compiled).is_proven(), "{:#?}", self.verdict(&self.compiled).differences);
        let mut changed = self.compiled.clone();
        change(&mut changed);
        assert!(changed != self.compiled, "{name} changes nothing");
        let verdict = self.verdict(&changed);
        verdict.differences.first().unwrap_or_else(|| panic!("{name} was not found")).clone()
    }
}

/// Puts the nodes and tensors back that the plan left without readers, and makes the projection read what it read.
fn softmax_again(m: &mut ModelProto, original: &ModelProto, projection: &str) {
    let original = original.graph.as_ref().unwrap();
    let read = original.node.iter().find(|n| n.name() == projection).unwrap().input[0].clone();
    let made: Vec<String> = graph(m).node.iter().flat_map(|n| n.output.clone()).collect();
    let stored: Vec<String> = graph(m).initializer.iter().map(|t| t.name().to_string()).collect();
    let gone = |n: &&NodeProto| !made.contains(&n.output[0]);
    let gone: Vec<NodeProto> = original.node.iter().filter(gone).cloned().collect();
    assert!(gone.iter().any(|n| n.op_type() == "Softmax"));
    let tensors = original.initializer.iter().filter(|t| !stored.contains(&t.name().to_string()));
    graph(m).initializer.extend(tensors.cloned().collect::<Vec<_>>());
    let at = graph(m).node.iter().position(|n| n.name() == projection).unwrap();
    graph(m).node.splice(at..at, gone);
    node(m, projection).input[0] = read;
}

#[test]
fn maps_of_one_network() {
    let maps = Maps::new("rules", Target::Pruned);
    let original = decode(&maps.model.path());
    let projection = to_out("mid_block/attentions.0/transformer_blocks.0/attn1");
    let found = maps.find("the softmax", |m| softmax_again(m, &original, &projection));
    assert!(found.message.contains("still has its attention map"), "{found:#?}");
    assert_eq!(found.module.as_deref(), Some(ATTENTION));
    assert!(found.rule.is_some());

    let other = "/down_blocks.0/attentions.0/transformer_blocks.0/attn1/to_v/MatMul_output_0";
    let found = maps.find("the values of another attention", |m| {
        node(m, &projection).input[0] = other.to_string();
    });
    assert!(found.message.contains("down_blocks.0/attentions.0"), "{found:#?}");
    assert_eq!(found.module.as_deref(), Some(format!("{ATTENTION}.to_out.0").as_str()));

    let input = "/mid_block/attentions.0/transformer_blocks.0/norm1/LayerNormalization_output_0";
    maps.find("the input for its values", |m| node(m, &projection).input[0] = input.to_string());

    let wrong = to_out("down_blocks.0/attentions.0/transformer_blocks.0/attn1");
    let found = maps.find("another attention's map too", |m| {
        node(m, &wrong).input[0] = other.to_string();
    });
    assert!(found.message.contains("is missing") || found.message.contains("expected"), "{found:#?}");

    maps.find("transposed values", |m| {
        insert(m, &projection, 0, "Transpose");
        let perm = AttributeProto {
            name: Some("perm".into()),
            r#type: Some(7),
            ints: vec![1, 0, 2],
            ..AttributeProto::default()
        };
        node(m, "/inserted").attribute.push(perm);
    });
}

#[test]
fn maps_of_both_networks() {
    let maps = Maps::new("always", Target::Fused);
    let original = decode(&maps.model.path());
    let projection = to_out("mid_block/attentions.0/transformer_blocks.0/attn1");
    maps.find("the softmax in the dense network", |m| softmax_again(m, &original, &projection));
    // The other way round: what only the other network may have is in the dense one.
    let maps = Maps::new("rules", Target::Fused);
    let values = "/mid_block/attentions.0/transformer_blocks.0/attn1/to_v/MatMul_output_0";
    maps.find("the identity in the dense network", |m| {
        node(m, &to_out("mid_block/attentions.0/transformer_blocks.0/attn1")).input[0] = values.into();
    });
}

/// A plan that gives the attention's map to both networks is not one that gives it to the other alone.
#[test]
fn the_section_counts() {
    let (one, both) = (Maps::new("rules", Target::Fused), Maps::new("always", Target::Fused));
    let mut claimed = both.compiled.clone();
    claim(&mut claimed, &one.plan, "fused");
    assert!(!one.verdict(&claimed).is_proven());
    let mut claimed = one.compiled.clone();
    claim(&mut claimed, &both.plan, "fused");
    assert!(!both.verdict(&claimed).is_proven());
}
