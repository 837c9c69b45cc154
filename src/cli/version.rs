//! `--version`: this program and the engines that it runs models with.

use std::sync::LazyLock;

/// Returns the text that `--version` prints after the program's name. It opens nothing: `crdiff doctor` tries the
/// engines.
pub fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let mut text = env!("CARGO_PKG_VERSION").to_string();
        for (engine, version) in engines() {
            text.push_str(&format!("\n{engine:<14}{version}"));
        }
        text
    });
    &TEXT
}

#[cfg(feature = "runner")]
fn engines() -> [(&'static str, String); 3] {
    use crate::engine::{Engine, OLDEST_ONNXRUNTIME_MINOR, RtenEngine, fetch::ONNXRUNTIME_VERSION};
    #[cfg(feature = "tract")]
    let tract = format!("{}, built in", crate::engine::TractEngine.version());
    #[cfg(not(feature = "tract"))]
    let tract = "not built in (feature `tract`)".to_string();
    let onnxruntime = format!(
        "1.{OLDEST_ONNXRUNTIME_MINOR} or later, loaded when needed; `crdiff doctor --fetch` gets {ONNXRUNTIME_VERSION}"
    );
    [("ONNX Runtime", onnxruntime), ("rten", format!("{}, built in", RtenEngine.version())), ("tract", tract)]
}

#[cfg(not(feature = "runner"))]
fn engines() -> [(&'static str, String); 1] {
    [("engines", "none: built without the feature `runner`".to_string())]
}
