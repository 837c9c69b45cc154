//! Mistakes that people make, and what they are told: what is wrong, and what would be right.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// A folder to make mistakes in: `unet.onnx`, which has no external data, and whatever is written into it.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(fixtures().join("sd15/torchscript/unet.onnx"), folder.path().join("unet.onnx")).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.0.path().join(name), bytes).unwrap();
    }

    /// Runs a command line. Returns its exit code, what it printed, and what it said on stderr, without line breaks: boxes
    /// around plans break lines.
    fn run(&self, words: &str) -> (Option<i32>, String, String) {
        let mut words = words.split_whitespace();
        let program = match words.next().unwrap() {
            "crdiff-compile" => env!("CARGO_BIN_EXE_crdiff-compile"),
            _ => env!("CARGO_BIN_EXE_crdiff"),
        };
        let mut command = Command::new(program);
        command.current_dir(&self.0).env("COLUMNS", "200").env("NO_COLOR", "1");
        let output = command.env("XDG_CACHE_HOME", self.0.path().join("cache")).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), said)
    }

    /// Runs a command line that is a mistake.
    fn refused(&self, words: &str, expected: &str) {
        let (code, printed, said) = self.run(words);
        assert_eq!(code, Some(2), "{words}: {said}");
        assert!(said.contains(expected), "{words}: {said}");
        assert_eq!(printed, "", "{words}");
    }

    fn plan_refused(&self, plan: &str, expected: &str) {
        self.write("plan.yaml", plan);
        self.refused("crdiff-compile unet.onnx plan.yaml --dry-run", expected);
    }
}

#[test]
fn plans_that_nearly_are_right() {
    let desk = Desk::new();
    desk.plan_refused(
        "version: 1\nrules:\n  - bypass: down_blocks.*\n",
        "whole stages change the shape of what",
    );
    desk.plan_refused(
        "version: 1\nrules:\n  - bypass: down_blocks.*\n",
        "inside are `down_blocks.0.resnets.0`, ",
    );
    desk.plan_refused(
        "version: 1\nrules:\n  - prune: { weights: **.attn1.**, ratio: 0.2 }\n",
        "quote globs that begin with `*`: \"**.attn1.**\"",
    );
    desk.plan_refused("version: 1\ncrdiff: {mid: 0.2}\namplify: 1.5\n", "write `amplify: { weight: 1.5 }`");
    desk.plan_refused(
        "version: 1\nrules:\n  bypass: mid_block.attentions.0\n",
        "each rule is an item of the list: write `- bypass: ...`",
    );
    desk.plan_refused("version: 1\ncrdiff:\n  down: 0,3\n", "write it with a point: 0.3");
    desk.plan_refused(
        "version: 1\ncrdiff: {down: 0,3, up: 0.2}\n",
        "a number is written with a point, such as 0.3",
    );
    let utf16: Vec<u8> = "\u{feff}version: 1\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    desk.write("plan.yaml", utf16);
    desk.refused("crdiff-compile unet.onnx plan.yaml --dry-run", "it is UTF-16; save it as UTF-8");
}

#[test]
fn a_plan_that_leaves_nothing_is_warned_of() {
    let desk = Desk::new();
    for (plan, is_all) in [("\"**\"", true), ("mid_block.attentions.0", false)] {
        desk.write("plan.yaml", format!("version: 1\nrules:\n  - bypass: {plan}\n"));
        let (code, printed, said) = desk.run("crdiff-compile unet.onnx plan.yaml --dry-run");
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(printed.contains("nothing of the network is left"), is_all, "{printed}");
    }
}

#[test]
fn files_that_are_no_models() {
    let desk = Desk::new();
    desk.write("plan.yaml", "version: 1\ncrdiff: {mid: 0.2}\n");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 3438167540\n";
    desk.write("lfs.onnx", pointer);
    desk.refused(
        "crdiff inspect lfs.onnx",
        "it is a Git LFS pointer, which stands for the model: `git lfs pull`",
    );
    desk.write("w.safetensors", b"\x08\0\0\0\0\0\0\0{\"a\":{}}");
    desk.refused("crdiff-compile w.safetensors plan.yaml", "it is a safetensors file");
    desk.write("w.ckpt", b"PK\x03\x04archive/data.pkl");
    desk.refused("crdiff-compile w.ckpt plan.yaml", "export the pipeline to ONNX first");
    // The data of a model, too.
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/models");
    for name in ["split.onnx", "prune.yaml"] {
        fs::copy(models.join(name), desk.0.path().join(name)).unwrap();
    }
    desk.write("split.bin", pointer);
    desk.refused("crdiff-compile split.onnx prune.yaml", "split.bin is a Git LFS pointer: `git lfs pull`");
}

#[test]
fn models_in_each_others_places() {
    let desk = Desk::new();
    desk.write("plan.yaml", "version: 1\ncrdiff: {mid: 0.2}\n");
    desk.write("bypass.yaml", "version: 1\nrules:\n  - bypass: mid_block.attentions.0\n");
    let pipeline = fixtures().join("pipelines/sd15");
    let pipeline = pipeline.display();
    let compile = |model: &str| format!("crdiff-compile {pipeline}/{model} plan.yaml --dry-run");
    desk.refused(&compile("vae_decoder/model.onnx"), "looks like a VAE decoder, not like a UNet");
    desk.refused(&compile("text_encoder/model.onnx"), "looks like a text encoder, not like a UNet");
    desk.refused(&compile(""), "it is a folder, not a file; did you mean");
    desk.refused(&compile(""), "unet/model.onnx?");
    let run =
        |folder: &str| format!("crdiff run {pipeline}/{folder} --dense --prompt cat --engine rten -o a.png");
    let meant =
        format!("did you mean {}?", fixtures().join("pipelines/sd15").canonicalize().unwrap().display());
    desk.refused(&run("unet/model.onnx"), "it is a file, and a pipeline is a folder with a model_index.json");
    desk.refused(&run("unet/model.onnx"), &meant);
    desk.refused(&run("unet"), &meant);
    let (code, _, said) = desk.run(&format!("crdiff inspect {pipeline}/text_encoder/model.onnx"));
    assert_eq!(code, Some(0));
    assert!(said.contains("looks like a text encoder, not like a UNet"), "{said}");
    let (code, _, said) = desk.run("crdiff inspect unet.onnx");
    assert_eq!((code, said.as_str()), (Some(0), ""));
    desk.refused(
        "crdiff unet.onnx plan.yaml",
        "`unet.onnx` is a model, not a command: crdiff compile unet.onnx plan.yaml",
    );
    desk.refused(
        "crdiff-compile inspect unet.onnx",
        "`inspect` is a command of `crdiff`, not a model: crdiff inspect unet.onnx",
    );
    assert_eq!(desk.run("crdiff-compile unet.onnx bypass.yaml -o compiled.onnx").0, Some(0));
    desk.refused(
        "crdiff-compile compiled.onnx bypass.yaml",
        "compiled.onnx was compiled already, by crdiff ",
    );
    desk.refused("crdiff-compile compiled.onnx bypass.yaml", "compile the model that it was made of");
    // A plan that fits what the first one left.
    desk.write("twice.yaml", "version: 1\ncrdiff: {down: 0.2}\n");
    let (code, said, _) = desk.run("crdiff-compile compiled.onnx twice.yaml -o twice.onnx");
    assert_eq!(code, Some(0));
    assert!(said.contains("note: the model was compiled already, by crdiff "), "{said}");
}

#[test]
fn verify_says_first_that_a_plan_was_not_applied() {
    let desk = Desk::new();
    desk.write("plan.yaml", "version: 1\ncrdiff: {mid: 0.2}\nrules:\n  - bypass: mid_block.attentions.0\n");
    let (code, printed, _) = desk.run("crdiff verify unet.onnx unet.onnx --plan plan.yaml --json");
    let outcome: Value = serde_json::from_str(&printed).unwrap();
    let first = outcome["findings"][0]["message"].as_str().unwrap();
    assert_eq!(
        (code, first),
        (Some(1), "the plan was not applied: the model is the original, byte for byte")
    );
}

#[test]
fn sizes_in_pixels_are_not_taken_for_latents_without_a_word() {
    let desk = Desk::new();
    desk.write("plan.yaml", "version: 1\ncrdiff: {mid: 0.2}\n");
    for (size, hint) in [("512x768", true), ("64x96", false)] {
        let (code, _, said) =
            desk.run(&format!("crdiff-compile unet.onnx plan.yaml --dry-run --latent-size {size}"));
        assert_eq!(code, Some(0), "{said}");
        let expected =
            "512x768 are latents here, 4096x6144 pixels with a VAE of factor 8; for 512x768 pixels say 64x96";
        assert_eq!(said.contains(expected), hint, "{said}");
    }
}

#[test]
fn a_report_on_standard_output_is_all_that_is_printed() {
    let desk = Desk::new();
    desk.write("plan.yaml", "version: 1\ncrdiff: {mid: 0.2}\n");
    let (code, printed, said) = desk.run("crdiff-compile unet.onnx plan.yaml --dry-run --report -");
    let report: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, report["prune"].as_array().map(Vec::len)), (Some(0), Some(1)), "{said}");
    // For people, a summary; each tensor with -v.
    let lines = |flags: &str| desk.run(&format!("crdiff-compile unet.onnx plan.yaml --dry-run {flags}")).1;
    assert!(!lines("").contains("to_q") && lines("-v").contains("to_q") && lines("-q").is_empty());
}

/// Tables are no wider than the terminal, and lose nothing of a path.
#[test]
fn tables_fit_the_terminal() {
    let desk = Desk::new();
    let plan = "version: 1\nrules:\n  - bypass: down_blocks.0.attentions.0.transformer_blocks.0.attn1\n  \
                - prune: { weights: \"**.attn2.**\", ratio: 0.2 }\n";
    desk.write("plan.yaml", plan);
    for width in [60, 80, 200] {
        for words in [
            &["inspect", "unet.onnx"][..],
            &["compile", "unet.onnx", "plan.yaml", "--dry-run", "-v", "--at", "8x8"],
        ] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_crdiff"));
            command.current_dir(&desk.0).env("COLUMNS", width.to_string()).args(words);
            let printed = String::from_utf8(command.output().unwrap().stdout).unwrap();
            let table: Vec<&str> = printed.lines().filter(|line| line.starts_with([' ', '─'])).collect();
            assert!(table.len() > 5, "{printed}");
            for line in table {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }
}
