//! CUDA, cuDNN and TensorRT from pip's wheels: libraries that no search path names.
//!
//! `pip install onnxruntime-gpu nvidia-cudnn-cu13 ...` puts ONNX Runtime into `site-packages/onnxruntime/capi` and
//! NVIDIA's libraries into `site-packages/nvidia/*/lib`. Loading them before ONNX Runtime loads its provider lets the
//! dynamic linker resolve the provider's dependencies by their names.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Once,
};

use crate::engine::ProviderKind;

/// Beginnings of file names, each library after those that it needs.
const LIBRARIES: [&str; 10] = [
    "libcudart.so.",
    "libnvJitLink.so.",
    "libnvrtc.so.",
    "libcublasLt.so.",
    "libcublas.so.",
    "libcurand.so.",
    "libcufft.so.",
    "libcudnn.so.",
    "libnvinfer.so.",
    "libnvonnxparser.so.",
];

/// Loads the libraries of a provider that lie in the Python environment of the ONNX Runtime at `library`, once a
/// process. The system's own, where the dynamic linker finds them, are preferred. A library that cannot be loaded is
/// left out: the provider's error names it.
pub(super) fn preload(provider: ProviderKind, library: &Path) {
    static CUDA: Once = Once::new();
    static TENSORRT: Once = Once::new();
    let (once, wanted) = match provider {
        ProviderKind::Cuda => (&CUDA, &LIBRARIES[..8]),
        ProviderKind::TensorRt => (&TENSORRT, &LIBRARIES[..]),
        _ => return,
    };
    once.call_once(|| {
        for path in wheels(library, wanted) {
            let name = path.file_name().unwrap_or_default();
            // SAFETY: loading runs initialisers. These are libraries that ONNX Runtime's provider is about to load by
            // the same names.
            let loaded =
                unsafe { libloading::Library::new(name).or_else(|_| libloading::Library::new(&path)) };
            // They stay: the provider uses them until the process ends.
            loaded.map(std::mem::forget).ok();
        }
    });
}

/// Returns the libraries of the environment of the ONNX Runtime at `library`, in the order of `wanted`.
fn wheels(library: &Path, wanted: &[&str]) -> Vec<PathBuf> {
    // site-packages/onnxruntime/capi/libonnxruntime.so.1.31.1
    let capi = library.parent().filter(|folder| folder.ends_with("onnxruntime/capi"));
    let Some(packages) = capi.and_then(|folder| folder.ancestors().nth(2)) else { return Vec::new() };
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        paths
    };
    let folders = entries(&packages.join("nvidia")).into_iter().map(|package| package.join("lib"));
    let files: Vec<PathBuf> =
        folders.chain([packages.join("tensorrt_libs")]).flat_map(|folder| entries(&folder)).collect();
    // `libcudart.so.13`, not `libcudart.so.13.0.96`: the linker looks for the former.
    let is_named = |path: &Path, beginning: &str| {
        let version = path.file_name().and_then(|name| name.to_str()?.strip_prefix(beginning));
        version.is_some_and(|version| version.parse::<u32>().is_ok())
    };
    let named = |beginning: &&str| -> Vec<PathBuf> {
        files.iter().filter(|path| is_named(path, beginning)).cloned().collect()
    };
    wanted.iter().flat_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_of_the_same_environment_in_the_order_of_their_needs() {
        let folder = tempfile::tempdir().unwrap();
        let packages = folder.path().join("lib/python3.12/site-packages");
        for name in [
            "nvidia/cu13/lib/libcublas.so.13",
            "nvidia/cu13/lib/libcublasLt.so.13",
            "nvidia/cu13/lib/libcudart.so.13",
            "nvidia/cu13/lib/libcudart.so.13.0.96",
            "nvidia/cu13/lib/libcusparse.so.12",
            "nvidia/cudnn/lib/libcudnn.so.9",
            "nvidia/cudnn/include/cudnn.h",
            "nvidia/__init__.py",
            "tensorrt_libs/libnvinfer.so.10",
        ] {
            let path = packages.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let library = packages.join("onnxruntime/capi/libonnxruntime.so.1.31.1");
        let cuda = ["cu13/lib/libcudart.so.13", "cu13/lib/libcublasLt.so.13", "cu13/lib/libcublas.so.13"];
        let mut expected: Vec<PathBuf> = cuda.iter().map(|name| packages.join("nvidia").join(name)).collect();
        expected.push(packages.join("nvidia/cudnn/lib/libcudnn.so.9"));
        assert_eq!(wheels(&library, &LIBRARIES[..8]), expected);
        expected.push(packages.join("tensorrt_libs/libnvinfer.so.10"));
        assert_eq!(wheels(&library, &LIBRARIES), expected);
        // Elsewhere nothing is guessed.
        assert!(wheels(&packages.join("lib/libonnxruntime.so"), &LIBRARIES).is_empty());
    }

    /// Stands in for the real libraries, whose names the linker has to know once they are loaded: that of cuDNN needs
    /// that of the runtime, which no search path has.
    #[test]
    fn libraries_of_wheels_are_there_for_those_that_need_them() {
        let folder = tempfile::tempdir().unwrap();
        let packages = folder.path().join("site-packages");
        let library = |path: &str, needs: &[&Path]| {
            let path = packages.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let source = folder.path().join("empty.c");
            fs::write(&source, "int made_for_a_test;\n").unwrap();
            let soname = path.file_name().unwrap().to_str().unwrap();
            let mut compiler = std::process::Command::new("cc");
            compiler.args(["-shared", "-fPIC", "-Wl,--no-as-needed", &format!("-Wl,-soname,{soname}"), "-o"]);
            assert!(compiler.arg(&path).arg(&source).args(needs).status().unwrap().success());
            path
        };
        // Majors that no release has, so that none of this machine's own is meant.
        let runtime = library("nvidia/cu13/lib/libcudart.so.9901", &[]);
        library("nvidia/cudnn/lib/libcudnn.so.9902", &[&runtime]);
        // SAFETY: the libraries are this test's own, and have nothing to initialise.
        let open = |name: &str| unsafe { libloading::Library::new(name) };
        assert!(open("libcudnn.so.9902").is_err());
        preload(ProviderKind::Cuda, &packages.join("onnxruntime/capi/libonnxruntime.so"));
        assert!(open("libcudart.so.9901").is_ok());
        assert!(open("libcudnn.so.9902").is_ok());
    }
}
