//! Output files appear complete or not at all, and never over what they are made from.

use std::{
    env, fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        process::CommandExt,
    },
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crdiff::{
    ir::{Graph, Transform},
    observer::{Event, Stage},
    onnx::{self, OnnxError, WeightPolicy, WriteOptions},
};

use crate::common::observer::Hears;

use super::{UpTo, fixture, listing, load, mask, workspace, write};

/// Tells a test that it is the child process of itself, and where to work.
const CHILD: &str = "CRDIFF_TEST_CHILD";

fn pruned(source: &Path) -> Graph {
    let mut graph = load(source);
    mask(&mut graph, 0, Arc::new(UpTo(0.05)));
    graph
}

/// Names and contents of a folder's files.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    listing(folder).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

#[test]
fn what_the_output_is_made_from_is_not_overwritten() {
    let (work, source) = workspace(&fixture("sd15-mini/dynamo/unet.onnx"));
    let folder = source.parent().unwrap();
    let data = folder.join("unet.onnx.data");
    let plan = folder.join("plan.yaml");
    fs::write(&plan, "version: 1").unwrap();
    fs::hard_link(&source, folder.join("hard.onnx")).unwrap();
    symlink("unet.onnx", folder.join("soft.onnx")).unwrap();
    symlink(folder, work.path().join("linked")).unwrap();
    let before = contents(folder);
    let linked = work.path().join("linked");
    let outputs = [
        (source.clone(), "the model that is being compiled"),
        (linked.join("unet.onnx"), "the model that is being compiled"),
        (folder.join("hard.onnx"), "the model that is being compiled"),
        (folder.join("soft.onnx"), "the model that is being compiled"),
        (data, "a file with weights"),
        (plan.clone(), "a file that this command reads"),
        (folder.to_path_buf(), "it is a folder"),
        (work.path().join("missing/out.onnx"), "does not exist"),
        (source.join("out.onnx"), "is not a folder"),
        (folder.join(".."), "file name"),
    ];
    for (output, reason) in &outputs {
        for graph in [load(&source), pruned(&source)] {
            for policy in [WeightPolicy::Share, WeightPolicy::Copy] {
                let protected = [plan.clone()];
                let options = WriteOptions::new(output, policy).protected(&protected);
                let error = onnx::write(&graph, &options).unwrap_err();
                assert!(matches!(error, OnnxError::Output { .. }), "{error}");
                assert!(error.to_string().contains(reason), "{}: {error}", output.display());
            }
        }
    }
    assert_eq!(contents(folder), before);
}

#[test]
fn the_data_file_does_not_overwrite_an_input_either() {
    let (_work, source) = workspace(&fixture("sd15-mini/torchscript/unet.onnx"));
    let named = source.with_file_name("x_data");
    fs::rename(&source, &named).unwrap();
    let before = contents(named.parent().unwrap());
    let error = write(&pruned(&named), &named.with_file_name("x"), WeightPolicy::Share).unwrap_err();
    assert!(error.to_string().contains("the model that is being compiled"), "{error}");
    assert_eq!(contents(named.parent().unwrap()), before);
}

#[test]
fn other_data_under_the_name_that_an_unedited_copy_needs_is_kept() {
    let (work, source) = workspace(&fixture("sd15-mini/dynamo/unet.onnx"));
    let folder = work.path().join("taken");
    fs::create_dir(&folder).unwrap();
    let data = fs::read(source.with_file_name("unet.onnx.data")).unwrap();
    let output = folder.join("out.onnx");
    for other in [b"other".to_vec(), vec![0; data.len()]] {
        fs::write(folder.join("unet.onnx.data"), &other).unwrap();
        let error = write(&load(&source), &output, WeightPolicy::Copy).unwrap_err();
        assert!(error.to_string().contains("another file"), "{error}");
        assert_eq!(contents(&folder), [("unet.onnx.data".to_string(), other)]);
    }
    fs::write(folder.join("unet.onnx.data"), &data).unwrap();
    let error = write(&load(&source), &folder.join("unet.onnx.data"), WeightPolicy::Copy).unwrap_err();
    assert!(error.to_string().contains("another file of the same output"), "{error}");
    let written = write(&load(&source), &output, WeightPolicy::Copy).unwrap();
    assert_eq!(written.shared_with, [folder.join("unet.onnx.data")]);
}

#[test]
fn an_older_output_is_replaced_and_nothing_is_left_over() {
    let (_work, source) = workspace(&fixture("sd15-mini/dynamo/unet.onnx"));
    let folder = source.parent().unwrap();
    let output = folder.join("out.onnx");
    fs::write(&output, "old model").unwrap();
    fs::write(folder.join("out.onnx_data"), "old data").unwrap();
    let written = write(&pruned(&source), &output, WeightPolicy::Share).unwrap();
    assert_eq!(listing(folder), ["out.onnx", "out.onnx_data", "unet.onnx", "unet.onnx.data"]);
    for (path, len) in &written.files {
        assert_eq!(fs::metadata(path).unwrap().len(), *len);
    }
    let plain = folder.join("plain");
    fs::write(&plain, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&output), mode(&plain));
    assert_eq!(mode(&folder.join("out.onnx_data")), mode(&plain));
}

#[test]
fn data_of_an_earlier_output_that_is_not_used_any_more_is_told_and_left_alone() {
    let (_work, source) = workspace(&fixture("sd15-mini/dynamo/unet.onnx"));
    let folder = source.parent().unwrap();
    let output = folder.join("out.onnx");
    let data = folder.join("out.onnx_data");
    assert_eq!(write(&pruned(&source), &output, WeightPolicy::Share).unwrap().left_over, None);
    let before = fs::read(&data).unwrap();
    let mut renamed = load(&source);
    renamed.edit().set_graph_name("renamed");
    let written = write(&renamed, &output, WeightPolicy::Share).unwrap();
    assert_eq!(written.left_over.as_ref(), Some(&data));
    assert_eq!(fs::read(&data).unwrap(), before);
}

#[test]
fn a_relative_output_in_the_current_folder_needs_no_folder_name() {
    let error = write(
        &load(&fixture("sd15-mini/torchscript/unet.onnx")),
        Path::new("Cargo.toml/out.onnx"),
        WeightPolicy::Copy,
    );
    assert!(error.unwrap_err().to_string().contains("is not a folder"));
    let name = PathBuf::from(format!("{}.onnx", std::process::id()));
    write(&load(&fixture("sd15-mini/torchscript/unet.onnx")), &name, WeightPolicy::Copy).unwrap();
    fs::remove_file(&name).unwrap();
}

/// Checks that a failed [`pruned`] write by `attempt` leaves the folder, which holds an older output, as it was.
fn leaves_no_trace(attempt: impl Fn(&Path, &Path)) {
    for older in [false, true] {
        let (_work, source) = workspace(&fixture("sd15-mini/dynamo/unet.onnx"));
        let folder = source.parent().unwrap();
        if older {
            fs::write(folder.join("out.onnx"), "old model").unwrap();
            fs::write(folder.join("out.onnx_data"), "old data").unwrap();
        }
        let before = contents(folder);
        attempt(&source, &folder.join("out.onnx"));
        assert!(contents(folder) == before, "{:?}", listing(folder));
    }
}

#[test]
fn a_stopped_write_leaves_no_trace() {
    for (policy, edited) in
        [(WeightPolicy::Share, true), (WeightPolicy::Copy, true), (WeightPolicy::Copy, false)]
    {
        leaves_no_trace(|source, output| {
            let graph = if edited { pruned(source) } else { load(source) };
            let seen = AtomicU64::new(0);
            let stop = Hears::new(|event| {
                let Event::Bytes(Stage::Writing, bytes) = event else { panic!("{event:?}") };
                seen.fetch_add(bytes, Ordering::Relaxed) + bytes > 0
            });
            let options = WriteOptions::new(output, policy).observer(&stop);
            assert!(matches!(onnx::write(&graph, &options), Err(OnnxError::Stopped)));
            assert!(seen.load(Ordering::Relaxed) > 0);
        });
    }
}

#[test]
fn progress_adds_up_to_what_was_written() {
    let (_work, source) = workspace(&fixture("sd15-mini/torchscript/unet.onnx"));
    let seen = AtomicU64::new(0);
    let count = Hears::new(|event| {
        let Event::Bytes(Stage::Writing, bytes) = event else { panic!("{event:?}") };
        seen.fetch_add(bytes, Ordering::Relaxed);
        false
    });
    let output = source.with_file_name("out.onnx");
    let policy = WeightPolicy::Copy;
    let options = WriteOptions::new(&output, policy).observer(&count);
    let written = onnx::write(&pruned(&source), &options).unwrap();
    assert_eq!(seen.into_inner(), written.bytes_written);
}

#[derive(Debug)]
struct Panics;

impl Transform for Panics {
    fn granularity(&self) -> usize {
        1
    }

    fn start(&self) -> Box<dyn FnMut(&mut [u8]) -> u64 + Send> {
        panic!("a defect in a mask")
    }
}

#[test]
fn a_panic_leaves_no_trace() {
    for policy in [WeightPolicy::Share, WeightPolicy::Copy] {
        leaves_no_trace(|source, output| {
            let mut graph = load(source);
            mask(&mut graph, 1024, Arc::new(Panics));
            assert!(catch_unwind(AssertUnwindSafe(|| write(&graph, output, policy))).is_err());
        });
    }
}

#[test]
fn a_data_file_that_cannot_be_replaced_leaves_no_trace() {
    let (_work, source) = workspace(&fixture("sd15-mini/dynamo/unet.onnx"));
    let folder = source.parent().unwrap();
    fs::write(folder.join("out.onnx"), "old model").unwrap();
    fs::create_dir(folder.join("out.onnx_data")).unwrap();
    let error = write(&pruned(&source), &folder.join("out.onnx"), WeightPolicy::Share).unwrap_err();
    assert!(error.to_string().contains("it is a folder"), "{error}");
    assert_eq!(listing(folder), ["out.onnx", "out.onnx_data", "unet.onnx", "unet.onnx.data"]);
    assert_eq!(fs::read(folder.join("out.onnx")).unwrap(), b"old model");
}

fn passed(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Files may not grow past a limit here, which fails as a full disk does: in the middle of a write.
#[test]
fn a_full_disk_leaves_no_trace() {
    if let Some(folder) = env::var_os(CHILD) {
        let source = Path::new(&folder).join("unet.onnx");
        for (graph, policy) in [
            (pruned(&source), WeightPolicy::Share),
            (pruned(&source), WeightPolicy::Copy),
            (load(&source), WeightPolicy::Copy),
        ] {
            let error = write(&graph, &source.with_file_name("out.onnx"), policy).unwrap_err();
            let OnnxError::Io { action, source, .. } = &error else { panic!("{error}") };
            assert_eq!((action.as_str(), source.kind()), ("write", std::io::ErrorKind::FileTooLarge));
        }
        return;
    }
    leaves_no_trace(|source, _| {
        let child = Command::new("sh")
            .args([
                "-c",
                "trap '' XFSZ; ulimit -f 32; exec \"$0\" --exact onnx_write::files::a_full_disk_leaves_no_trace",
            ])
            .arg(env::current_exe().unwrap())
            .env(CHILD, source.parent().unwrap())
            .output();
        passed(&child.unwrap());
    });
}

#[test]
fn a_read_only_folder_is_refused() {
    if let Some(folder) = env::var_os(CHILD) {
        let source = Path::new(&folder).join("unet.onnx");
        for graph in [load(&source), pruned(&source)] {
            let error = write(&graph, &source.with_file_name("out.onnx"), WeightPolicy::Share).unwrap_err();
            let OnnxError::Io { action, source, .. } = &error else { panic!("{error}") };
            assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied);
            assert_eq!(action, "create a file in this folder");
        }
        return;
    }
    let (work, source) = workspace(&fixture("sd15-mini/torchscript/unet.onnx"));
    let folder = source.parent().unwrap();
    let test = work.path().join("test");
    fs::copy(env::current_exe().unwrap(), &test).unwrap();
    for path in [work.path(), folder] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o555)).unwrap();
    }
    let mut child = Command::new(&test);
    child.args(["--exact", "onnx_write::files::a_read_only_folder_is_refused"]).env(CHILD, folder);
    if fs::metadata(folder).unwrap().uid() == 0 {
        // Permissions don't bind root, so the child is somebody else.
        child.uid(65534).gid(65534);
    }
    let output = child.output();
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    passed(&output.unwrap());
    assert_eq!(listing(folder), ["unet.onnx"]);
}
