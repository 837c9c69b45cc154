//! A graph edited by another tool: `tests/data/verify/bypass.py` took `mid_block.attentions.0` out of
//! `fixtures/sd15-mini/torchscript` with onnx-graphsurgeon.

use std::path::Path;

use super::support::{fixtures, plan, verdict};

#[test]
fn bypassed_with_graphsurgeon() {
    let original = fixtures().join("sd15-mini/torchscript/unet.onnx");
    let edited = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/verify/bypassed.onnx");
    let right = verdict(&original, &edited, &plan("version: 1\nrules: [{ bypass: mid_block.attentions.0 }]"));
    assert!(right.is_proven(), "{:#?}", right.differences);
    assert_eq!(right.notes.len(), 1);
    let wrong = verdict(&original, &edited, &plan("version: 1\nrules: [{ bypass: mid_block.resnets.1 }]"));
    assert!(!wrong.is_proven());
}
