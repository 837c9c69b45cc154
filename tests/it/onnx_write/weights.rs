//! Where weights go, by policy, exporter and folder.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use crdiff::onnx::{self, OnnxError, WeightPolicy, WriteOptions, Written};

use super::{
    UpTo,
    decoded::{Decoded, external, is_external, offset},
    fixture, listing, load, mask, workspace, write, zeroed,
};

const LIMIT: f32 = 0.05;
const ONE_FILE: &str = "sd15/torchscript/unet.onnx";
const WITH_DATA: &str = "sd15/dynamo/unet.onnx";

/// Masks half of the model's weights, writes it, and checks every element of the output.
fn pruned(source: &Path, output: &Path, policy: WeightPolicy) -> Result<Written, OnnxError> {
    pruned_from(0, source, output, policy)
}

/// As [`pruned`], leaving weights of fewer than `at_least` bytes alone.
fn pruned_from(
    at_least: u64,
    source: &Path,
    output: &Path,
    policy: WeightPolicy,
) -> Result<Written, OnnxError> {
    let mut graph = load(source);
    let masked = mask(&mut graph, at_least, Arc::new(UpTo(LIMIT)));
    let written = write(&graph, output, policy)?;
    let original = Decoded::open(source);
    let out = Decoded::open(output);
    for tensor in &original.model.graph.initializer {
        let mut expected = original.elements(&tensor.name);
        if let Some((id, _)) = masked.iter().find(|(_, name)| *name == tensor.name) {
            let (_, count) = written.masked.iter().find(|(i, _)| i == id).unwrap();
            let zero = |bytes: &[u8]| bytes.chunks_exact(4).filter(|x| **x == [0; 4]).count() as u64;
            let before = zero(&expected);
            expected = zeroed(&expected, LIMIT);
            assert!(zero(&expected) - before <= *count && *count <= zero(&expected));
        }
        assert!(out.elements(&tensor.name) == expected, "{}", tensor.name);
    }
    assert_eq!(written.masked.len(), masked.len());
    assert!(written.masked.iter().map(|(_, n)| n).sum::<u64>() > 0);
    for (path, len) in &written.files {
        assert_eq!(fs::metadata(path).unwrap().len(), *len);
    }
    load(output).check().unwrap();
    Ok(written)
}

#[test]
fn sharing_points_into_a_model_in_one_file() {
    let (_work, source) = workspace(&fixture(ONE_FILE));
    let output = source.with_file_name("out.onnx");
    let written = pruned(&source, &output, WeightPolicy::Share).unwrap();
    assert_eq!(written.shared_with, std::slice::from_ref(&source));
    let original = Decoded::open(&source);
    let out = Decoded::open(&output);
    let mut shared = 0;
    for tensor in &out.model.graph.initializer {
        let len = original.elements(&tensor.name).len();
        assert_eq!(is_external(tensor), len >= 1024, "{}", tensor.name);
        if external(tensor, "location") == Some("unet.onnx") {
            shared += len as u64;
        }
    }
    assert_eq!(written.bytes_shared, shared);
    assert!(written.files[0].1 < fs::metadata(&source).unwrap().len());
    assert_eq!(listing(source.parent().unwrap()), ["out.onnx", "out.onnx_data", "unet.onnx"]);
}

#[test]
fn sharing_leaves_external_tensors_as_they_are() {
    let (_work, source) = workspace(&fixture(WITH_DATA));
    let output = source.with_file_name("out.onnx");
    let written = pruned(&source, &output, WeightPolicy::Share).unwrap();
    assert_eq!(written.shared_with[0], source.with_file_name("unet.onnx.data"));
    let original = Decoded::open(&source);
    let out = Decoded::open(&output);
    let untouched =
        original.model.graph.initializer.iter().filter(|t| is_external(t) && out.tensor(&t.name) == *t);
    assert!(untouched.count() > 10);
}

#[test]
fn new_tensors_are_aligned_and_do_not_overlap() {
    let (_work, source) = workspace(&fixture(WITH_DATA));
    let output = source.with_file_name("out.onnx");
    pruned(&source, &output, WeightPolicy::Copy).unwrap();
    let out = Decoded::open(&output);
    let mut end = 0;
    for tensor in out.model.graph.initializer.iter().filter(|t| is_external(t)) {
        assert_eq!(external(tensor, "location"), Some("out.onnx_data"));
        assert_eq!(offset(tensor) % 4096, 0);
        assert!(offset(tensor) >= end);
        end = offset(tensor) + out.elements(&tensor.name).len() as u64;
    }
    assert_eq!(fs::metadata(source.with_file_name("out.onnx_data")).unwrap().len(), end);
}

#[test]
fn a_copy_needs_nothing_else() {
    for (model, files) in [(ONE_FILE, &["out.onnx"][..]), (WITH_DATA, &["out.onnx", "out.onnx_data"])] {
        let (work, source) = workspace(&fixture(model));
        let folder = work.path().join("elsewhere");
        fs::create_dir(&folder).unwrap();
        let written = pruned(&source, &folder.join("out.onnx"), WeightPolicy::Copy).unwrap();
        assert_eq!((written.bytes_shared, written.shared_with.len()), (0, 0));
        assert_eq!(listing(&folder), files);
        fs::remove_dir_all(source.parent().unwrap()).unwrap();
        let out = Decoded::open(&folder.join("out.onnx"));
        for tensor in &out.model.graph.initializer {
            out.elements(&tensor.name);
        }
    }
}

#[test]
fn sharing_from_a_folder_above_rewrites_locations() {
    for (model, data) in [(ONE_FILE, "source/unet.onnx"), (WITH_DATA, "source/unet.onnx.data")] {
        let (work, source) = workspace(&fixture(model));
        let output = work.path().join("out.onnx");
        pruned(&source, &output, WeightPolicy::Share).unwrap();
        let out = Decoded::open(&output);
        let at = out.model.graph.initializer.iter().filter(|t| external(t, "location") == Some(data)).count();
        assert!(at > 10, "{at}");
    }
}

#[test]
fn sharing_out_of_the_outputs_folder_is_refused() {
    for model in [ONE_FILE, WITH_DATA] {
        let (work, source) = workspace(&fixture(model));
        let sibling = work.path().join("sibling");
        fs::create_dir(&sibling).unwrap();
        let error = pruned(&source, &sibling.join("out.onnx"), WeightPolicy::Share).unwrap_err();
        assert!(error.to_string().contains("copy the weights"), "{error}");
        assert_eq!(listing(&sibling), [""; 0]);
    }
}

#[test]
fn sharing_with_data_behind_a_link_that_leaves_the_folder_is_refused() {
    let (work, source) = workspace(&fixture(WITH_DATA));
    let data = source.with_file_name("unet.onnx.data");
    fs::rename(&data, work.path().join("blob")).unwrap();
    std::os::unix::fs::symlink("../blob", &data).unwrap();
    let output = source.with_file_name("out.onnx");
    let error = pruned(&source, &output, WeightPolicy::Share).unwrap_err();
    assert!(error.to_string().contains("copy the weights"), "{error}");
    pruned(&source, &output, WeightPolicy::Copy).unwrap();
    let data = fs::symlink_metadata(source.with_file_name("out.onnx_data")).unwrap();
    assert!(data.is_file());
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (work, source) = workspace(&fixture(WITH_DATA));
    let names = ["a", "b"].map(|name| work.path().join(name));
    for folder in &names {
        fs::create_dir(folder).unwrap();
        pruned(&source, &folder.join("out.onnx"), WeightPolicy::Copy).unwrap();
    }
    for file in ["out.onnx", "out.onnx_data"] {
        assert_eq!(fs::read(names[0].join(file)).unwrap(), fs::read(names[1].join(file)).unwrap());
    }
}

#[test]
fn an_output_can_be_compiled_again() {
    let (_work, source) = workspace(&fixture(ONE_FILE));
    let once = source.with_file_name("once.onnx");
    pruned(&source, &once, WeightPolicy::Share).unwrap();
    let twice = source.with_file_name("twice.onnx");
    let written = pruned_from(4000, &once, &twice, WeightPolicy::Share).unwrap();
    assert_eq!(written.shared_with, [source.with_file_name("once.onnx_data"), source]);
}

#[test]
fn new_data_that_does_not_fit_its_shape_is_refused() {
    let (_work, source) = workspace(&fixture(ONE_FILE));
    let mut graph = load(&source);
    let id = graph.initializers().next().unwrap().0;
    graph.edit().set_data(id, crdiff::ir::NewData::Bytes(vec![0; 3].into())).unwrap();
    let error = write(&graph, &source.with_file_name("out.onnx"), WeightPolicy::Share).unwrap_err();
    assert!(error.to_string().contains("3 bytes"), "{error}");
    assert_eq!(listing(source.parent().unwrap()), ["unet.onnx"]);
}

/// Of outputs that are written at once into one folder, later ones read from the earlier ones' data what is the same in
/// both, and nothing that is not.
#[test]
fn outputs_written_at_once_share_what_is_new_in_both() {
    let (work, source) = workspace(&fixture(ONE_FILE));
    let masked = |limit: f32| {
        let mut graph = load(&source);
        let masked = mask(&mut graph, 4000, Arc::new(UpTo(limit)));
        (graph, masked)
    };
    let ((first, names), (other, _)) = (masked(LIMIT), masked(2.0 * LIMIT));
    let graphs = [(&first, LIMIT), (&first.clone(), LIMIT), (&other, 2.0 * LIMIT)];
    let output = |name: &str| source.with_file_name(name);
    let beside = [output("a.onnx"), output("b.onnx"), output("c.onnx")];
    let below = [output("d.onnx"), work.path().join("e.onnx"), output("f.onnx")];
    for (outputs, policy, shares) in [
        (&beside, WeightPolicy::Share, true),
        (&beside, WeightPolicy::Copy, false),
        (&below, WeightPolicy::Share, false),
    ] {
        let options = outputs.each_ref().map(|output| WriteOptions::new(output, policy));
        let all: Vec<_> = graphs.iter().zip(options).map(|((graph, _), options)| (*graph, options)).collect();
        let written = onnx::write_all(&all).unwrap();
        let data = outputs[0].with_file_name("a.onnx_data");
        let reads: Vec<&[PathBuf]> = written.iter().map(|written| &written.reads[..]).collect();
        assert_eq!(reads, [&[][..], if shares { std::slice::from_ref(&data) } else { &[] }, &[]]);
        let original = Decoded::open(&source);
        for (output, (_, limit)) in outputs.iter().zip(&graphs) {
            let out = Decoded::open(output);
            for (_, name) in &names {
                assert!(out.elements(name) == zeroed(&original.elements(name), *limit), "{name}");
            }
        }
    }
}
