//! Any text is a plan or an error, and any plan that is written reads as it was meant.

use crdiff::plan::*;
use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use std::num::NonZeroU32;

fn check_any(text: &str) {
    match parse("plan.yaml", text) {
        Ok(plan) => assert_eq!(plan.source.text(), text),
        Err(error) => {
            for problem in error.problems() {
                for label in problem.labels().into_iter().flatten() {
                    let span = label.offset()..label.offset() + label.len();
                    assert!(text.get(span.clone()).is_some(), "{span:?} of {problem}");
                }
            }
            let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor());
            let mut shown = String::new();
            handler.render_report(&mut shown, &error).unwrap();
        }
    }
}

/// Pieces that plans are made of, in any order.
fn scraps() -> impl Strategy<Value = String> {
    let words = [
        "version",
        "rules",
        "bypass",
        "prune",
        "weights",
        "ratio",
        "threshold",
        "pattern",
        "crdiff",
        "down",
        "amplify",
        "weight",
        "during",
        "sigma",
        "every",
        "on",
        "runtime",
        "providers",
        "options",
        "modules",
        "via",
        "input",
        "best_global_params_ratio",
        "pruning_method",
        "1",
        "0.3",
        "-1",
        ".inf",
        ".nan",
        "2:4",
        "'**.ff.**'",
        "\"a.{b,c\"",
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n- ",
        "\n    ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "<<",
        "!!str ",
        "!x ",
        "|\n",
        "# é\n",
        "\t",
        "---",
        "...",
        "\u{feff}",
        "\0",
        "\"",
        "'",
        "?",
        "~",
        "%YAML 1.2\n",
        "𝄞",
    ];
    vec(prop::sample::select(words.to_vec()), 0..40).prop_map(|parts| parts.concat())
}

fn glob() -> impl Strategy<Value = String> {
    let segment = prop_oneof![
        4 => "[a-z_0-9]{1,9}",
        1 => Just("*".to_owned()),
        1 => Just("**".to_owned()),
        1 => "[a-z]{1,3}\\*",
        1 => "\\{[a-z]{1,4}(,[a-z0-9.]?[a-z]{1,4}){0,2}\\}",
    ];
    vec(segment, 1..5)
        .prop_map(|segments| segments.join("."))
        .prop_filter("a glob", |text| Glob::weight(text, 0.into()).is_ok())
}

fn globs() -> impl Strategy<Value = Selector> {
    let globs = |texts: Vec<String>| texts.iter().map(|text| Glob::module(text, 0.into()).unwrap()).collect();
    vec(glob(), 1..4).prop_map(move |texts| Selector::Globs(globs(texts)))
}

fn located<T>(value: T) -> Located<T> {
    Located { value, span: 0.into() }
}

fn ratio() -> impl Strategy<Value = Ratio> {
    prop_oneof![Just(0.0), 0.0..1.0].prop_map(|ratio| Ratio::new(ratio).unwrap())
}

fn finite() -> impl Strategy<Value = f64> {
    let single = prop::num::f32::NORMAL | prop::num::f32::ZERO | prop::num::f32::SUBNORMAL;
    prop_oneof![single.prop_map(f64::from), -3.0..3.0]
}

fn rule() -> impl Strategy<Value = Rule> {
    let via = prop::sample::select(vec![Via::Shortcut, Via::Input, Via::Backbone]);
    let bypass =
        (globs(), via).prop_map(|(modules, via)| Rule::Bypass(BypassRule { span: 0.into(), modules, via }));
    let pool = prop::sample::select(vec![Pool::Group, Pool::Tensor]);
    let ties = prop::sample::select(vec![Ties::All, Ties::Exact]);
    let pattern = (1u8..64).prop_flat_map(|keep| (Just(keep), keep + 1..=64));
    let mask = prop_oneof![
        (ratio(), pool, ties).prop_map(|(ratio, pool, ties)| Mask::Ratio {
            ratio: located(ratio),
            pool,
            ties
        }),
        finite().prop_map(|threshold| Mask::Threshold { threshold: located(threshold.abs()) }),
        pattern.prop_map(|(keep, of)| Mask::Pattern { pattern: located(Pattern::new(keep, of).unwrap()) }),
    ];
    let prune = (globs(), mask, finite()).prop_map(|(weights, mask, scale)| {
        Rule::Prune(PruneRule { span: 0.into(), weights, mask, scale: located(scale) })
    });
    let by = prop_oneof![(2u32..).prop_map(f64::from), 1.001..64.0];
    let dilate = (globs(), by)
        .prop_map(|(modules, by)| Rule::Dilate(DilateRule { span: 0.into(), modules, by: located(by) }));
    prop_oneof![bypass, prune, dilate]
}

fn crdiff() -> impl Strategy<Value = CrDiffFile> {
    prop_oneof![
        (option::of(ratio()), option::of(ratio()), option::of(ratio()))
            .prop_map(|(down, mid, up)| CrDiffFile::Groups(CrDiffGroups { down, mid, up })),
        ratio().prop_map(|ratio| CrDiffFile::Shared(CrDiffShared { ratio })),
    ]
}

fn amplify() -> impl Strategy<Value = AmplifyFile> {
    let curve = option::of(prop::sample::select(vec![Curve::Linear, Curve::Cosine]));
    let weight = prop_oneof![
        finite().prop_map(WeightFile::Constant),
        (finite(), finite(), curve).prop_map(|(from, to, curve)| WeightFile::Ramp(Ramp { from, to, curve })),
        vec(finite(), 1..6).prop_map(WeightFile::Steps),
    ];
    let sorted = |a: f64, b: f64| [a.min(b), a.max(b)];
    let during = prop_oneof![
        (0.0..=1.0, 0.0..=1.0).prop_map(move |(a, b)| DuringFile::Fraction(sorted(a, b))),
        (0.0..1e6, 0.0..1e6).prop_map(move |(a, b)| DuringFile::Sigma(SigmaRange { sigma: sorted(a, b) })),
    ];
    let every = option::of((1u32..).prop_map(|every| NonZeroU32::new(every).unwrap()));
    let on = option::of(prop::sample::select(vec![On::Both, On::Cond]));
    let mode = option::of(Just(Mode::Outputs));
    (mode, option::of(weight), option::of(during), every, on)
        .prop_map(|(mode, weight, during, every, on)| AmplifyFile { mode, weight, during, every, on })
}

fn runtime() -> impl Strategy<Value = RuntimeFile> {
    let value = prop_oneof![
        "[ -~éß𝄞]{0,8}".prop_map(OptionValue::Text),
        any::<bool>().prop_map(OptionValue::Flag),
        finite().prop_map(OptionValue::Number),
    ];
    let options = btree_map("[a-z]{1,6}", btree_map("[a-z_]{1,8}", value, 0..3), 0..3);
    (vec("[A-Za-z]{1,8}", 0..3), options).prop_map(|(providers, options)| RuntimeFile { providers, options })
}

fn plan_file() -> impl Strategy<Value = PlanFile> {
    let rules = option::of(vec(rule(), 0..5));
    let cache = option::of(("[a-z.0-9_]{1,20}", amplify()).prop_map(|(at, amplify)| {
        let at = format!("up_blocks.{at}");
        CacheFile { at, every: amplify.every, during: amplify.during }
    }));
    (rules, option::of(crdiff()), option::of(amplify()), cache, option::of(runtime())).prop_map(
        |(rules, crdiff, amplify, cache, runtime)| PlanFile {
            version: 1,
            always: None,
            rules,
            crdiff,
            amplify,
            cache,
            runtime,
        },
    )
}

fn same_crdiff(read: &[Rule], written: Option<&CrDiffFile>) {
    let expected: Vec<(Group, Ratio, Pool)> = match written {
        Some(CrDiffFile::Groups(CrDiffGroups { down, mid, up })) => {
            let groups = [(Group::Down, down), (Group::Mid, mid), (Group::Up, up)];
            groups.iter().filter_map(|(group, ratio)| Some((*group, (**ratio)?, Pool::Group))).collect()
        }
        Some(CrDiffFile::Shared(CrDiffShared { ratio })) => vec![(Group::All, *ratio, Pool::Tensor)],
        None => Vec::new(),
    };
    let read = read.iter().map(|rule| match rule {
        Rule::Prune(PruneRule {
            weights: Selector::CrDiff(group),
            mask: Mask::Ratio { ratio, pool, .. },
            ..
        }) => (*group, ratio.value, *pool),
        _ => panic!("{rule:?}"),
    });
    assert_eq!(read.collect::<Vec<_>>(), expected);
}

fn meant(during: Option<&DuringFile>) -> During {
    match during {
        None => During::Fraction { from: 0.0, to: 1.0 },
        Some(DuringFile::Fraction([from, to])) => During::Fraction { from: *from, to: *to },
        Some(DuringFile::Sigma(SigmaRange { sigma: [low, high] })) => {
            During::Sigma { low: *low, high: *high }
        }
    }
}

fn same_cache(read: Option<&Cache>, written: Option<&CacheFile>) {
    assert_eq!(read.is_some(), written.is_some());
    if let (Some(read), Some(written)) = (read, written) {
        assert_eq!((&read.at.value, read.during), (&written.at, meant(written.during.as_ref())));
        assert_eq!(read.every, written.every.unwrap_or(NonZeroU32::new(3).unwrap()));
    }
}

fn same_amplify(read: &Amplify, written: &AmplifyFile) {
    let weight = match &written.weight {
        None => AmplifyWeight::Constant(1.5),
        Some(WeightFile::Constant(weight)) => AmplifyWeight::Constant(*weight),
        Some(WeightFile::Ramp(Ramp { from, to, curve })) => {
            AmplifyWeight::Ramp { from: *from, to: *to, curve: curve.unwrap_or_default() }
        }
        Some(WeightFile::Steps(steps)) => AmplifyWeight::Steps(steps.clone()),
    };
    assert_eq!((&read.weight.value, read.during), (&weight, meant(written.during.as_ref())));
    assert_eq!(read.every.value, written.every.unwrap_or(NonZeroU32::MIN));
    assert_eq!((read.mode, read.on), (written.mode.unwrap_or_default(), written.on.unwrap_or_default()));
}

fn same_runtime(read: &Runtime, written: &RuntimeFile) {
    let providers: Vec<&str> = read.providers.iter().map(|name| name.value.as_str()).collect();
    assert_eq!(providers, written.providers);
    assert!(read.options.keys().eq(written.options.keys()));
    for (read, written) in read.options.values().zip(written.options.values()) {
        assert!(read.keys().eq(written.keys()));
        for (read, written) in read.values().zip(written.values()) {
            match written {
                OptionValue::Text(text) => assert_eq!(read, text),
                OptionValue::Flag(flag) => assert_eq!(*read, flag.to_string()),
                OptionValue::Number(number) => assert_eq!(read.parse::<f64>().unwrap(), *number),
            }
        }
    }
}

fn same(read: &Plan, written: &PlanFile) {
    let rules = written.rules.as_deref().unwrap_or_default();
    assert!(read.rules.len() >= rules.len());
    let (by_rule, by_crdiff) = read.rules.split_at(rules.len());
    // Without the places in the text.
    let meant = |rules: &[Rule]| serde_json::to_value(rules).unwrap();
    assert_eq!(meant(by_rule), meant(rules));
    same_crdiff(by_crdiff, written.crdiff.as_ref());
    same_amplify(&read.amplify, &written.amplify.clone().unwrap_or_default());
    same_cache(read.cache.as_ref(), written.cache.as_ref());
    same_runtime(&read.runtime, &written.runtime.clone().unwrap_or_default());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_a_plan_or_an_error(text in ".*") {
        check_any(&text);
        check_any(&format!("version: 1\n{text}"));
    }

    #[test]
    fn any_scraps_are_a_plan_or_an_error(text in scraps()) {
        check_any(&text);
        check_any(&format!("version: 1\nrules:\n  - {text}"));
    }

    #[test]
    fn any_value_is_a_plan_or_an_error(text in scraps(), key in "(rules|crdiff|amplify|cache|runtime|version)") {
        check_any(&format!("version: 1\n{key}: {text}"));
    }

    #[test]
    fn any_glob_is_a_glob_or_an_error(pattern in "[a-c*.{},é/]{0,16}", path in "[a-c]{1,3}(\\.[a-c]{1,3}){0,4}") {
        if let Ok(glob) = Glob::module(&pattern, 0.into()) {
            glob.matches(&path);
        }
        nearest(&pattern, [path.as_str()]);
        prop_assert!(Glob::module(&path, 0.into()).unwrap().matches(&path));
    }

    #[test]
    fn plans_read_as_they_were_written(file in plan_file()) {
        let yaml = file.to_yaml().unwrap();
        let read = parse("plan.yaml", &yaml).unwrap_or_else(|error| panic!("{error:?}\n{yaml}"));
        same(&read, &file);
        let json = serde_json::to_string(&file).unwrap();
        let from_json = parse("plan.json", &json).unwrap_or_else(|error| panic!("{error:?}\n{json}"));
        same(&from_json, &file);
        prop_assert_eq!(read.digest, from_json.digest);
    }
}
