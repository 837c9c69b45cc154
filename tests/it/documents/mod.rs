//! README and docs as printed: every command runs, every plan and space is one, every key and flag
//! exists.

mod blocks;
mod configs;
mod workshop;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
};

use crdiff::{plan, search::space};

use blocks::Block;
use workshop::Workshop;

use crate::common::node;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The language of blocks that are not for a shell or a parser: output, file trees, names.
const FOR_EYES_ONLY: &str = "text";

#[test]
fn the_two_commands_of_the_readme() {
    let shell: Vec<Block> = blocks::blocks("README.md").into_iter().filter(|b| b.language == "sh").collect();
    let [main, ..] = &shell[..] else { panic!("there is no command") };
    assert_eq!(shell.iter().filter(|block| block.commands() == ["cargo test"]).count(), 1);
    let [main] = &main.commands()[..] else { panic!("{main:?}") };
    let arguments = main.strip_prefix("cargo run --release -- ").unwrap();
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    let output = root().join(arguments.last().unwrap());
    fs::create_dir_all(output.parent().unwrap()).unwrap();
    // `cargo run` starts this program: `default-run` in Cargo.toml.
    let compiled = Command::new(env!("CARGO_BIN_EXE_crdiff-compile"))
        .current_dir(root())
        .args(&arguments)
        .stderr(Stdio::inherit())
        .status()
        .unwrap();
    assert!(compiled.success());
    assert!(output.exists());
}

#[test]
fn every_command_runs() {
    let mut ran = 0;
    for file in blocks::documents() {
        let workshop = Workshop::new();
        for block in blocks::blocks(&file).iter().filter(|b| b.language == "sh" && b.not_run.is_none()) {
            // The two commands have a test of their own.
            if block.commands().iter().all(|command| command.starts_with("cargo ")) {
                continue;
            }
            let output = workshop.run(&block.text);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {}\n{said}", block.place(), output.status);
            ran += 1;
        }
    }
    assert!(ran >= 20, "{ran}");
}

#[test]
fn what_is_not_run_has_a_reason() {
    for block in ["sh", "python", "yaml"].iter().flat_map(|language| blocks::all(language)) {
        if let Some(reason) = &block.not_run {
            let known =
                ["needs a GPU", "needs the network", "needs a checkout", "takes hours", "needs Docker"];
            assert!(known.iter().any(|start| reason.starts_with(start)), "{}: {reason}", block.place());
        }
    }
}

#[test]
fn every_block_says_what_it_is() {
    for file in blocks::documents() {
        for block in blocks::blocks(&file) {
            let is_known =
                ["sh", "yaml", "python", "js", "json", FOR_EYES_ONLY].contains(&block.language.as_str());
            assert!(is_known, "{}: `{}` is checked by no test", block.place(), block.language);
        }
    }
}

#[test]
fn every_flag_exists() {
    let mut checked = 0;
    for block in ["sh", "yaml", FOR_EYES_ONLY].iter().flat_map(|language| blocks::all(language)) {
        for command in block.commands() {
            let command = command.trim_start_matches("- run: ").trim_start_matches("run: ");
            let mut words = command.split_whitespace();
            let subcommand = match (words.next(), words.clone().next()) {
                (Some("crdiff-compile"), _) => "compile",
                (Some("crdiff"), Some(subcommand)) if !subcommand.starts_with('-') => subcommand,
                _ => continue,
            };
            let help = help(subcommand);
            for word in words.take_while(|word| !["|", ">", "&&"].contains(word)) {
                let flag = word.split('=').next().unwrap_or_default();
                if flag.starts_with("--") {
                    assert!(help.contains(flag), "{}: `{command}` has no {flag}", block.place());
                    checked += 1;
                }
            }
        }
    }
    assert!(checked >= 40, "{checked}");
}

/// `crdiff SUBCOMMAND --help`, and those of what is below it.
fn help(subcommand: &str) -> &'static str {
    static HELP: OnceLock<BTreeMap<&str, String>> = OnceLock::new();
    let pages = HELP.get_or_init(|| {
        let page = |words: &[&str]| {
            let output =
                Command::new(env!("CARGO_BIN_EXE_crdiff")).args(words).arg("--help").output().unwrap();
            assert!(output.status.success(), "crdiff {words:?} --help");
            String::from_utf8(output.stdout).unwrap()
        };
        let subcommands = [
            "compile",
            "inspect",
            "verify",
            "diff",
            "compare",
            "digest",
            "print",
            "doctor",
            "run",
            "search",
            "bench",
            "cache",
            "completions",
            "man",
            "export",
        ];
        let mut pages: BTreeMap<&str, String> =
            subcommands.iter().map(|name| (*name, page(&[name]))).collect();
        let below = [("search", "trial"), ("export", "triton"), ("export", "trtexec"), ("export", "web")];
        for (name, one) in below {
            pages.entry(name).and_modify(|text| text.push_str(&page(&[name, one])));
        }
        pages
    });
    pages.get(subcommand).unwrap_or_else(|| panic!("there is no `crdiff {subcommand}`"))
}

#[test]
fn every_plan_and_space_is_one() {
    let workshop = Workshop::new();
    let (mut plans, mut spaces) = (0, 0);
    for block in blocks::all("yaml") {
        if block.text.contains("variables:") {
            space::parse(&block.place(), &block.text, &workshop.path("."))
                .unwrap_or_else(|e| panic!("{e}\n{}", block.text));
            spaces += 1;
        } else if block.text.contains("version: 1") {
            // Where the files are that it names.
            let file = workshop.path("block.yaml");
            fs::write(&file, &block.text).unwrap();
            plan::load(&file).unwrap_or_else(|e| panic!("{}: {e}\n{}", block.place(), block.text));
            plans += 1;
        } else {
            let parsed: Result<serde_json::Value, _> = serde_saphyr::from_str(&block.text);
            assert!(parsed.is_ok(), "{}: {parsed:?}", block.place());
        }
    }
    assert!(plans >= 6 && spaces >= 1, "{plans}, {spaces}");
}

#[test]
fn every_python_block_is_python() {
    let mut checked = 0;
    for block in blocks::all("python") {
        let code = "import sys; compile(sys.stdin.read(), sys.argv[1], 'exec')";
        let mut python = Command::new(node::python())
            .args(["-c", code, &block.place()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut python.stdin.take().unwrap(), block.text.as_bytes()).unwrap();
        assert!(python.wait().unwrap().success(), "{}", block.place());
        checked += 1;
    }
    assert!(checked >= 3, "{checked}");
}

#[test]
fn every_link_inside_the_repository_leads_somewhere() {
    let mut checked = 0;
    for file in blocks::documents()
        .into_iter()
        .chain(["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(String::from))
    {
        let text = fs::read_to_string(root().join(&file)).unwrap();
        let folder = root().join(&file).parent().unwrap().to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") {
                assert!(folder.join(target).exists(), "{file}: {link}");
                checked += 1;
            }
        }
    }
    assert!(checked >= 15, "{checked}");
}
