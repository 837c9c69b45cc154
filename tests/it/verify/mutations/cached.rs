//! Pairs of graphs for a cache that do not fit together, or are not cut where the plan says.

use crdiff::{
    compile::{Depth, Job, Target, cached_outputs, compile_file},
    onnx::{
        WeightPolicy,
        proto::{
            tensor_proto::DataLocation,
            tensor_shape_proto::dimension::Value::{DimParam, DimValue},
        },
    },
    verify::conformance::{Required, verify},
};

use super::*;
use crate::verify::support::load;

const RULES: &str = "rules:\n  - bypass: mid_block.attentions.0\n  - prune: { weights: \"up_blocks.**.attn1.**\", ratio: 0.3 }\n";
const CACHE: &str = "cache: { at: up_blocks.1.resnets.1 }\n";

/// The two graphs of a plan.
struct Pair {
    model: Model,
    plan: Plan,
    graphs: [ModelProto; 2],
}

fn pair(model: &Model, plan: &Plan, target: Target) -> [ModelProto; 2] {
    pair_as(model, plan, target, ("pair.onnx", WeightPolicy::Copy))
}

fn pair_as(model: &Model, plan: &Plan, target: Target, to: (&str, WeightPolicy)) -> [ModelProto; 2] {
    let (path, output) = (model.path(), model.folder().join(to.0));
    let job = Job::new(&path, plan).target(target).cached().output(&output).weights(to.1);
    compile_file(&job, &()).unwrap();
    cached_outputs(&output).map(|path| decode(&path))
}

impl Pair {
    fn new(text: &str, target: Target) -> Self {
        let (model, plan) = (Model::copy("sd15-mini/torchscript"), plan(text));
        let graphs = pair(&model, &plan, target);
        Self { model, plan, graphs }
    }

    fn graph(&self, depth: Depth) -> &ModelProto {
        &self.graphs[usize::from(depth == Depth::Shallow)]
    }

    fn verify(&self, model: &ModelProto, required: Option<Required>) -> Verdict {
        let path = self.model.folder().join("changed.onnx");
        fs::write(&path, model.encode_to_vec()).unwrap();
        verify(&self.model.load(), &load(&path), &self.plan, required, &()).unwrap()
    }

    fn find(&self, depth: Depth, name: &str, message: &str, change: impl FnOnce(&mut ModelProto)) {
        let mut changed = self.graph(depth).clone();
        change(&mut changed);
        assert!(changed != *self.graph(depth), "{name} changes nothing");
        let verdict = self.verify(&changed, None);
        let told = verdict.differences.iter().any(|difference| difference.message.contains(message));
        assert!(told, "{name} was not found: {:#?}", verdict.differences);
    }

    fn accept(&self, depth: Depth, name: &str, change: impl FnOnce(&mut ModelProto)) {
        let mut changed = self.graph(depth).clone();
        change(&mut changed);
        assert!(changed != *self.graph(depth), "{name} changes nothing");
        let verdict = self.verify(&changed, None);
        assert!(verdict.is_proven(), "{name}: {:#?}", verdict.differences);
    }
}

/// The node that reads `value`.
fn reader<'m>(model: &'m mut ModelProto, value: &str) -> &'m mut NodeProto {
    graph(model).node.iter_mut().find(|node| node.input.iter().any(|input| input == value)).unwrap()
}

fn kept<'m>(model: &'m mut ModelProto, name: &str) -> &'m mut ValueInfoProto {
    let GraphProto { input, output, .. } = graph(model);
    input.iter_mut().chain(output).find(|io| io.name() == name).unwrap()
}

/// Makes a graph of another plan say that it is one of this.
fn claimed(mut model: ModelProto, as_of: &ModelProto) -> ModelProto {
    model.metadata_props.clone_from(&as_of.metadata_props);
    let name = as_of.graph.as_ref().unwrap().name.clone();
    graph(&mut model).name = name;
    model
}

#[test]
fn both_graphs_are_proven_in_each_form() {
    for (text, targets) in [
        (format!("version: 1\n{CACHE}"), &[Target::Pruned][..]),
        (format!("version: 1\n{RULES}{CACHE}"), &[Target::Pruned, Target::Fused, Target::FusedWithInput]),
        (
            format!("version: 1\nalways: [{{ freeu: {{ backbone: [1.3, 1.4], skip: [0.9, 0.8] }} }}]\n{RULES}{CACHE}"),
            &[Target::Pruned, Target::Fused, Target::Dense],
        ),
        // Nothing on the far side of the cut differs, so both networks keep one value.
        (
            "version: 1\nrules: [{ bypass: up_blocks.1.attentions.1 }]\ncache: { at: up_blocks.1.resnets.1 }\n".into(),
            &[Target::Fused],
        ),
    ] {
        for target in targets {
            let pair = Pair::new(&text, *target);
            for depth in Depth::ALL {
                let label = format!("{} {}: {text}", target.name(), depth.name());
                let required = |cached| Required { target: *target, cached, per_row: false };
                for required in [None, Some(required(true))] {
                    let verdict = pair.verify(pair.graph(depth), required);
                    assert!(verdict.is_proven(), "{label}{:#?}", verdict.differences);
                    assert_eq!((verdict.form.target, verdict.form.depth), (*target, Some(depth)), "{label}");
                }
                let plain = pair.verify(pair.graph(depth), Some(required(false)));
                assert!(plain.differences[0].message.contains("graph for a cache"), "{label}");
            }
        }
    }
    let bench = Bench::of(&format!("version: 1\n{RULES}{CACHE}"));
    assert!(bench.verify(&bench.compiled).is_proven());
    let path = bench.model.folder().join("plain.onnx");
    fs::write(&path, bench.compiled.encode_to_vec()).unwrap();
    let required = Required { target: Target::Pruned, cached: true, per_row: false };
    let verdict = verify(&bench.model.load(), &load(&path), &bench.plan, Some(required), &()).unwrap();
    assert!(verdict.differences[0].message.contains("it is no graph for a cache"));
}

#[test]
fn cuts_in_other_places() {
    let pair = Pair::new(&format!("version: 1\n{RULES}{CACHE}"), Target::Pruned);
    for at in ["up_blocks.1.resnets.0", "up_blocks.0.resnets.1"] {
        let other = plan(&format!("version: 1\n{RULES}cache: {{ at: {at} }}\n"));
        let others = self::pair(&pair.model, &other, Target::Pruned);
        for (depth, other) in Depth::ALL.into_iter().zip(others) {
            let own = pair.graph(depth);
            let mut other = claimed(other, own);
            // With the right type too, so that nothing but the place is wrong.
            let stated = kept(&mut own.clone(), "cache").clone();
            *kept(&mut other, "cache") = stated;
            let verdict = pair.verify(&other, None);
            assert!(!verdict.is_proven(), "{at} {}", depth.name());
        }
    }
    // Another plan's rules on either side of the cut.
    for rules in ["", "rules: [{ bypass: mid_block.attentions.0 }]\n"] {
        let other = plan(&format!("version: 1\n{rules}{CACHE}"));
        let others = self::pair(&pair.model, &other, Target::Pruned);
        for (depth, other) in Depth::ALL.into_iter().zip(others) {
            let verdict = pair.verify(&claimed(other, pair.graph(depth)), None);
            assert!(!verdict.is_proven(), "{rules:?} {}", depth.name());
        }
    }
    let [full, shallow] = &pair.graphs;
    for (graph, other) in [(full, shallow), (shallow, full)] {
        assert!(
            !pair.verify(&claimed(graph.clone(), other), None).is_proven(),
            "it says that it is the other"
        );
    }
}

#[test]
fn what_is_kept_is_wrong() {
    let pair = Pair::new(&format!("version: 1\n{RULES}{CACHE}"), Target::Pruned);
    let (full, shallow) = (Depth::Full, Depth::Shallow);
    let skip = |m: &mut ModelProto| {
        let concat = reader(m, "cache");
        concat.input.iter().find(|input| *input != "cache").unwrap().clone()
    };
    let skip = skip(&mut pair.graph(shallow).clone());
    // The full graph: which value is given.
    let last = pair.graph(full).graph.as_ref().unwrap().node.last().unwrap().clone();
    assert_eq!((last.op_type(), &last.output[..]), ("Identity", &["cache".to_string()][..]));
    for (name, value) in [("the skip", skip.as_str()), ("the output", "out_sample"), ("the sample", "sample")]
    {
        pair.find(full, name, "", |m| graph(m).node.last_mut().unwrap().input[0] = value.into());
    }
    pair.find(full, "the Concat", "", |m| {
        let result = reader(m, &skip).output[0].clone();
        graph(m).node.last_mut().unwrap().input[0] = result;
    });
    for op in ["Neg", "Relu", "Abs"] {
        pair.find(full, op, "", |m| graph(m).node.last_mut().unwrap().op_type = Some(op.into()));
    }
    pair.find(full, "two outputs that are one", "", |m| {
        let read = graph(m).node.last().unwrap().input[0].clone();
        let at = graph(m).output.iter().position(|io| io.name() == "out_sample").unwrap();
        graph(m).output[at].name = Some(read);
    });
    pair.find(full, "no output", "", |m| drop(graph(m).output.pop()));
    pair.find(full, "the first output", "not the last", |m| graph(m).output.swap(0, 1));
    pair.find(full, "a third output", "", |m| {
        let mut third = kept(m, "cache").clone();
        third.name = Some(skip.clone());
        graph(m).output.push(third);
    });
    // The shallow graph: what is read, and where.
    pair.find(shallow, "operands of the Concat in another order", "", |m| {
        reader(m, "cache").input.swap(0, 1)
    });
    pair.find(shallow, "the skip twice", "", |m| {
        reader(m, "cache").input = vec![skip.clone(), skip.clone()];
    });
    pair.find(shallow, "the cache twice", "", |m| {
        reader(m, "cache").input = vec!["cache".into(), "cache".into()];
    });
    pair.find(shallow, "the cache for the skip elsewhere", "", |m| {
        let conv = graph(m).node.iter_mut().rev().find(|n| n.op_type() == "Conv").unwrap();
        conv.input[0] = "cache".into();
    });
    pair.find(shallow, "something on top", "", |m| {
        let before = reader(m, "cache").name().to_string();
        let slot = node(m, &before).input.iter().position(|input| input == "cache").unwrap();
        insert(m, &before, slot, "Relu");
    });
    pair.find(shallow, "another name", "", |m| {
        reader(m, "cache").input.iter_mut().filter(|i| *i == "cache").for_each(|i| *i = "kept".into());
        kept(m, "cache").name = Some("kept".into());
    });
    pair.find(shallow, "another operand", "", |m| {
        let conv = graph(m).node.iter_mut().rev().find(|n| n.op_type() == "Conv").unwrap();
        conv.input[0].clone_from(&skip);
    });
    pair.find(shallow, "a weight", "", |m| {
        let conv = graph(m).node.iter().rev().find(|n| n.op_type() == "Conv").unwrap().name().to_string();
        set_float(operand(m, &conv, 1), 3, 0.125);
    });
    for depth in Depth::ALL {
        pair.find(depth, "another depth", "`crdiff.cache`", |m| {
            metadata(m, "crdiff.cache").value = Some("deep".into());
        });
        pair.find(depth, "the name of the pruned graph", "the graph's name", |m| {
            let name = graph(m).name().replace("_full", "").replace("_shallow", "");
            graph(m).name = Some(name);
        });
        pair.find(depth, "another type", "the network has float32 there", |m| {
            match kept(m, "cache").r#type.as_mut().unwrap().value.as_mut().unwrap() {
                type_proto::Value::TensorType(tensor) => tensor.elem_type = Some(10),
                other => panic!("{other:?}"),
            }
        });
        pair.find(depth, "more channels", "dimension 1 is", |m| {
            dims(kept(m, "cache"))[1].value = Some(DimValue(99));
        });
        pair.find(depth, "channels of any number", "dimension 1 is", |m| {
            dims(kept(m, "cache"))[1].value = None
        });
        pair.find(depth, "one height", "dimension 2 is", |m| {
            dims(kept(m, "cache"))[2].value = Some(DimValue(8))
        });
        pair.find(depth, "the batch as height", "dimension 2 is", |m| {
            dims(kept(m, "cache"))[2].value = Some(DimParam("batch".into()));
        });
        pair.find(depth, "three dimensions", "4 dimensions", |m| drop(dims(kept(m, "cache")).pop()));
        pair.find(depth, "no shape", "no shape", |m| {
            match kept(m, "cache").r#type.as_mut().unwrap().value.as_mut().unwrap() {
                type_proto::Value::TensorType(tensor) => tensor.shape = None,
                other => panic!("{other:?}"),
            }
        });
        pair.accept(depth, "sizes without names", |m| {
            dims(kept(m, "cache")).iter_mut().skip(2).for_each(|dim| dim.value = None);
        });
        pair.accept(depth, "sizes with names of their own", |m| {
            dims(kept(m, "cache"))[2].value = Some(DimParam("rows".into()));
            dims(kept(m, "cache"))[3].value = Some(DimParam("columns".into()));
        });
    }
    pair.accept(shallow, "an Identity", |m| {
        let before = reader(m, "cache").name().to_string();
        let slot = node(m, &before).input.iter().position(|input| input == "cache").unwrap();
        insert(m, &before, slot, "Identity");
    });
}

#[test]
fn two_networks_each_keep_their_own() {
    let pair = Pair::new(&format!("version: 1\n{RULES}{CACHE}"), Target::Fused);
    let read = |m: &mut ModelProto, from: &str, to: &str| {
        let node = reader(m, from);
        node.input.iter_mut().filter(|input| *input == from).for_each(|input| *input = to.into());
    };
    pair.find(Depth::Shallow, "both read the dense one's", "", |m| read(m, "cache_pruned", "cache"));
    pair.find(Depth::Shallow, "both read the pruned one's", "", |m| read(m, "cache", "cache_pruned"));
    pair.find(Depth::Shallow, "each reads the other's", "", |m| {
        read(m, "cache", "aside");
        read(m, "cache_pruned", "cache");
        read(m, "aside", "cache_pruned");
    });
    pair.find(Depth::Shallow, "there is one", "not the last", |m| {
        read(m, "cache_pruned", "cache");
        drop(graph(m).input.pop());
    });
    pair.find(Depth::Full, "each gives the other's", "", |m| {
        let nodes = &mut graph(m).node;
        let at: Vec<usize> = (0..nodes.len()).filter(|i| nodes[*i].output[0].starts_with("cache")).collect();
        let [a, b] = at[..] else { panic!("{at:?}") };
        let (first, second) = (nodes[a].input.clone(), nodes[b].input.clone());
        (nodes[a].input, nodes[b].input) = (second, first);
    });
    pair.find(Depth::Full, "both give the dense one's", "", |m| {
        let first = graph(m).node.iter().find(|n| n.output[0] == "cache").unwrap().input.clone();
        graph(m).node.iter_mut().find(|n| n.output[0] == "cache_pruned").unwrap().input = first;
    });
    pair.find(Depth::Full, "one gives nothing", "not the last", |m| drop(graph(m).output.pop()));
}

/// The value of an `external_data` entry.
fn external<'m>(tensor: &'m mut TensorProto, key: &str) -> &'m mut Option<String> {
    &mut tensor.external_data.iter_mut().find(|entry| entry.key() == key).unwrap().value
}

/// Where weights are shared, the shallow graph reads those that are masked or merged from the full one's data file.
#[test]
fn shared_masked_weights_are_somewhere_else() {
    let rules = |ratio: f64| format!("rules: [{{ prune: {{ weights: \"**.ff.**\", ratio: {ratio} }} }}]\n");
    let (model, plan) =
        (Model::copy("sd15-mini/torchscript"), plan(&format!("version: 1\n{}{CACHE}", rules(0.3))));
    let share = |plan: &Plan, name: &str| pair_as(&model, plan, Target::Pruned, (name, WeightPolicy::Share));
    let graphs = share(&plan, "pair.onnx");
    let other = super::plan(&format!("version: 1\n{}{CACHE}", rules(0.6)));
    share(&other, "other.onnx");
    let pair = Pair { graphs, plan, model };
    let data = |file: &str| pair.model.folder().join(file);
    assert!(!data("pair.shallow.onnx_data").exists() && data("pair.full.onnx_data").exists());

    // A weight of the shallow graph, and another of the same shape in the full one alone.
    let in_data = |model: &ModelProto| -> Vec<TensorProto> {
        let mut all = model.graph.as_ref().unwrap().initializer.clone();
        all.retain_mut(|t| t.data_location() == DataLocation::External);
        all.retain_mut(|t| external(t, "location").as_deref() == Some("pair.full.onnx_data"));
        all
    };
    let [full, shallow] = pair.graphs.each_ref().map(in_data);
    assert!(shallow.len() == 2 && full.len() == 8 && shallow.iter().all(|t| full.contains(t)));
    let (weight, n) = (shallow[0].clone(), shallow[0].dims.iter().product::<i64>() as u64);
    let name = weight.name();
    let mut twin = full.iter().find(|t| t.dims == weight.dims && t.name() != name).unwrap().clone();
    let original = decode(&pair.model.path());
    let elements = original.graph.as_ref().unwrap().initializer.iter().find(|t| t.name() == name).unwrap();
    let elements = elements.raw_data.clone().unwrap();
    let file = fs::read(pair.model.path()).unwrap();
    let at = file.windows(elements.len()).position(|window| window == &elements[..]).unwrap();
    let offset = external(&mut weight.clone(), "offset").clone().unwrap().parse::<u64>().unwrap();

    let (masked, moved) = ("the masked weight of", |by: u64| Some((offset + by).to_string()));
    for depth in Depth::ALL {
        let set = |name: &str, key: &str, value: Option<String>, message: &str| {
            pair.find(depth, name, message, |m| *external(tensor(m, weight.name()), key) = value);
        };
        set("another weight of the same shape", "offset", external(&mut twin, "offset").clone(), masked);
        set("an element further", "offset", moved(4), masked);
        set("a byte further", "offset", moved(1), masked);
        set("the data of another plan", "location", Some("other.full.onnx_data".into()), masked);
        pair.find(depth, "the original's elements", "is not masked", |m| {
            *external(tensor(m, name), "location") = Some("unet.onnx".into());
            *external(tensor(m, name), "offset") = Some(at.to_string());
        });
        pair.accept(depth, "no length", |m| {
            tensor(m, name).external_data.retain(|entry| entry.key() != "length");
        });
    }
    // Not even a graph that can be read.
    for (key, value, message) in [
        ("length", (4 * n - 4).to_string(), "its shape takes"),
        ("length", (4 * n + 4).to_string(), "its shape takes"),
        ("offset", "1000000".to_string(), "which has only"),
        ("location", "elsewhere.onnx_data".to_string(), "cannot open its external data"),
    ] {
        let mut changed = pair.graph(Depth::Shallow).clone();
        *external(tensor(&mut changed, name), key) = Some(value);
        let path = data("changed.onnx");
        fs::write(&path, changed.encode_to_vec()).unwrap();
        let error = verify(&pair.model.load(), &load(&path), &pair.plan, None, &()).unwrap_err();
        assert!(error.to_string().contains(message), "{key}: {error}");
    }
    // The file itself: an element, and that of another plan under its name.
    let right = fs::read(data("pair.full.onnx_data")).unwrap();
    let mut wrong = right.clone();
    wrong[offset as usize + 8..][..4].copy_from_slice(&0.125f32.to_le_bytes());
    for (what, bytes) in [("one", wrong), ("all", fs::read(data("other.full.onnx_data")).unwrap())] {
        fs::write(data("pair.full.onnx_data"), bytes).unwrap();
        for depth in Depth::ALL {
            let verdict = pair.verify(pair.graph(depth), None);
            assert!(verdict.differences[0].message.starts_with(masked), "{what}: {verdict:#?}");
        }
    }
    fs::write(data("pair.full.onnx_data"), right).unwrap();
    for depth in Depth::ALL {
        assert!(pair.verify(pair.graph(depth), None).is_proven());
    }
}
