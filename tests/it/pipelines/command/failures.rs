//! Runs that cannot be done, or are interrupted: the error, the exit code, and that nothing is left.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{Png, crdiff, done, files, planned, run, stderr};
use crate::pipelines::support::prepare;

#[test]
fn nothing_is_written_over_and_places_are_looked_at_first() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    fs::create_dir(folder.join("folder")).unwrap();
    fs::write(folder.join("there.png"), "mine").unwrap();
    fs::write(folder.join("there-2.jpg"), "mine").unwrap();
    fs::write(folder.join("l.npy"), "mine").unwrap();
    for (arguments, expected) in [
        ("-o missing/a.png", "missing/a.png: the folder missing does not exist; make it first"),
        ("-o folder", "folder: it is a folder; name a file in it"),
        ("-o a.gif", "a.gif: .gif is no image format here; end it in .png, .jpg or .webp"),
        ("-o a", "a: its name says no format; end it in .png, .jpg or .webp"),
        ("-o there.png", "there.png is there already; --force writes over it"),
        ("-o there.jpg --seed 1,2", "there-2.jpg is there already"),
        ("-o a.png --save-latents l.npy", "l.npy is there already"),
        ("-o a.png --save-latents missing/l.npy", "missing/l.npy: the folder missing does not exist"),
    ] {
        let output = run(&prepared, &format!("--dense --json {arguments}"));
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true), "{arguments}");
        assert!(stderr(&output).contains(expected), "{arguments}: {}", stderr(&output));
    }
    done(&run(&prepared, "--dense -o there.png --save-latents l.npy --force"));
    assert_eq!(Png::open(&folder.join("there.png")).width, 40);
    // The default name is nobody's choice.
    done(&run(&prepared, "--dense"));
    let again = run(&prepared, "--dense --seed 2");
    done(&again);
    let said = String::from_utf8(again.stdout).unwrap();
    assert_eq!(said, "out.png (in place of the one that was there)\n");
    done(&run(&prepared, "--dense --seed 1,2 -o b.webp"));
    assert!(fs::read(folder.join("b-1.webp")).unwrap().starts_with(b"RIFF"));
}

/// Files may not grow past a limit here, which fails as a full disk does, in the middle of a write.
#[test]
fn an_image_on_a_full_disk_leaves_nothing() {
    let prepared = prepare("sd15");
    let folder = prepared.pipeline.parent().unwrap();
    let before = files(folder);
    for name in ["a.png", "a.jpg", "a.webp"] {
        let drawn = crdiff(&prepared);
        let mut limited = Command::new("sh");
        limited
            .current_dir(folder)
            .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""])
            .arg(drawn.get_program())
            .args([
                "run", "pipeline", "--engine", "rten", "--dense", "--prompt", "the cat", "--size", "64x64",
            ])
            .args(["--steps", "1", "-o", name]);
        let output = limited.output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(name) && said.to_lowercase().contains("file too large"), "{said}");
        assert!(!said.contains("tmp"), "{said}");
        assert_eq!(files(folder), before);
    }
}

#[test]
fn what_cannot_be_done_is_said_with_exit_code_2() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    fs::write(folder.join("no.png"), "no image").unwrap();
    fs::write(folder.join("cuda.yaml"), "version: 1\nrules: []\nruntime: {providers: [cuda]}\n").unwrap();
    for (name, runtime) in [
        ("option.yaml", "{providers: [tensorrt], options: {tensorrt: {trt_fp16: 1}}}"),
        ("other.yaml", "{providers: [cpu], options: {cuda: {device_id: 1}}}"),
    ] {
        fs::write(folder.join(name), format!("version: 1\nrules: []\nruntime: {runtime}\n")).unwrap();
    }
    let cases = [
        ("", "nothing says what to run: give --plan"),
        ("--dense --compare", "cannot be used with"),
        ("--plan missing.yaml", "missing.yaml"),
        ("--dense --scheduler Nothing", "there is no scheduler `Nothing`; there are DDIMScheduler, "),
        ("--dense --scheduler eulr", "did you mean `euler`?"),
        ("--dense --scheduler-option use_karas=true", "PNDMScheduler has no setting `use_karas`"),
        (
            "--dense --scheduler euler --scheduler-option use_karas_sigmas=true",
            "did you mean `use_karras_sigmas`?",
        ),
        ("--dense --scheduler-option x", "write KEY=VALUE"),
        ("--dense --scheduler-option prediction_type=flow", "`prediction_type`"),
        ("--dense --batch 3 --seed 1 --seed 2", "2 seeds for 3 images"),
        ("--dense --weight 2", "--weight is for a dense and a pruned network"),
        ("--dense --provider-option device_id=1", "a provider that isn't run"),
        (
            "--dense --provider cuda --provider-option device=1",
            "option `device` of the cuda provider: there is none of this name; did you mean `device_id`?",
        ),
        ("--plan option.yaml", "option `trt_fp16` of the tensorrt provider"),
        ("--plan other.yaml", "`runtime.options` are for cuda, which is not in its `providers`"),
        ("--dense --provider cuda", "rten runs on the CPU only"),
        ("--plan cuda.yaml", "rten runs on the CPU only"),
        ("--replay no.png", "no.png: "),
    ];
    for (arguments, expected) in cases {
        let output = run(&prepared, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{arguments}: {}", stderr(&output));
    }
    let output = crdiff(&prepared).args(["run", "--replay", "no.png"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!files(folder).iter().any(|name| name.ends_with("out.png") || name.starts_with(".crdiff")));
}

#[test]
fn cuda_without_a_cuda_build_is_an_error_that_says_what_is_needed() {
    let prepared = planned();
    let library = crate::common::ort::ort_library();
    let mut command = crdiff(&prepared);
    command.args(["run", "pipeline", "--engine", "ort", "--dense", "--prompt", "cat", "--size", "32x40"]);
    let output = command.args(["--provider", "cuda"]).arg("--ort-lib").arg(library).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // Where the library has CUDA, there may be no device: that is an error that names the provider, too.
    let said = stderr(&output);
    assert!(said.contains("on cuda") && said.contains("it needs a CUDA build of ONNX Runtime"), "{said}");
    assert!(!prepared.pipeline.with_file_name("out.png").exists());
}

/// `--fused` with a graph of our own compiler is the plan's two networks, to rounding.

#[test]
fn folders_that_are_no_pipeline_or_cannot_be_written() {
    let prepared = planned();
    let folder = prepared.pipeline.parent().unwrap();
    fs::write(folder.join("file"), "").unwrap();
    let mut nowhere = crdiff(&prepared);
    nowhere.args(["run", "file", "--engine", "rten", "--dense", "--prompt", "cat"]);
    let output = nowhere.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("file: it is a file, and a pipeline is a folder"),
        "{}",
        stderr(&output)
    );
    fs::remove_file(prepared.pipeline.join("tokenizer/vocab.json")).unwrap();
    let output = run(&prepared, "--dense");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("pipeline/tokenizer: there is no vocab.json"), "{}", stderr(&output));
    assert_eq!(files(folder).iter().filter(|name| name.ends_with("png")).count(), 0);
}

#[test]
fn an_interrupt_stops_between_steps_and_leaves_nothing() {
    let prepared = prepare("sd15");
    let folder = prepared.pipeline.parent().unwrap().to_path_buf();
    let before = files(&folder);
    let mut child = crdiff(&prepared)
        .args([
            "run", "pipeline", "--engine", "rten", "--dense", "--json", "--prompt", "cat", "--size", "64x64",
        ])
        .args(["--steps", "900", "-o", "a.png", "--save-latents", "l.npy", "--preview", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first event of a call says that sampling is under way.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains(r#""call""#)));
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let started = Instant::now();
    let rest = lines.count();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(stderr(&output).contains("interrupted; nothing was written"));
    assert!(
        rest < 890,
        "it went on for {rest} calls, {:?}",
        Duration::from_secs(started.elapsed().as_secs())
    );
    let mut after = files(&folder);
    // The models' digests are kept.
    after.retain(|name| name != "cache");
    assert_eq!(after, before);
}
