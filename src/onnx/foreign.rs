//! Files that are taken for models and are none: what they are, and what makes a model of them.

use std::path::Path;

/// How a Git LFS pointer begins.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Returns what a file that begins with `bytes` is instead of a model, if that is known.
pub(super) fn kind(bytes: &[u8]) -> Option<&'static str> {
    let is_safetensors = || {
        let (length, rest) = bytes.split_first_chunk::<8>()?;
        Some(rest.first() == Some(&b'{') && u64::from_le_bytes(*length) < 1 << 30)
    };
    let is_pickle =
        || bytes.first() == Some(&0x80) && bytes.get(1).is_some_and(|version| (2..=5).contains(version));
    if is_pointer(bytes) {
        Some("it is a Git LFS pointer, which stands for the model: `git lfs pull` fetches the file itself")
    } else if is_safetensors().unwrap_or(false) {
        Some(
            "it is a safetensors file, weights without a network: export the pipeline to ONNX first (docs/cookbook.md)",
        )
    } else if bytes.starts_with(b"PK\x03\x04") || is_pickle() {
        Some(
            "it is a PyTorch checkpoint, weights without a network: export the pipeline to ONNX first (docs/cookbook.md)",
        )
    } else {
        None
    }
}

/// Returns a question for the model that is probably meant by the folder at `path`, if one is in it.
pub(super) fn meant(path: &Path) -> String {
    let mut inside = ["unet/model.onnx", "model.onnx", "unet.onnx"].iter().map(|name| path.join(name));
    let meant = inside.find(|path| path.is_file());
    meant.map(|path| format!("; did you mean {}?", path.display())).unwrap_or_default()
}

/// Returns whether a file that begins with `bytes` is a Git LFS pointer.
pub(super) fn is_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(LFS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_no_models_are_known() {
        let known =
            |bytes: &[u8], word: &str| assert!(kind(bytes).is_some_and(|kind| kind.contains(word)), "{word}");
        known(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git lfs pull");
        known(b"\x08\0\0\0\0\0\0\0{\"a\":{}}", "safetensors");
        known(b"PK\x03\x04archive/data.pkl", "checkpoint");
        known(b"\x80\x02}q\0", "checkpoint");
        assert_eq!(kind(b"\x08\x08\x12\x07pytorch"), None);
        assert_eq!(kind(b""), None);
    }
}
