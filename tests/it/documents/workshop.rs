//! The folder in which the commands of the documents run: what they call `unet.onnx`, `plan.yaml`, `sd15-onnx` are
//! fixtures, so small that a command takes a second.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{common::ort::ort_library, documents::root};

const PLAN: &str = "\
version: 1
crdiff: { down: 0.3, mid: 0.3, up: 0.3 }
rules: [{ bypass: mid_block.attentions.0 }]
amplify: { weight: 1.5 }
";

const SPACE: &str = r#"
version: 1
variables: { down: { ratio: [0.1, 0.8] }, w: { number: [1, 3], start: 1.5 } }
plan: { version: 1, crdiff: { down: $down }, amplify: { weight: $w } }
prompts: prompts.txt
sampling: { sizes: [32x32], steps: 2, guidance: 5, seeds: [0] }
budget: { trials: 2 }
strategy: random
objective: { command: [python3, score.py, "{image}", "{prompt}"] }
"#;

/// As the authors' search writes it.
const RESULT: &str = r#"{
  "model_config": { "name": "sd15", "width": 512, "height": 512 },
  "best_avg_score": 0.5,
  "best_global_params_ratio": { "down_ratio": 0.3, "up_ratio": 0.2, "mid_ratio": 0.1 }
}"#;

/// A folder to run commands in.
pub struct Workshop {
    folder: tempfile::TempDir,
}

impl Workshop {
    /// Lays out what the documents take for given.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("plan.yaml", PLAN);
        write("space.yaml", SPACE);
        write("result.json", RESULT);
        write("prompts.txt", "a lighthouse in a storm\n");
        write("score.py", "import os, sys\nprint(os.path.getsize(sys.argv[1]) % 1000 / 1000)\n");
        let fixtures = root().join("fixtures");
        fs::copy(fixtures.join("sd15/torchscript/unet.onnx"), folder.path().join("unet.onnx")).unwrap();
        fs::copy(fixtures.join("lora/kohya.safetensors"), folder.path().join("style.safetensors")).unwrap();
        copy(&fixtures.join("pipelines/sd15"), &folder.path().join("sd15-onnx"));
        copy(&fixtures.join("pipelines/sdxl"), &folder.path().join("sdxl-onnx"));
        copy(&fixtures.join("shapes/pipeline"), &folder.path().join("fixtures/shapes/pipeline"));
        fs::create_dir(folder.path().join("public")).unwrap();
        copy(&root().join("configs"), &folder.path().join("configs"));
        Self { folder }
    }

    /// Where a file of that name lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a script in bash, which ends at the first command that fails.
    pub fn run(&self, script: &str) -> Output {
        let programs = Path::new(env!("CARGO_BIN_EXE_crdiff")).parent().unwrap();
        let mut search = vec![programs.to_path_buf()];
        search.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.folder.path())
            .env("PATH", env::join_paths(search).unwrap())
            .env("HOME", self.folder.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("ORT_DYLIB_PATH", ort_library())
            .output()
            .unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
