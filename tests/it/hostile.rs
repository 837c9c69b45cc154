//! Places that are no files, output that nobody reads, what a killed command leaves.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
};

use assert_cmd::prelude::*;

const PLAN: &str = "version: 1\nrules:\n  - bypass: mid_block.attentions.0\n";

fn work() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sd15-mini/torchscript/unet.onnx");
    fs::copy(fixture, folder.path().join("unet.onnx")).unwrap();
    fs::write(folder.path().join("plan.yaml"), PLAN).unwrap();
    assert!(Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
    folder
}

fn crdiff(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("crdiff").unwrap();
    command.current_dir(folder).args(arguments);
    command
}

/// Runs a command that must be refused; returns what it says.
fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = crdiff(folder, arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    said
}

#[test]
fn outputs_that_are_no_files() {
    let folder = work();
    let folder = folder.path();
    for place in ["pipe", "/dev/null", "/dev/stdout"] {
        let said = refused(folder, &["compile", "unet.onnx", "plan.yaml", "-o", place]);
        assert!(said.contains("it is a pipe or a device"), "{said}");
    }
}

#[test]
fn models_that_are_no_files() {
    let folder = work();
    let folder = folder.path();
    for (place, what) in
        [("pipe", "it is a pipe or a device"), (".", "it is a folder"), ("/dev/zero", "a device")]
    {
        for command in [&["inspect", place][..], &["digest", place], &["diff", place, "unet.onnx"]] {
            let said = refused(folder, command);
            assert!(said.contains(what), "{command:?}: {said}");
        }
    }
}

#[test]
fn reports_over_what_is_read_or_written() {
    let folder = work();
    let folder = folder.path();
    let before: Vec<Vec<u8>> =
        ["unet.onnx", "plan.yaml"].iter().map(|name| fs::read(folder.join(name)).unwrap()).collect();
    let compile = |report: &str| {
        refused(folder, &["compile", "unet.onnx", "plan.yaml", "-o", "out.onnx", "--report", report])
    };
    assert!(compile("unet.onnx").contains("a model that this command reads"));
    assert!(compile("plan.yaml").contains("the plan"));
    assert!(compile("out.onnx").contains("an output of this command"));
    assert!(compile("out.onnx_data").contains("an output of this command"));
    assert!(refused(folder, &["inspect", "unet.onnx", "--html", "./unet.onnx"]).contains("a model that"));
    assert!(
        refused(folder, &["diff", "unet.onnx", "unet.onnx", "--html", "unet.onnx"]).contains("a model that")
    );
    let after: Vec<Vec<u8>> =
        ["unet.onnx", "plan.yaml"].iter().map(|name| fs::read(folder.join(name)).unwrap()).collect();
    assert!(before == after && !folder.join("out.onnx").exists());
}

/// A folder that nothing can be written to, and a pipe: whatever a command is told to write there, it says so, and leaves
/// nothing. (Root may write anywhere but to what is no folder.)
#[test]
fn places_that_cannot_be_written() {
    let folder = work();
    let folder = folder.path();
    fs::write(folder.join("file"), "mine").unwrap();
    let before = names(folder);
    for place in ["/proc/nothing", "file/in", "missing/in"] {
        let at = |name: &str| format!("{place}/{name}");
        let commands: [(&[&str], String); 9] = [
            (&["compile", "unet.onnx", "plan.yaml", "-o"], at("a.onnx")),
            (&["compile", "unet.onnx", "plan.yaml", "-o", "a.onnx", "--report"], at("r.html")),
            (&["inspect", "unet.onnx", "--html"], at("i.html")),
            (&["diff", "unet.onnx", "unet.onnx", "--html"], at("d.html")),
            (&["export", "web", "unet.onnx", "-o"], format!("/proc/nothing/{place}")),
            (&["export", "triton", "unet.onnx", "-o"], format!("/proc/nothing/{place}")),
            (&["export", "trtexec", "unet.onnx", "--sizes", "64x64", "-o"], at("b.sh")),
            (&["man", "-o"], format!("/proc/nothing/{place}")),
            (&["compile", "unet.onnx", "plan.yaml", "--emit", "fused", "-o"], at("a.onnx")),
        ];
        for (command, output) in commands {
            let said = refused(folder, &[command, &[&output]].concat());
            assert!(
                said.starts_with("error: ") && !said.contains("crdiff-tmp"),
                "{command:?} {output}: {said}"
            );
            assert_eq!(names(folder), before, "{command:?}");
        }
    }
}

/// Files may not grow past a limit here, which fails as a full disk does, in the middle of a write: each command names
/// the file that it could not write, at its place, and leaves nothing.
#[test]
fn a_disk_that_fills() {
    let folder = work();
    let folder = folder.path();
    let before = names(folder);
    let commands: [(&[&str], &str); 7] = [
        (&["compile", "unet.onnx", "plan.yaml", "--weights", "copy", "-o", "a.onnx"], "a.onnx"),
        (&["compile", "unet.onnx", "plan.yaml", "--emit", "fused", "-o", "a.onnx"], "a.onnx"),
        (&["inspect", "unet.onnx", "--html", "i.html"], "i.html"),
        (&["diff", "unet.onnx", "unet.onnx", "--html", "d.html"], "d.html"),
        (&["export", "web", "unet.onnx", "-o", "new/web"], "new/web/unet.onnx"),
        (&["export", "triton", "unet.onnx", "-o", "new/models"], "new/models/unet/1/model.onnx"),
        (&["man", "-o", "new/pages"], "new/pages/crdiff-bench.1"),
    ];
    for (command, file) in commands {
        let mut limited = Command::new("sh");
        limited
            .current_dir(folder)
            .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""])
            .arg(Command::cargo_bin("crdiff").unwrap().get_program())
            .args(command);
        let output = limited.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{command:?}: {said}");
        assert!(said.starts_with(&format!("error: {file}")), "{command:?}: {said}");
        assert!(
            said.to_lowercase().contains("file too large") && !said.contains("tmp"),
            "{command:?}: {said}"
        );
        assert_eq!(names(folder), before, "{command:?}");
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn output_that_nobody_reads() {
    let folder = work();
    let folder = folder.path();
    let commands: [&[&str]; 10] = [
        &["compile", "unet.onnx", "plan.yaml", "--dry-run"],
        &["inspect", "unet.onnx"],
        &["digest", "unet.onnx"],
        &["diff", "unet.onnx", "unet.onnx"],
        &["verify", "unet.onnx", "unet.onnx", "--plan", "plan.yaml"],
        &["print", "unet.onnx"],
        &["compare", "unet.onnx", "unet.onnx", "--latent-size", "8x8", "--engine", "rten"],
        &["export", "trtexec", "unet.onnx", "--sizes", "64x64"],
        &["completions", "bash"],
        &["cache", "--json"],
    ];
    for command in commands {
        let is_text = command.first() == Some(&"print");
        for stdout in ["closed", "full"] {
            let mut command = crdiff(folder, command);
            command.stderr(Stdio::piped());
            if stdout == "full" {
                command.stdout(fs::File::create("/dev/full").unwrap());
            } else {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                command.stdout(writer);
            }
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            // A pager that has seen enough of a text is no failure.
            let is_pager = is_text && stdout == "closed";
            assert_eq!(
                output.status.code(),
                Some(if is_pager { 0 } else { 2 }),
                "{command:?}, {stdout}: {said}"
            );
            let expected = if is_pager { "" } else { "cannot write to standard output" };
            assert!(said.contains(expected), "{command:?}, {stdout}: {said}");
        }
    }
}

/// Two copies of a model, which may have gigabytes, are no litter to leave.
#[test]
fn an_interrupted_comparison_leaves_no_copies() {
    let folder = work();
    let folder = folder.path();
    crdiff(folder, &["compile", "unet.onnx", "plan.yaml", "-o", "out.onnx", "--quiet"]).assert().success();
    let temporary = folder.join("tmp");
    fs::create_dir(&temporary).unwrap();
    let compare =
        ["compare", "unet.onnx", "out.onnx", "--latent-size", "8x8", "--engine", "rten", "--bisect"];
    let mut command = crdiff(folder, &compare);
    let mut child =
        command.env("TMPDIR", &temporary).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    while names(&temporary).is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert_eq!(names(&temporary), Vec::<String>::new());
}

#[test]
fn numbers_beyond_float32() {
    let folder = work();
    let folder = folder.path();
    for number in ["1e39", "-1e300"] {
        let text =
            format!("version: 1\nrules: [{{ prune: {{ weights: \"**\", ratio: 0.5, scale: {number} }} }}]\n");
        fs::write(folder.join("wide.yaml"), text).unwrap();
        let said = refused(folder, &["compile", "unet.onnx", "wide.yaml", "--dry-run"]);
        assert!(said.contains("a number that float32 holds"), "{said}");
    }
}

#[test]
fn a_killed_compilation_is_cleaned_up_after() {
    let folder = work();
    let folder = folder.path();
    let arguments = ["compile", "unet.onnx", "plan.yaml", "-o", "out.onnx", "--weights", "copy", "--quiet"];
    // Files may not grow past a limit here: the signal ends the process in the middle of a write.
    let mut limited = Command::new("sh");
    let binary = Command::cargo_bin("crdiff").unwrap().get_program().to_owned();
    limited
        .current_dir(folder)
        .arg("-c")
        .arg("ulimit -f 64; ulimit -c 0; exec \"$0\" \"$@\"")
        .arg(binary)
        .args(arguments);
    limited.arg0("sh");
    assert!(!limited.output().unwrap().status.success());
    let litter = || {
        let names =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".out.onnx")).count()
    };
    fs::write(folder.join(".out.onnx.abcdef.crdiff-tmp"), "left by a process that was killed").unwrap();
    assert!(litter() > 0);
    crdiff(folder, &arguments).assert().success();
    assert_eq!(litter(), 0);
}

#[test]
fn a_name_of_ten_thousand_segments() {
    let folder = work();
    let folder = folder.path();
    let name = "/a".repeat(10_000);
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[2] x) => (float[2] y) <float[2,2] w = {{1,2,3,4}}> {{ [\"{name}/MatMul\"] y = MatMul(x, w) }}\n"
    );
    let model = crate::common::onnx_text::parse_model(&text).unwrap();
    fs::write(folder.join("deep.onnx"), prost::Message::encode_to_vec(&model)).unwrap();
    fs::write(folder.join("empty.yaml"), "version: 1\n").unwrap();
    let printed = |arguments: &[&str]| {
        String::from_utf8(crdiff(folder, arguments).assert().success().get_output().stdout.clone()).unwrap()
    };
    let text = printed(&["inspect", "deep.onnx"]);
    assert!(text.contains('…') && text.contains("/a/MatMul`") && text.len() < 2_000, "{text}");
    assert!(printed(&["inspect", "deep.onnx", "--json"]).contains(&name));
    crdiff(folder, &["verify", "deep.onnx", "deep.onnx", "--plan", "empty.yaml"]).assert().success();
    crdiff(folder, &["compile", "deep.onnx", "empty.yaml", "-o", "out.onnx"]).assert().success();
}
