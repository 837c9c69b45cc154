//! tract: fixed shapes only.

use crdiff::engine::{Engine, EngineError, Provider, ProviderKind, SessionOptions, TractEngine};

use crate::engine::support::{fixture, golden, max_difference, named};

#[test]
fn both_exports_at_two_sizes() {
    for export in ["torchscript", "dynamo"] {
        for size in ["8x8", "12x8"] {
            let (inputs, expected) = golden("sd15-mini", size);
            let fixed_dims =
                inputs.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
            let options = SessionOptions::default().fixed_dims(fixed_dims);
            let mut session =
                TractEngine.load(&fixture(&format!("sd15-mini/{export}/unet.onnx")), &options).unwrap();
            let outputs = session.run(&named(&inputs), Some(&["out_sample"])).unwrap();
            let difference = max_difference(&outputs[0].1, &expected);
            assert!(difference <= 1e-5, "{export} {size}: {difference}");
            let (other, _) = golden("sd15-mini", "18x10");
            let error = session.run(&named(&other), None).unwrap_err();
            assert!(matches!(error, EngineError::Signature { .. }), "{error:?}");
        }
    }
}

#[test]
fn what_it_cannot_do_is_said() {
    let path = fixture("sd15-mini/torchscript/unet.onnx");
    let error = TractEngine.load(&path, &SessionOptions::default()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("tract needs concrete dimensions for every input; `sample` float32["), "{error}");
    let providers = vec![Provider::from(ProviderKind::Cuda)];
    let options = SessionOptions::default().providers(providers);
    let error = TractEngine.load(&path, &options).map(|_| ()).unwrap_err();
    assert!(matches!(error, EngineError::Provider { .. }), "{error:?}");
}
