//! The compiler killed at any moment: under the final names there is what was there before, or everything, or nothing.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use crdiff::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_proto::{DataLocation, DataType},
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};
use prost::Message;

const LAYERS: usize = 12;
/// Inputs and outputs of a layer: 16 MiB of weights.
const WIDTH: i64 = 2048;
const KILLS: u32 = 6;

/// One test, so that its runs do not compete with each other for the disk.
#[test]
fn whatever_ends_it_the_output_is_whole() {
    let work = Work::new();
    let (old, _) = work.outcome("old.yaml");
    let (new, took) = work.outcome("new.yaml");
    a_kill_leaves_no_partial_file(&work, &old, &new, took);
    ctrl_c_leaves_nothing_behind(&work, &old, &new, took);
}

fn a_kill_leaves_no_partial_file(work: &Work, old: &Found, new: &Found, took: Duration) {
    let mut seen = [0; 3];
    for round in 0..KILLS {
        work.put_old();
        let mut child = work.start("new.yaml");
        std::thread::sleep(took * round / KILLS);
        child.kill().unwrap();
        child.wait().unwrap();
        let found = work.found();
        match found.model.as_deref() {
            // Between taking the old pair away and giving the new one its names there is no model.
            None => {
                assert!([&None, &old.data, &new.data].contains(&&found.data), "round {round}: {found:?}");
                seen[0] += 1;
            }
            Some(_) if found == *old => seen[1] += 1,
            Some(_) if found == *new => seen[2] += 1,
            Some(_) => panic!("round {round}: the output is neither the old one nor the new one"),
        }
        work.clear();
    }
    assert!(seen[1] > 0, "no kill came before the end: {seen:?}");
}

fn ctrl_c_leaves_nothing_behind(work: &Work, old: &Found, new: &Found, took: Duration) {
    let mut interrupted = 0;
    for (round, with_old) in [(0, true), (2, false), (4, true)] {
        if with_old {
            work.put_old();
        }
        let mut child = work.start("new.yaml");
        // From here on the signal has a handler, however slow the machine is.
        while work.unexpected().is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(took * round / 8);
        let signalled =
            Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        if status.success() {
            assert_eq!(work.found(), *new);
        } else {
            assert!(signalled.success());
            assert_eq!(status.code(), Some(130), "{status}");
            assert_eq!(String::from_utf8_lossy(&stderr), "interrupted; nothing was written\n");
            assert_eq!(String::from_utf8_lossy(&stdout), "");
            assert_eq!(work.found(), if with_old { old.clone() } else { Found::default() });
            interrupted += 1;
        }
        assert_eq!(work.unexpected(), Vec::<String>::new());
        work.clear();
    }
    assert!(interrupted > 0, "no signal came before the end");
}

/// A folder with a model, two plans, and the output of the first plan to put under the output's name.
struct Work(PathBuf);

/// Returns the digests of the model and of its data under the output's names.
#[derive(Clone, Debug, Default, PartialEq)]
struct Found {
    model: Option<String>,
    data: Option<String>,
}

impl Work {
    fn new() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("crdiff-interrupt");
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        write_model(&folder);
        for (plan, ratio) in [("old.yaml", 0.2), ("new.yaml", 0.4)] {
            let text = format!(
                "version: 1\nrules: [{{ prune: {{ weights: \"mid_block.**\", ratio: {ratio} }} }}]\n"
            );
            fs::write(folder.join(plan), text).unwrap();
        }
        Self(folder)
    }

    fn start(&self, plan: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_crdiff-compile"))
            .args(["model.onnx", plan, "-o", "out.onnx", "--quiet"])
            .current_dir(&self.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Returns the output of `plan` when nobody disturbs it, and how long that takes. The files are kept aside.
    fn outcome(&self, plan: &str) -> (Found, Duration) {
        let started = Instant::now();
        let Output { status, stderr, .. } = self.start(plan).wait_with_output().unwrap();
        let took = started.elapsed();
        assert!(ExitStatus::success(&status), "{}", String::from_utf8_lossy(&stderr));
        let found = self.found();
        assert!(found.model.is_some() && found.data.is_some() && status.signal().is_none());
        for file in ["out.onnx", "out.onnx_data"] {
            fs::rename(self.0.join(file), self.0.join(format!("{plan}.{file}"))).unwrap();
        }
        (found, took)
    }

    fn put_old(&self) {
        for file in ["out.onnx", "out.onnx_data"] {
            fs::copy(self.0.join(format!("old.yaml.{file}")), self.0.join(file)).unwrap();
        }
    }

    fn found(&self) -> Found {
        let digest = |file: &str| fs::read(self.0.join(file)).ok().map(|bytes| digest(&bytes));
        Found { model: digest("out.onnx"), data: digest("out.onnx_data") }
    }

    /// Files that neither this test nor a finished compilation leaves.
    fn unexpected(&self) -> Vec<String> {
        self.names().into_iter().filter(|name| name.starts_with('.')).collect()
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.collect()
    }

    /// Removes the output, and what a kill has left under temporary names.
    fn clear(&self) {
        for name in self.names().iter().filter(|n| n.starts_with('.') || n.starts_with("out.onnx")) {
            fs::remove_file(self.0.join(name)).unwrap();
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `LAYERS` Linear layers in a row, their weights in `model.onnx_data`.
fn write_model(folder: &Path) {
    let mut data = BufWriter::with_capacity(1 << 20, File::create(folder.join("model.onnx_data")).unwrap());
    let mut graph = GraphProto { name: Some("layers".into()), ..GraphProto::default() };
    let length = (WIDTH * WIDTH * 4) as usize;
    let mut state = 1u32;
    for layer in 0..LAYERS {
        let (weight, output) = (format!("weight_{layer}"), format!("hidden_{}", layer + 1));
        let place = [("location", "model.onnx_data".to_string()), ("offset", (layer * length).to_string())];
        graph.initializer.push(TensorProto {
            name: Some(weight.clone()),
            dims: vec![WIDTH, WIDTH],
            data_type: Some(DataType::Float.into()),
            data_location: Some(DataLocation::External.into()),
            external_data: place
                .into_iter()
                .map(|(key, value)| StringStringEntryProto { key: Some(key.into()), value: Some(value) })
                .collect(),
            ..TensorProto::default()
        });
        graph.node.push(NodeProto {
            name: Some(format!("/mid_block/layers.{layer}/MatMul")),
            op_type: Some("MatMul".into()),
            input: vec![format!("hidden_{layer}"), weight],
            output: vec![output],
            ..NodeProto::default()
        });
        for _ in 0..length / 4 {
            // A linear congruential generator (Numerical Recipes); its upper bits as floats between 1 and 2, minus 1.5.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(0x3f80_0000 | state >> 9) - 1.5;
            data.write_all(&value.to_le_bytes()).unwrap();
        }
    }
    data.flush().unwrap();
    graph.input.push(value_info("hidden_0"));
    graph.output.push(value_info(&format!("hidden_{LAYERS}")));
    let model = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(17) }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    fs::write(folder.join("model.onnx"), model.encode_to_vec()).unwrap();
}

fn value_info(name: &str) -> ValueInfoProto {
    let dim = |size| Dimension { value: Some(dimension::Value::DimValue(size)), ..Dimension::default() };
    let tensor = type_proto::Tensor {
        elem_type: Some(DataType::Float.into()),
        shape: Some(TensorShapeProto { dim: vec![dim(1), dim(WIDTH)] }),
    };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.into()), r#type: Some(r#type), ..ValueInfoProto::default() }
}
