//! The textual syntax against the reference implementation: `data/text/make.py` makes the expected files with
//! onnx.parser and onnx.printer.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crdiff::onnx::{
    proto::ModelProto,
    text::{PrintOptions, print_model, print_model_with},
};
use proptest::prelude::*;
use prost::Message;

use crate::common::onnx_text::{TextError, parse_model};

fn corpus(extension: &str) -> BTreeSet<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text");
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let found: BTreeSet<_> = entries.filter(|p| p.extension().is_some_and(|e| e == extension)).collect();
    assert!(!found.is_empty(), "the corpus has no *.{extension}");
    found
}

fn decode(path: &Path) -> ModelProto {
    ModelProto::decode(fs::read(path).unwrap().as_slice()).unwrap()
}

/// Parts that the printer writes though the text that it came from may not have said them.
fn with_header(mut model: ModelProto) -> ModelProto {
    model.ir_version.get_or_insert_default();
    for function in &mut model.functions {
        function.domain.get_or_insert_default();
    }
    model
}

/// Compared as bytes, because a NaN equals nothing.
#[track_caller]
fn assert_same(left: &ModelProto, right: &ModelProto, what: &str) {
    if left.encode_to_vec() != right.encode_to_vec() {
        assert_eq!(left, right, "{what}");
    }
}

#[test]
fn parses_what_the_reference_parses() {
    for path in corpus("onnxtxt") {
        let parsed = parse_model(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_same(&parsed, &decode(&path.with_extension("onnx")), &path.display().to_string());
    }
}

#[test]
fn prints_what_the_reference_prints() {
    for path in corpus("onnx") {
        let expected = fs::read_to_string(path.with_extension("printed")).unwrap();
        let printed = print_model(&decode(&path));
        for (number, (printed, expected)) in
            printed.split([',', '\n']).zip(expected.split([',', '\n'])).enumerate()
        {
            assert_eq!(printed, expected, "part {number} of {}", path.display());
        }
        assert_eq!(printed.len(), expected.len(), "{}", path.display());
    }
}

#[test]
fn printed_text_parses_to_the_same_model() {
    for path in corpus("onnxtxt") {
        let parsed = parse_model(&fs::read_to_string(&path).unwrap()).unwrap();
        let again = parse_model(&print_model(&parsed)).unwrap();
        assert_same(&with_header(parsed), &again, &path.display().to_string());
    }
}

#[test]
fn large_tensors_are_digests_that_cannot_be_parsed() {
    let text = "g () => () <float[3] w = {1, 2, 3}, int64[2] small = {1, 2}> {\n}";
    let model = parse_model(text).unwrap();
    let printed = print_model_with(&model, PrintOptions { max_elements: 2, ..PrintOptions::default() });
    // SHA-256 of the bytes of numpy.array([1, 2, 3], "<f4").
    assert!(
        printed.contains("float[3] w =  {... sha256:8e628779e6a74ee0}, int64[2] small =  {1,2}>"),
        "{printed}"
    );
    let error = parse_model(&printed).unwrap_err();
    assert!(error.what.contains("contents that were not printed"), "{error}");

    let mut raw = model;
    let tensor = &mut raw.graph.as_mut().unwrap().initializer[0];
    tensor.raw_data =
        Some(tensor.float_data.drain(..).flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into());
    assert_eq!(print_model_with(&raw, PrintOptions { max_elements: 2, ..PrintOptions::default() }), printed);
}

#[test]
fn contents_without_a_syntax_are_refused() {
    let mut model = parse_model("g () => () { y = Op <s = \"text\"> () }").unwrap();
    model.graph.as_mut().unwrap().node[0].attribute[0].s = Some(vec![0xff, 0xfe].into());
    let printed = print_model(&model);
    assert!(printed.contains("<s: string = ...>"), "{printed}");
    assert!(parse_model(&printed).is_err());

    let mut short = parse_model("g () => () <float[2] w = {}> {}").unwrap();
    short.graph.as_mut().unwrap().initializer[0].raw_data = Some(vec![0; 7].into());
    assert!(parse_model(&print_model(&short)).is_err());
}

#[test]
fn deep_nesting_is_an_error() {
    let types = format!("g ({}float{} x) => () {{}}", "seq(".repeat(100_000), ")".repeat(100_000));
    let graphs = format!("g () => () {}", "{ y = If <b = g () => () ".repeat(100_000));
    for text in [types, graphs] {
        let TextError { what, .. } = parse_model(&text).unwrap_err();
        assert!(what.contains("nested"), "{what}");
    }
    let allowed = format!("g ({}float{} x) => () {{}}", "seq(".repeat(20), ")".repeat(20));
    let encoded = parse_model(&allowed).unwrap().encode_to_vec();
    assert!(ModelProto::decode(encoded.as_slice()).is_ok());
}

/// A slice by module, judged by the scopes that TorchScript put into node names, in an independent decoder.
#[test]
fn a_module_is_printed_with_all_its_nodes() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sd15-mini/torchscript/unet.onnx");
    let printed = assert_cmd::Command::new(env!("CARGO_BIN_EXE_crdiff"))
        .args([
            "print",
            model.to_str().unwrap(),
            "--module",
            "mid_block.attentions.0",
            "--elements",
            "1000000",
        ])
        .output()
        .unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let slice = parse_model(&String::from_utf8(printed.stdout).unwrap()).unwrap().graph.unwrap();

    let whole = crate::common::decoded::Decoded::open(&model).model;
    let scoped = |name: &str| name.starts_with("/mid_block/attentions.0/");
    let expected: Vec<&str> =
        whole.graph.node.iter().map(|node| node.name.as_str()).filter(|name| scoped(name)).collect();
    let found: Vec<&str> = slice.node.iter().map(|node| node.name()).filter(|name| scoped(name)).collect();
    assert!(expected.len() > 50);
    assert_eq!(found, expected);

    // Closed: what is read is made, stored, or an input, and nothing else is stored.
    let made = slice.node.iter().flat_map(|node| &node.output).map(String::as_str);
    let stored: BTreeSet<&str> = slice.initializer.iter().map(|tensor| tensor.name()).collect();
    let inputs: BTreeSet<&str> = slice.input.iter().map(|input| input.name()).collect();
    let known: BTreeSet<&str> = made.chain(stored.iter().copied()).chain(inputs.iter().copied()).collect();
    let read: BTreeSet<&str> = slice
        .node
        .iter()
        .flat_map(|node| &node.input)
        .map(String::as_str)
        .filter(|n| !n.is_empty())
        .collect();
    assert!(read.is_subset(&known), "{:?}", read.difference(&known));
    assert!(stored.is_subset(&read) && inputs.is_subset(&read));
    assert_eq!(slice.output.len(), 1);
}

/// Words of the syntax in any order: more of the parser is reached than by arbitrary characters.
fn words() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("<"),
        Just(">"),
        Just("("),
        Just(")"),
        Just("["),
        Just("]"),
        Just("{"),
        Just("}"),
        Just("=>"),
        Just("="),
        Just(","),
        Just(":"),
        Just("."),
        Just("..."),
        Just("?"),
        Just("@"),
        Just("-"),
        Just("#\n"),
        Just("\""),
        Just("\\"),
        Just("float"),
        Just("seq"),
        Just("map"),
        Just("graph"),
        Just("tensor"),
        Just("ints"),
        Just("inf"),
        Just("-nan"),
        Just("1e999"),
        Just("99999999999999999999"),
        Just("-1"),
        Just("0.5"),
        Just("x"),
        Just("\"é\""),
        Just("ir_version"),
        Just("opset_import"),
        Just("metadata_props"),
        Just("g () => ()"),
        Just("y = Op"),
    ];
    proptest::collection::vec(word, 0..40).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn any_text_is_a_model_or_an_error(text in prop_oneof![any::<String>(), words()]) {
        match parse_model(&text) {
            Ok(model) => {
                let again = parse_model(&print_model(&model)).unwrap();
                prop_assert_eq!(with_header(model).encode_to_vec(), again.encode_to_vec());
            }
            Err(error) => {
                let lines = text.split('\n').count();
                prop_assert!((1..=lines).contains(&error.line), "{}", error);
                let line = text.split('\n').nth(error.line - 1).unwrap();
                prop_assert!((1..=line.chars().count() + 1).contains(&error.column), "{}", error);
            }
        }
    }

    /// A text with one character taken out or put in anywhere.
    #[test]
    fn a_damaged_text_is_a_model_or_an_error(
        path in proptest::sample::select(corpus("onnxtxt").into_iter().collect::<Vec<_>>()),
        at in any::<proptest::sample::Index>(),
        put in proptest::option::of(any::<char>()),
    ) {
        let mut chars: Vec<char> = fs::read_to_string(path).unwrap().chars().collect();
        let at = at.index(chars.len());
        match put {
            Some(c) => chars.insert(at, c),
            None => drop(chars.remove(at)),
        }
        if let Ok(model) = parse_model(&chars.into_iter().collect::<String>()) {
            let again = parse_model(&print_model(&model)).unwrap();
            prop_assert_eq!(with_header(model).encode_to_vec(), again.encode_to_vec());
        }
    }
}
