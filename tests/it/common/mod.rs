//! Parts that suites share: models, compilations, and what is fetched to judge them with.

pub mod backend;
pub mod compiled;
pub mod decoded;
pub mod edit;
pub mod node;
pub mod observer;
pub mod onnx_text;
#[cfg(feature = "runner")]
pub mod ort;
#[cfg(feature = "runner")]
pub mod outputs;
#[cfg(feature = "runner")]
pub mod watched;

/// Fails a test that fetches something, or loads ONNX Runtime, though `cargo quick` runs it.
pub fn not_quick() {
    let thread = std::thread::current();
    // libtest names threads after tests; a test's own threads have no names.
    let Some(test) = thread.name().filter(|name| name.contains("::")) else { return };
    let alias = include_str!("../../../.cargo/config.toml");
    let mut skipped = alias.split("\"--skip\", \"").skip(1).filter_map(|rest| rest.split('"').next());
    assert!(
        skipped.any(|part| test.contains(part)),
        "{test} needs the network or ONNX Runtime: leave it out of `cargo quick` in .cargo/config.toml"
    );
}
