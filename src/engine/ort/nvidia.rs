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

/// Beginnings of file names of what NVIDIA's plug-in for TensorRT for RTX needs, each after those that it needs.
const OF_PLUG_IN: [&str; 3] = ["libcudart.so.", "libtensorrt_rtx.so.", "libtensorrt_onnxparser_rtx.so."];

/// Loads what lies beside a plug-in library in NVIDIA's wheel of it, where the linker doesn't find it: the files have their full
/// versions for names.
pub(super) fn preload_beside(plug_in: &Path) {
    let Some(folder) = plug_in.parent() else { return };
    let files = entries(folder);
    for beginning in OF_PLUG_IN {
        let is_named = |path: &&PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning))
        };
        for path in files.iter().filter(is_named) {
            // SAFETY: loading runs initialisers. The plug-in is about to load these libraries by their names in them.
            let loaded = unsafe { libloading::Library::new(path) };
            // They stay: the plug-in uses them until the process ends.
            loaded.map(std::mem::forget).ok();
        }
    }
}

/// Returns what is in a folder, in the order of names.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// Returns the libraries of the environment of the ONNX Runtime at `library`, in the order of `wanted`.
fn wheels(library: &Path, wanted: &[&str]) -> Vec<PathBuf> {
    // site-packages/onnxruntime/capi/libonnxruntime.so.1.31.1
    let capi = library.parent().filter(|folder| folder.ends_with("onnxruntime/capi"));
    let Some(packages) = capi.and_then(|folder| folder.ancestors().nth(2)) else { return Vec::new() };
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

    /// Makes a library that stands in for a real one: its file, the name in it, and what it needs.
    fn library(path: PathBuf, name: &str, needs: &[&Path]) -> PathBuf {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let source = path.with_extension("c");
        fs::write(&source, "int made_for_a_test;\n").unwrap();
        let mut compiler = std::process::Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wl,--no-as-needed", &format!("-Wl,-soname,{name}"), "-o"]);
        assert!(compiler.arg(&path).arg(&source).args(needs).status().unwrap().success());
        path
    }

    fn can_be_loaded(library: impl AsRef<std::ffi::OsStr>) -> bool {
        // SAFETY: the libraries are these tests' own, and have nothing to initialise.
        unsafe { libloading::Library::new(library.as_ref()) }.is_ok()
    }

    /// The linker has to know libraries by their names once they are loaded: cuDNN needs the runtime, which no search path
    /// has. Their majors are those of no release, so that none of this machine's own is meant.
    #[test]
    fn libraries_of_wheels_are_there_for_those_that_need_them() {
        let folder = tempfile::tempdir().unwrap();
        let packages = folder.path().join("site-packages");
        let made = |path: &str, needs: &[&Path]| {
            let path = packages.join(path);
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            library(path, &name, needs)
        };
        let runtime = made("nvidia/cu13/lib/libcudart.so.9901", &[]);
        made("nvidia/cudnn/lib/libcudnn.so.9902", &[&runtime]);
        assert!(!can_be_loaded("libcudnn.so.9902"));
        preload(ProviderKind::Cuda, &packages.join("onnxruntime/capi/libonnxruntime.so"));
        assert!(can_be_loaded("libcudart.so.9901"));
        assert!(can_be_loaded("libcudnn.so.9902"));
    }

    #[test]
    fn libraries_beside_a_plug_in_are_there_for_it_whatever_their_files_are_called() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let runtime = library(at("libcudart.so.9903.4.36"), "libcudart.so.9903", &[]);
        let tensorrt = library(at("libtensorrt_rtx.so.9904.7"), "libtensorrt_rtx.so.9904", &[&runtime]);
        let plug_in = library(at("libplug_in.so"), "libplug_in.so", &[&runtime, &tensorrt]);
        assert!(!can_be_loaded(&plug_in));
        preload_beside(&plug_in);
        assert!(can_be_loaded(&plug_in));
    }
}
