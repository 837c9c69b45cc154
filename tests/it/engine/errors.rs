//! Errors of engines: who, which model, what, and what would be right.

use std::{fs, path::Path};

use bytes::Bytes;
use crdiff::engine::{
    Chosen, Engine, EngineError, EngineKind, HostTensor, OrtEngine, Provider, ProviderKind, SessionOptions,
    choose_among, doctor::examine, locate::Places,
};
use crdiff::onnx::{DataType, proto};
use prost::Message;

use crate::{
    common::ort::ort_library,
    engine::support::{doubling, engines, fixture, golden, named, ort},
};

fn places() -> Places {
    Places { given: Some(ort_library()), ..Places::default() }
}

#[test]
fn what_is_fed_is_checked_before_the_engine_sees_it() {
    let (inputs, _) = golden("sd15-mini", "8x8");
    let all = named(&inputs);
    let double = inputs[0].1.cast(DataType::DOUBLE).unwrap();
    let flat = HostTensor::new([256], vec![0f32; 256]).unwrap();
    let channels = HostTensor::new([1, 5, 8, 8], vec![0f32; 320]).unwrap();
    for engine in engines() {
        let mut session =
            engine.load(&fixture("sd15-mini/torchscript/unet.onnx"), &SessionOptions::default()).unwrap();
        let mut error = |fed: &[(&str, &HostTensor)], outputs: Option<&[&str]>| {
            let error = session.run(fed, outputs).unwrap_err();
            assert!(matches!(error, EngineError::Signature { .. }), "{error:?}");
            error.to_string()
        };
        assert!(
            error(&all[1..], None).contains("input `sample` is not fed; its inputs are `sample` float32[")
        );
        let with = |tensor| -> Vec<_> {
            all.iter().map(|(n, t)| (*n, if *n == "sample" { tensor } else { *t })).collect()
        };
        assert!(
            error(&with(&double), None)
                .contains("is fed float64 [2, 4, 8, 8], but it takes `sample` float32")
        );
        assert!(error(&with(&flat), None).contains("is fed float32 [256]"));
        assert!(error(&with(&channels), None).contains("is fed float32 [1, 5, 8, 8]"));
        let mut misspelt = all.clone();
        misspelt.push(("samples", &inputs[0].1));
        assert!(error(&misspelt, None).contains("no input `samples`"));
        let mut twice = all.clone();
        twice.push(all[0]);
        assert!(error(&twice, None).contains("`sample` is fed twice"));
        assert!(
            error(&all, Some(&["out"])).contains("no output `out`; its outputs are `out_sample` float32")
        );
        assert_eq!(session.run(&all, None).unwrap().len(), 1, "the session still works");
    }
}

#[test]
fn sizes_that_the_graph_cannot_take_are_the_engines_error() {
    let (inputs, _) = golden("sd15", "18x10");
    for engine in engines() {
        let mut session =
            engine.load(&fixture("sd15/torchscript/unet.onnx"), &SessionOptions::default()).unwrap();
        let error = session.run(&named(&inputs), None).unwrap_err();
        assert!(matches!(error, EngineError::Run { .. }), "{error:?}");
        assert!(error.to_string().contains("up_blocks"), "the node is named: {error}");
    }
}

#[test]
fn broken_models() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("sd15-mini/torchscript/unet.onnx")).unwrap();
    let path = folder.path().join("broken.onnx");
    for engine in engines() {
        for (content, what) in
            [(&whole[..whole.len() / 2], "half"), (b"not a model".as_slice(), "text"), (b"", "empty")]
        {
            fs::write(&path, content).unwrap();
            let options = SessionOptions::default();
            let error = engine.load(&path, &options).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains("broken.onnx"), "{what}: {error}");
            assert!(engine.load_bytes(Bytes::copy_from_slice(content), &options).is_err(), "{what}");
        }
        let error =
            engine.load(Path::new("nowhere.onnx"), &SessionOptions::default()).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("nowhere.onnx: cannot open"), "{error}");
    }
}

#[test]
fn graphs_that_engines_cannot_run() {
    let unknown = edited(&doubling(DataType::FLOAT), |node| node.op_type = Some("Dubble".into()));
    let dangling = edited(&doubling(DataType::FLOAT), |node| node.input[1] = "nothing".into());
    for engine in engines() {
        let options = SessionOptions::default();
        let error = engine.load_bytes(unknown.clone(), &options).map(|_| ()).unwrap_err();
        assert!(matches!(error, EngineError::Load { .. }), "{error:?}");
        assert!(
            error.to_string().contains("a model in memory") && error.to_string().contains("Dubble"),
            "{error}"
        );
        let x = HostTensor::new([1, 2], vec![0f32; 2]).unwrap();
        let run = engine.load_bytes(dangling.clone(), &options).and_then(|mut s| s.run(&[("x", &x)], None));
        assert!(run.unwrap_err().to_string().contains("nothing"), "the value is named");
    }
}

fn edited(model: &[u8], edit: impl FnOnce(&mut proto::NodeProto)) -> Bytes {
    let mut model = proto::ModelProto::decode(model).unwrap();
    edit(&mut model.graph.as_mut().unwrap().node[0]);
    model.encode_to_vec().into()
}

#[test]
fn missing_external_data() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("unet.onnx");
    fs::copy(fixture("sd15-mini/dynamo/unet.onnx"), &path).unwrap();
    for engine in engines() {
        let error = engine.load(&path, &SessionOptions::default()).map(|_| ()).unwrap_err();
        assert!(matches!(error, EngineError::Load { .. }), "{error:?}");
        assert!(error.to_string().contains("unet.onnx.data"), "{error}");
    }
}

#[test]
fn a_provider_that_is_not_there_is_never_replaced_by_the_cpu() {
    let path = fixture("sd15-mini/torchscript/unet.onnx");
    for kind in ProviderKind::ALL.into_iter().filter(|kind| *kind != ProviderKind::Cpu) {
        if ort().has_provider(kind) {
            continue;
        }
        let options = SessionOptions::default().providers(vec![Provider::from(kind)]);
        for engine in engines() {
            let error = engine.load(&path, &options).map(|_| ()).unwrap_err();
            assert!(matches!(error, EngineError::Provider { provider, .. } if provider == kind), "{error:?}");
            assert!(error.to_string().contains(&format!("on {kind}")), "{error}");
            if engine.kind() == EngineKind::Ort {
                let why = "this build of ONNX Runtime doesn't have it";
                assert!(error.to_string().contains(why) && error.to_string().contains("it needs"), "{error}");
            }
        }
    }
    let mut cpu = Provider::from(ProviderKind::Cpu);
    cpu.options.insert("device_id".into(), "0".into());
    let options = SessionOptions::default().providers(vec![cpu]);
    let error = ort().load(&path, &options).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("this provider has no options"), "{error}");
}

#[test]
fn dimensions_that_contradict_the_model() {
    let path = fixture("sd15-mini/torchscript/unet.onnx");
    let error = |input: &str, dims: &[usize]| {
        let fixed_dims = [(input.to_string(), dims.to_vec())].into();
        let options = SessionOptions::default().fixed_dims(fixed_dims);
        ort().load(&path, &options).map(|_| ()).unwrap_err().to_string()
    };
    assert!(error("sample", &[1, 5, 8, 8]).contains("cannot be fixed to [1, 5, 8, 8]"));
    assert!(error("sample", &[8, 8]).contains("cannot be fixed to [8, 8]"));
    assert!(error("latents", &[1]).contains("no input `latents`"));
}

#[test]
fn one_library_a_process() {
    let loaded = ort();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join(loaded.path().file_name().unwrap());
    fs::copy(loaded.path(), &copy).unwrap();
    let error = OrtEngine::open(&copy).map(|_| ()).unwrap_err();
    assert!(matches!(error, EngineError::LibraryAlreadyLoaded { .. }), "{error:?}");
    assert!(OrtEngine::open(loaded.path()).is_ok());
}

#[test]
fn the_choice_of_an_engine_is_told() {
    let chosen =
        |kind, places: &Places| choose_among(kind, places).map(|Chosen { engine, why }| (engine.kind(), why));
    let (kind, why) = chosen(None, &places()).unwrap();
    assert_eq!(kind, EngineKind::Ort);
    assert!(why.starts_with("ONNX Runtime 1."), "{why}");
    assert_eq!(chosen(Some(EngineKind::Ort), &places()).unwrap().0, EngineKind::Ort);

    let nowhere = Places { cache: vec!["/nowhere".into()], ..Places::default() };
    let (kind, why) = chosen(None, &nowhere).unwrap();
    assert_eq!(kind, EngineKind::Rten);
    assert!(why.contains("/nowhere") && why.contains("crdiff doctor --fetch"), "{why}");
    assert!(matches!(chosen(Some(EngineKind::Ort), &nowhere), Err(EngineError::LibraryNotFound { .. })));

    let wrong = Places { environment: Some("/nowhere/lib.so".into()), ..Places::default() };
    assert!(matches!(chosen(None, &wrong), Err(EngineError::LibraryUnusable { .. })));
    assert_eq!(chosen(Some(EngineKind::Rten), &wrong).unwrap().0, EngineKind::Rten);
    assert!(chosen(Some(EngineKind::Rten), &places()).is_err(), "a library was named for nothing");
    assert!("onnx".parse::<EngineKind>().unwrap_err().to_string().contains("ort, rten and tract"));
}

#[test]
fn the_doctor_tells_what_works_and_what_is_missing() {
    let report = examine(&places(), &[]);
    for kind in [EngineKind::Ort, EngineKind::Rten] {
        let engine = report.engines.iter().find(|e| e.engine == kind).unwrap();
        assert!(engine.works && engine.version.is_some(), "{engine:?}");
    }
    assert_eq!(report.preferred().unwrap().engine, EngineKind::Ort);
    assert_eq!(report.providers.len(), ProviderKind::ALL.len());
    for provider in &report.providers {
        assert_eq!(provider.works, provider.problem.is_none(), "{provider:?}");
        assert!(provider.works || provider.provider != ProviderKind::Cpu, "{provider:?}");
    }
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["providers"][0]["provider"], "cpu");
    assert_eq!(json["library"]["origin"], "given");

    let report = examine(&Places::default(), &[]);
    assert!(report.library.is_none() && report.providers.is_empty());
    let ort = &report.engines[0];
    assert!(!ort.works && ort.problem.as_ref().unwrap().contains("crdiff doctor --fetch"), "{ort:?}");
    assert_eq!(report.preferred().unwrap().engine, EngineKind::Rten);
}

/// The tables of options, against the names that the providers take: `tests/engine/provider_options.py` asked them.
#[test]
fn options_are_those_that_the_providers_take() {
    let taken: serde_json::Value =
        serde_json::from_str(include_str!("../../engine/provider_options.json")).unwrap();
    for kind in [ProviderKind::Cuda, ProviderKind::TensorRt] {
        let taken: Vec<&str> =
            taken[kind.to_string()].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        for name in kind.options() {
            assert!(taken.contains(name), "{kind} has no {name}");
        }
        let mut addresses = 0;
        for name in &taken {
            let mut provider = Provider::from(kind);
            provider.options.insert(name.to_string(), "0".to_string());
            if let Err(error) = provider.check() {
                assert!(error.to_string().contains("the address of something in memory"), "{error}");
                addresses += 1;
            }
        }
        assert_eq!(addresses + kind.options().len(), taken.len(), "{kind}");
    }
}
