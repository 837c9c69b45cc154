//! Errors as they are shown: `errors/NAME.yaml` gives `errors/NAME.txt`, letter by letter. `BLESS=1` rewrites.

use crdiff::plan::{self, PlanError, Problem};
use miette::{GraphicalReportHandler, GraphicalTheme};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan/errors")
}

fn rendered(error: &PlanError) -> String {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(100)
        .with_links(false)
        .without_syntax_highlighting();
    let mut text = String::new();
    handler.render_report(&mut text, error).unwrap();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").trim_end().to_owned() + "\n"
}

fn check(name: &str, error: &PlanError) {
    let path = folder().join(name).with_extension("txt");
    let text = rendered(error);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == text, "{name}: expected\n{expected}\nbut got\n{text}");
}

#[test]
fn each_mistake_is_shown_where_it_is() {
    let mut names: Vec<PathBuf> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    names.sort();
    assert!(names.len() >= 15, "the cases are gone");
    for path in names {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        check(name, &plan::parse(name, &text).expect_err(name));
    }
}

#[test]
fn the_resolver_s_errors_point_at_the_rule() {
    let text = "version: 1\nrules:\n  - bypass: mid_block.attention.0\n  - prune: { weights: \"**.ff.**\", ratio: 0.1 }\n  - prune: { weights: \"up_blocks.**\", ratio: 0.2 }\n";
    let plan = plan::parse("plan.yaml", text).unwrap();
    let spans: Vec<_> = plan
        .rules
        .iter()
        .map(|rule| match rule {
            plan::Rule::Bypass(rule) => &rule.modules,
            plan::Rule::Prune(rule) => &rule.weights,
            other => unreachable!("the plan has no {other:?}"),
        })
        .map(|selector| match selector {
            plan::Selector::Globs(globs) => globs[0].span(),
            plan::Selector::CrDiff(_) => unreachable!("the plan has no crdiff"),
        })
        .collect();
    let near =
        plan::nearest("mid_block.attention.0", ["mid_block.attentions.0", "mid_block.resnets.0", "conv_in"]);
    let errors = [
        PlanError::no_match(&plan.source, spans[0], "mid_block.attention.0", &near),
        PlanError::overlap(
            &plan.source,
            spans[1],
            spans[2],
            "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
        ),
        PlanError::illegal_bypass(
            &plan.source,
            spans[0],
            "down_blocks.0.downsamplers.0",
            "its output has another shape than its input",
            Some("the blocks before it can be bypassed: `down_blocks.0.resnets.1`".into()),
        ),
        PlanError::not_editable(
            &plan.source,
            spans[2],
            "up_blocks.0.conv",
            "its weight is computed by a node",
        ),
    ];
    for (name, error) in ["no-match", "overlap", "illegal-bypass", "not-editable"].iter().zip(&errors) {
        check(&format!("resolver-{name}"), error);
    }
    check("resolver-all", &PlanError::combine(errors).unwrap());
    assert!(PlanError::combine([]).is_none());
}

fn only(error: &PlanError) -> &Problem {
    let mut problems = error.problems();
    let first = problems.next().unwrap();
    assert_eq!(problems.next(), None);
    first
}

#[test]
fn files_that_are_no_plans_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let error = plan::load(folder.path().join("none.yaml")).unwrap_err();
    assert!(matches!(only(&error), Problem::Unreadable { .. }), "{error}");
    assert!(error.to_string().contains("none.yaml"), "{error}");
    let error = plan::load(folder.path()).unwrap_err();
    assert!(matches!(only(&error), Problem::Unreadable { .. }), "{error}");

    let error = plan::load(write("latin.yaml", b"version: 1 # \xe9\n")).unwrap_err();
    assert_eq!(*only(&error), Problem::NotUtf8 { offset: 13, help: "is this the plan, and not the model?" });
    assert_eq!(error.to_string(), "the plan isn't UTF-8 text: byte 13 can't be decoded");

    let mut big = b"version: 1\n#".to_vec();
    big.resize(plan::MAX_BYTES as usize, b' ');
    assert!(plan::load(write("fits.yaml", &big)).is_ok());
    big.push(b' ');
    let error = plan::load(write("big.yaml", &big)).unwrap_err();
    assert_eq!(*only(&error), Problem::TooBig { size: plan::MAX_BYTES + 1, max: plan::MAX_BYTES });

    for text in ["", "\n\n", "# nothing\n", "---\n", "~"] {
        assert_eq!(*only(&plan::parse("plan.yaml", text).unwrap_err()), Problem::Empty, "{text:?}");
    }
}

#[test]
fn yaml_that_grows_is_refused() {
    let mut bomb = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
    for (name, last) in ('b'..='i').zip('a'..) {
        let aliases = vec![format!("*{last}"); 9].join(",");
        bomb += &format!("{name}: &{name} [{aliases}]\n");
    }
    let deep = format!("version: {}1{}\n", "[".repeat(5000), "]".repeat(5000));
    let deep_block: String = (0..300).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let many = format!("version: 1\nrules: [{}]\n", "a,".repeat(300_000));
    let cases = [
        (bomb, "the aliases stand for more than any plan"),
        (deep, "recursion limit exceeded"),
        (deep_block, "nested deeper than any plan"),
        (many, "larger than any plan"),
    ];
    for (text, message) in cases {
        let error = plan::parse("plan.yaml", &text).unwrap_err();
        assert!(matches!(only(&error), Problem::Syntax { .. }), "{error}");
        assert_eq!(error.to_string(), message);
    }
}
