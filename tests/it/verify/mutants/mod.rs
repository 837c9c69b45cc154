//! Generated mutations: any occurrence of any field of a compiled graph is changed, dropped, doubled, exchanged or
//! added. A mutant that is proven and that ONNX Runtime runs must compute what the compiled graph computes.
//!
//! `MUTANTS` sets their number and `MUTANTS_SEED` the seed.

mod graphs;
mod tree;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use crdiff::{
    compile::{Depth, Job, Target, cached_outputs, compile_file},
    deploy::{Batching, make_rows},
    engine::{Engine, HostTensor, Optimization, OrtEngine, SessionOptions},
    ir::Graph,
    onnx::{
        self, WeightPolicy,
        proto::{ModelProto, StringStringEntryProto, TensorProto, type_proto},
    },
    passes::MaskForm,
    verify::conformance::verify,
};
use prost::{Message, encoding::WireType};
use prost_reflect::{DescriptorPool, Kind, MessageDescriptor};
use safetensors::{Dtype, tensor::TensorView};

use self::tree::{Entry, Path as Way, Value};
use super::support::plan;
use crate::common::{onnx_text::parse_model, ort::ort_library};

/// The mutation of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mutation {
    Change,
    Drop,
    Double,
    Exchange,
    Copy,
    Add,
}

const MUTATIONS: [Mutation; 6] =
    [Mutation::Change, Mutation::Drop, Mutation::Double, Mutation::Exchange, Mutation::Copy, Mutation::Add];

/// Pseudo-random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn of<'t, T>(&mut self, list: &'t [T]) -> Option<&'t T> {
        list.get(self.below(list.len()))
    }
}

/// Another value of a plain field.
fn changed(entry: &Entry, random: &mut Random) -> Vec<u8> {
    let Value::Plain(old) = &entry.value else { return Vec::new() };
    let mut new = old.clone();
    if entry.wire_type == WireType::Varint {
        let number = match random.below(4) {
            0 => random.below(30) as u64,
            1 => u64::from(old.first().copied().unwrap_or_default() & 0x7F).wrapping_add(1),
            2 => 0,
            _ => u64::MAX,
        };
        new.clear();
        prost::encoding::encode_varint(number, &mut new);
    } else if new.is_empty() {
        new.push(b'a');
    } else {
        let at = random.below(new.len());
        match random.below(3) {
            0 => new[at] ^= 1 << random.below(7),
            1 if entry.wire_type == WireType::LengthDelimited => new.truncate(at),
            _ => new[at] = 0x30 + (random.next() % 10) as u8,
        }
    }
    new
}

/// Mutates `entries` at a random place; the mutation and the field, or `None` where it is not possible.
fn mutate(
    message: &MessageDescriptor,
    entries: &mut Vec<Entry>,
    ways: &[Way],
    random: &mut Random,
) -> Option<(Mutation, String)> {
    let mutation = *random.of(&MUTATIONS)?;
    let way = random.of(ways)?.clone();
    let entry = tree::get(entries, &way).clone();
    let name = entry.field.full_name().to_string();
    let at = *way.last()?;
    // Others that have the same field, here or in another message.
    let alike = |random: &mut Random, entries: &[Entry]| {
        let other: Vec<&Way> =
            ways.iter().filter(|w| **w != way && tree::get(entries, w).field == entry.field).collect();
        random.of(&other).map(|w| (*w).clone())
    };
    match mutation {
        Mutation::Change => {
            let Value::Plain(_) = entry.value else { return None };
            tree::around(entries, &way)[at].value = Value::Plain(changed(&entry, random));
        }
        Mutation::Drop => drop(tree::around(entries, &way).remove(at)),
        Mutation::Double => tree::around(entries, &way).insert(at, entry),
        Mutation::Exchange => {
            let other = alike(random, entries)?;
            if other.starts_with(&way) || way.starts_with(&other) {
                return None;
            }
            let theirs = tree::get(entries, &other).clone();
            tree::around(entries, &other)[*other.last()?] = entry;
            tree::around(entries, &way)[at] = theirs;
        }
        Mutation::Copy => {
            let theirs = tree::get(entries, &alike(random, entries)?).clone();
            tree::around(entries, &way)[at] = theirs;
        }
        Mutation::Add => {
            // A field that the message around the entry may have, copied from elsewhere or made up.
            let around = match way.len() {
                1 => message.clone(),
                len => match tree::get(entries, &way[..len - 1]).field.kind() {
                    Kind::Message(inner) => inner,
                    _ => return None,
                },
            };
            let fields: Vec<_> = around.fields().collect();
            let field = random.of(&fields)?.clone();
            let known: Vec<&Way> = ways.iter().filter(|w| tree::get(entries, w).field == field).collect();
            let new = match random.of(&known) {
                Some(way) => tree::get(entries, way).clone(),
                None => made_up(field, random),
            };
            let name = format!("{}, added", new.field.full_name());
            tree::around(entries, &way).insert(at, new);
            return Some((mutation, name));
        }
    }
    Some((mutation, name))
}

fn made_up(field: prost_reflect::FieldDescriptor, random: &mut Random) -> Entry {
    let (wire_type, value) = match field.kind() {
        Kind::Message(_) => (WireType::LengthDelimited, Value::Message(Vec::new())),
        Kind::String | Kind::Bytes => (WireType::LengthDelimited, Value::Plain(b"a".to_vec())),
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
            (WireType::ThirtyTwoBit, Value::Plain(1.5f32.to_le_bytes().to_vec()))
        }
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => {
            (WireType::SixtyFourBit, Value::Plain(1.5f64.to_le_bytes().to_vec()))
        }
        _ => (WireType::Varint, Value::Plain(vec![random.below(20) as u8])),
    };
    Entry { field, wire_type, value }
}

/// A compiled graph and everything that it is judged by.
struct Subject {
    name: &'static str,
    plan: crdiff::plan::Plan,
    original: PathBuf,
    compiled: PathBuf,
    expected: Vec<Vec<(String, HostTensor)>>,
    folder: tempfile::TempDir,
}

/// Inputs of `graph`; two rows of a batch where those are not one request.
fn inputs(graph: &Graph, seed: u64) -> Vec<(String, HostTensor)> {
    let mut random = Random(seed);
    let mut floats =
        |n: usize| -> Vec<f32> { (0..n).map(|_| (random.next() % 4001) as f32 / 1000.0 - 2.0).collect() };
    let declared = |name: &str| {
        let io = graph.inputs().find(|io| io.info.name() == name)?;
        Some((io.info.data_type()?, io.info.dims()?.len()))
    };
    let rows = declared("timestep").map(|_| 2);
    let each = |name: &str, values: [f32; 2]| match declared(name) {
        Some((_, 1)) => HostTensor::new(vec![2], values.to_vec()).unwrap(),
        _ => HostTensor::new(Vec::new(), vec![values[0]]).unwrap(),
    };
    let batch = rows.unwrap_or(1);
    let all = [
        ("sample", HostTensor::new(vec![batch, 4, 3, 2], floats(24 * batch)).unwrap()),
        ("scale", HostTensor::new(vec![3], floats(3)).unwrap()),
        ("flag", HostTensor::new(Vec::new(), vec![seed % 2 == 1]).unwrap()),
        ("timestep", each("timestep", [0.5, -1.25])),
        ("cache", HostTensor::new(vec![batch, 4, 3, 2], floats(24 * batch)).unwrap()),
        ("cache_pruned", HostTensor::new(vec![batch, 4, 3, 2], floats(24 * batch)).unwrap()),
        ("poa_weight", each("poa_weight", [1.75, 0.25])),
    ];
    let wanted = all.into_iter().filter_map(|(name, tensor)| {
        let (elements, _) = declared(name)?;
        Some((name.to_string(), tensor.cast(elements).unwrap()))
    });
    wanted.collect()
}

/// The outputs for two sets of inputs, unless ONNX Runtime refuses.
fn run(engine: &OrtEngine, path: &Path, original: &Graph) -> Result<Vec<Vec<(String, HostTensor)>>, String> {
    let options = SessionOptions::default()
        .optimization(Optimization::Disabled)
        .intra_threads(std::num::NonZeroUsize::new(1));
    let mut session = engine.load(path, &options).map_err(|e| e.to_string())?;
    (0..2)
        .map(|seed| {
            let inputs = inputs(original, seed);
            let named: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
            session.run(&named, None).map_err(|e| e.to_string())
        })
        .collect()
}

/// The parts of a graph, and how it is made.
#[derive(Clone, Copy, Default)]
struct Made {
    target: Target,
    masks: MaskForm,
    /// Weights in a file of their own.
    external: bool,
    /// The graph with convolutions and an attention.
    denoiser: bool,
    /// The denoiser has a skip connection.
    skip: bool,
    /// One of the two graphs of a cache.
    depth: Option<Depth>,
    /// In float16.
    half: bool,
    /// With an element for each row of a batch.
    rows: bool,
    /// The graph with functions.
    functions: bool,
}

impl Subject {
    fn new(engine: &OrtEngine, name: &'static str, text: &str, made: Made) -> Self {
        let Made { target, masks, external, denoiser, skip, depth, half, rows, functions } = made;
        let folder = tempfile::tempdir().unwrap();
        let original = folder.path().join("original.onnx");
        let mut model = parse_model(&match (denoiser, skip) {
            (true, true) => graphs::with_skip(),
            (true, false) => graphs::denoiser(),
            (false, _) if functions => graphs::with_functions(),
            (false, _) => graphs::graph(!target.is_fused()),
        })
        .unwrap();
        if external {
            move_out(&mut model, folder.path());
        }
        if half {
            halve(&mut model);
        }
        fs::write(&original, model.encode_to_vec()).unwrap();
        let lora = folder.path().join("lora.safetensors");
        write_lora(&lora);
        let plan = plan(&text.replace("FILE", &lora.display().to_string()));
        let mut compiled = folder.path().join("compiled.onnx");
        let weights = if external { WeightPolicy::Share } else { WeightPolicy::Copy };
        let job = Job::new(&original, &plan).target(target).output(&compiled).weights(weights).masks(masks);
        let job = if depth.is_some() { job.cached() } else { job };
        compile_file(&job, &()).unwrap();
        if let Some(depth) = depth {
            let [full, shallow] = cached_outputs(&compiled);
            compiled = if depth == Depth::Full { full } else { shallow };
        }
        if rows {
            let mut graph = Graph::load(onnx::open(&compiled).unwrap()).unwrap();
            assert!(matches!(make_rows(&mut graph).unwrap(), Batching::Rows(inputs) if inputs.len() == 2));
            compiled = folder.path().join("exported.onnx");
            let options = onnx::WriteOptions::new(&compiled, WeightPolicy::Copy);
            onnx::write(&graph, &options).unwrap();
        }
        let graph = Graph::load(onnx::open(&compiled).unwrap()).unwrap();
        let expected = run(engine, &compiled, &graph).unwrap();
        let source = Graph::load(onnx::open(&original).unwrap()).unwrap();
        let verdict = verify(&source, &graph, &plan, None, &()).unwrap();
        assert!(verdict.is_proven() && verdict.form.target == target, "{name}: {verdict:#?}");
        Self { name, plan, original, compiled, expected, folder }
    }
}

/// Writes a LoRA for two layers of the denoiser's attention.
fn write_lora(path: &Path) {
    let elements = |seed: f32| -> Vec<u8> {
        (0..8).flat_map(|i| ((i as f32 + seed) * 0.913).sin().to_le_bytes()).collect()
    };
    let layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1";
    let parts: Vec<(String, [usize; 2], Vec<u8>)> = ["to_q", "to_out_0"]
        .iter()
        .zip([1.0, 2.0])
        .flat_map(|(name, seed)| {
            let part = |part: &str| format!("{layer}_{name}.lora_{part}.weight");
            [(part("down"), [2, 4], elements(seed)), (part("up"), [4, 2], elements(seed + 0.5))]
        })
        .collect();
    let views = parts.iter().map(|(name, shape, bytes)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, &None).unwrap()).unwrap();
}

/// Makes float16 of all float32.
fn halve(model: &mut ModelProto) {
    let graph = model.graph.as_mut().unwrap();
    for tensor in graph.initializer.iter_mut().filter(|tensor| tensor.data_type == Some(1)) {
        let halves = tensor.float_data.drain(..).flat_map(|x| half::f16::from_f32(x).to_le_bytes());
        tensor.raw_data = Some(halves.collect::<Vec<u8>>().into());
        tensor.data_type = Some(10);
    }
    for io in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(type_proto::Value::TensorType(tensor)) = io.r#type.as_mut().unwrap().value.as_mut() {
            tensor.elem_type = Some(10);
        }
    }
}

/// Puts the elements of all float initializers into another file. (ONNX Runtime wants shapes inside the model.)
fn move_out(model: &mut ModelProto, folder: &Path) {
    let mut data: Vec<u8> = Vec::new();
    let initializers = &mut model.graph.as_mut().unwrap().initializer;
    for tensor in initializers.iter_mut().filter(|tensor| tensor.data_type == Some(1)) {
        let header = onnx::TensorHeader::parse(tensor.encode_to_vec().into()).unwrap();
        let bytes = match &tensor.raw_data {
            Some(raw) => raw.clone(),
            None => onnx::tensor::typed_elements(&header).unwrap(),
        };
        let entry =
            |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
        *tensor = TensorProto {
            name: tensor.name.clone(),
            dims: tensor.dims.clone(),
            data_type: tensor.data_type,
            external_data: vec![
                entry("location", "weights.bin".into()),
                entry("offset", data.len().to_string()),
                entry("length", bytes.len().to_string()),
            ],
            data_location: Some(1),
            ..Default::default()
        };
        data.extend(&bytes);
    }
    fs::write(folder.join("weights.bin"), data).unwrap();
}

fn same(a: &[Vec<(String, HostTensor)>], b: &[Vec<(String, HostTensor)>]) -> bool {
    let bits = |t: &HostTensor| -> Vec<u8> { t.to_le_bytes() };
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|((n, x), (m, y))| n == m && x.dims() == y.dims() && bits(x) == bits(y))
        })
}

/// How the mutants of one kind fared.
#[derive(Default)]
struct Tally {
    refused: usize,
    differ: usize,
    same: usize,
    not_run: usize,
}

#[test]
fn no_mutant_is_proven_that_computes_something_else() {
    let number = |name: &str, default: u64| env::var(name).ok().map_or(default, |n| n.parse().unwrap());
    let (count, mut random) = (number("MUTANTS", 600), Random(number("MUTANTS_SEED", 1)));
    let engine = OrtEngine::open(&ort_library()).unwrap();
    let pool = DescriptorPool::from_file_descriptor_set(
        protox::compile(
            [concat!(env!("CARGO_MANIFEST_DIR"), "/proto/onnx.proto")],
            [concat!(env!("CARGO_MANIFEST_DIR"), "/proto")],
        )
        .unwrap(),
    )
    .unwrap();
    let message = pool.get_message_by_name("onnx.ModelProto").unwrap();
    use Target::{Amplified, Dense, Fused, FusedWithInput};
    let denoiser = Made { denoiser: true, ..Made::default() };
    let skip = Made { skip: true, ..denoiser };
    let (full, shallow) = (Some(Depth::Full), Some(Depth::Shallow));
    let subjects = [
        ("pruned", graphs::BOTH, Made::default()),
        ("compact", graphs::BOTH, Made { masks: MaskForm::Computed, ..Made::default() }),
        ("external", graphs::BOTH, Made { external: true, ..Made::default() }),
        ("fused", graphs::BOTH, Made { target: Fused, ..Made::default() }),
        ("fused, w fed", graphs::BOTH, Made { target: FusedWithInput, ..Made::default() }),
        ("amplified", graphs::MASKS, Made { target: Amplified, ..Made::default() }),
        ("empty plan", "version: 1\n", Made::default()),
        ("dilated", graphs::DILATE, denoiser),
        ("dilated beside", graphs::DILATE, Made { target: Fused, ..denoiser }),
        ("attention", graphs::ATTENTION, denoiser),
        ("attention beside", graphs::ATTENTION, Made { target: Fused, ..denoiser }),
        ("dense", graphs::ALWAYS, Made { target: Dense, ..denoiser }),
        ("always", graphs::ALWAYS, Made { target: Fused, ..denoiser }),
        ("float16", graphs::ATTENTION, Made { target: Fused, half: true, ..denoiser }),
        ("rows", graphs::ATTENTION, Made { target: FusedWithInput, rows: true, ..denoiser }),
        ("full", graphs::CACHE, Made { depth: full, ..skip }),
        ("full beside", graphs::CACHE, Made { target: Fused, depth: full, ..skip }),
        ("shallow", graphs::CACHE, Made { depth: shallow, ..skip }),
        ("shallow beside", graphs::CACHE, Made { target: Fused, depth: shallow, ..skip }),
        ("merged", graphs::MERGED, denoiser),
        ("merged beside", graphs::MERGED, Made { target: Fused, ..denoiser }),
        ("merged, full", graphs::MERGED_CACHE, Made { depth: full, ..skip }),
        ("merged, shallow", graphs::MERGED_CACHE, Made { target: Fused, depth: shallow, ..skip }),
        ("functions kept", "version: 1\n", Made { functions: true, ..Made::default() }),
        ("functions read", graphs::BOTH, Made { functions: true, ..Made::default() }),
        ("templates", graphs::TEMPLATES, skip),
        ("templates beside", graphs::TEMPLATES, Made { target: FusedWithInput, ..skip }),
    ]
    .map(|(name, text, made)| Subject::new(&engine, name, text, made));
    let mut tallies: BTreeMap<(&str, Mutation), Tally> = BTreeMap::new();
    let mut wrong = Vec::new();
    // Proven mutants that ONNX Runtime does not run, with what it says.
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let originals: Vec<Graph> =
        subjects.iter().map(|s| Graph::load(onnx::open(&s.original).unwrap()).unwrap()).collect();
    let trees: Vec<(Vec<Entry>, Vec<Way>)> = subjects
        .iter()
        .map(|subject| {
            let entries = tree::parse(&message, &fs::read(&subject.compiled).unwrap());
            let mut ways = Vec::new();
            tree::paths(&entries, &mut Vec::new(), &mut ways);
            (entries, ways)
        })
        .collect();
    let mut made = 0;
    while made < count {
        let which = random.below(subjects.len());
        let (subject, (entries, ways)) = (&subjects[which], &trees[which]);
        let mut entries = entries.clone();
        let Some((mutation, field)) = mutate(&message, &mut entries, ways, &mut random) else { continue };
        made += 1;
        let path = subject.folder.path().join("mutant.onnx");
        fs::write(&path, tree::encode(&entries)).unwrap();
        let tally = tallies.entry((subject.name, mutation)).or_default();
        let proven = onnx::open(&path)
            .and_then(Graph::load)
            .ok()
            .and_then(|mutant| verify(&originals[which], &mutant, &subject.plan, None, &()).ok())
            .filter(|verdict| verdict.is_proven());
        let Some(verdict) = proven else {
            tally.refused += 1;
            continue;
        };
        let compiled = Graph::load(onnx::open(&subject.compiled).unwrap()).unwrap();
        match run(&engine, &path, &compiled) {
            Err(why) => {
                tally.not_run += 1;
                let why = why.split_once(": ").map_or(why.as_str(), |(_, why)| why).to_string();
                reasons.entry(format!("{mutation:?} of {field}")).or_default().push(why);
            }
            Ok(found) if same(&found, &subject.expected) => tally.same += 1,
            Ok(_) => {
                tally.differ += 1;
                let kept = env::temp_dir().join(format!("false-proof-{made}.onnx"));
                fs::copy(&path, &kept).unwrap();
                wrong.push(format!(
                    "{}: {mutation:?} of {field} is proven ({}): {}",
                    subject.name,
                    verdict.form.target.name(),
                    kept.display()
                ));
            }
        }
    }
    println!("{:<16} {:<9} {:>8} {:>8} {:>8} {:>8}", "", "", "refused", "same", "not run", "differ");
    for ((name, mutation), tally) in &tallies {
        let Tally { refused, same, not_run, differ } = tally;
        println!("{name:<16} {:<9} {refused:>8} {same:>8} {not_run:>8} {differ:>8}", format!("{mutation:?}"));
    }
    for (what, why) in &reasons {
        println!("{:>6} not run: {what}: {}", why.len(), why[0].lines().next().unwrap_or_default());
    }
    assert!(wrong.is_empty(), "{} false proofs:\n{}", wrong.len(), wrong.join("\n"));
}
