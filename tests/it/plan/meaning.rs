//! Meanings of plans once they are read.

use crdiff::plan::{
    Amplify, AmplifyWeight, Curve, During, Group, Mask, Mode, On, Plan, Pool, PruneRule, Rule, Selector,
    Ties, Via, parse,
};

fn plan(text: &str) -> Plan {
    parse("plan.yaml", text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn digest(text: &str) -> String {
    plan(text).digest
}

fn prune(rule: &Rule) -> &PruneRule {
    match rule {
        Rule::Prune(rule) => rule,
        other => panic!("{other:?}"),
    }
}

fn globs(selector: &Selector) -> Vec<&str> {
    match selector {
        Selector::Globs(globs) => globs.iter().map(|glob| glob.text()).collect(),
        Selector::CrDiff(_) => panic!("{selector:?}"),
    }
}

#[test]
fn an_empty_plan_changes_nothing() {
    let plain = plan("version: 1");
    assert!(plain.rules.is_empty());
    assert_eq!(plain.amplify, Amplify::default());
    for same in [
        "{\"version\": 1}",
        "\u{feff}version: 1",
        "# a comment\nversion: 1\nrules: []\n",
        "version: 1\nrules:\n",
        "version: 1\r\nrules: []\r\n",
        "version: 1\namplify: {}\ncrdiff: {}\nruntime: {}\n",
    ] {
        assert!(plan(same).rules.is_empty());
        assert_eq!(digest(same), plain.digest, "{same:?}");
    }
}

#[test]
fn rules_read_as_written() {
    let plan = plan(
        r#"
version: 1
rules:
  - bypass: mid_block.attentions.0
  - bypass: ["down_blocks.*.resnets.1", mid_block.resnets.1]
  - bypass: { modules: "up_blocks.*.resnets.1", via: backbone }
  - prune: { weights: "down_blocks.**.{attn1,ff}.**", ratio: 0.35 }
  - prune: { weights: "t.*.ff.**", ratio: 0, pool: tensor, ties: exact, scale: -0.5 }
  - prune: { weights: ["a.b", "c.weight"], threshold: 1e-2 }
  - prune: { weights: "**.attn1.**", pattern: "2:4" }
"#,
    );
    let [one, two, three, rest @ ..] = plan.rules.as_slice() else { panic!("{:?}", plan.rules) };
    let bypass = |rule: &Rule| match rule {
        Rule::Bypass(rule) => (globs(&rule.modules).join(" "), rule.via),
        other => panic!("{other:?}"),
    };
    assert_eq!(bypass(one), ("mid_block.attentions.0".into(), Via::Shortcut));
    assert_eq!(bypass(two), ("down_blocks.*.resnets.1 mid_block.resnets.1".into(), Via::Shortcut));
    assert_eq!(bypass(three), ("up_blocks.*.resnets.1".into(), Via::Backbone));

    let prunes: Vec<&PruneRule> = rest.iter().map(prune).collect();
    let ratio = |mask: &Mask| match mask {
        Mask::Ratio { ratio, pool, ties } => (ratio.value.get(), *pool, *ties),
        _ => panic!("{mask:?}"),
    };
    assert_eq!(ratio(&prunes[0].mask), (0.35, Pool::Group, Ties::All));
    assert_eq!(ratio(&prunes[1].mask), (0.0, Pool::Tensor, Ties::Exact));
    assert!(matches!(prunes[2].mask, Mask::Threshold { threshold } if threshold.value == 0.01));
    assert!(
        matches!(prunes[3].mask, Mask::Pattern { pattern } if (pattern.value.keep(), pattern.value.of()) == (2, 4))
    );
    assert_eq!(prunes.iter().map(|rule| rule.scale.value).collect::<Vec<_>>(), [0.0, -0.5, 0.0, 0.0]);
    assert!(prunes[2].weights.matches("a.b") && prunes[2].weights.matches("c"));
}

#[test]
fn spans_are_those_of_the_text() {
    let plan = plan("version: 1\nrules:\n- prune: {weights: ['a.b', \"c.**\"], ratio: 0.25}\n");
    let text = plan.source.text();
    let at = |span: miette::SourceSpan| &text[span.offset()..span.offset() + span.len()];
    let rule = prune(&plan.rules[0]);
    assert_eq!(at(rule.span), "prune");
    assert_eq!(at(rule.scale.span), "prune");
    let Selector::Globs(globs) = &rule.weights else { panic!("{rule:?}") };
    assert_eq!(globs.iter().map(|glob| at(glob.span())).collect::<Vec<_>>(), ["'a.b'", "\"c.**\""]);
    assert!(matches!(rule.mask, Mask::Ratio { ratio, .. } if at(ratio.span) == "0.25"));
}

#[test]
fn amplification_reads_as_written() {
    let amplify = |text: &str| plan(&format!("version: 1\namplify: {text}")).amplify;
    let default = amplify("{}");
    assert_eq!(
        (default.mode, default.weight.value, default.on),
        (Mode::Outputs, AmplifyWeight::Constant(1.5), On::Both)
    );
    assert_eq!((default.during, default.every.value.get()), (During::Fraction { from: 0.0, to: 1.0 }, 1));

    assert_eq!(amplify("{weight: 2}").weight.value, AmplifyWeight::Constant(2.0));
    assert_eq!(amplify("{weight: [1, 1.5, -2]}").weight.value, AmplifyWeight::Steps(vec![1.0, 1.5, -2.0]));
    let ramp = |curve| AmplifyWeight::Ramp { from: 1.0, to: 2.0, curve };
    assert_eq!(amplify("{weight: {from: 1, to: 2}}").weight.value, ramp(Curve::Linear));
    assert_eq!(amplify("{weight: {from: 1, to: 2, curve: cosine}}").weight.value, ramp(Curve::Cosine));
    assert_eq!(amplify("{during: [0.25, 0.75]}").during, During::Fraction { from: 0.25, to: 0.75 });
    assert_eq!(amplify("{during: {sigma: [0.3, 8]}}").during, During::Sigma { low: 0.3, high: 8.0 });
    let other = amplify("{mode: weights, every: 1, on: cond}");
    assert_eq!((other.mode, other.on), (Mode::Weights, On::Cond));
    assert_eq!(amplify("{every: 4}").every.value.get(), 4);
}

#[test]
fn runtime_options_are_text_for_the_engine() {
    let plan = plan(
        "version: 1\nruntime:\n  providers: [cuda, cpu]\n  options: {cuda: {device_id: 1, arena: kSame, tf32: true, limit: 0.5}}\n",
    );
    let providers: Vec<&str> = plan.runtime.providers.iter().map(|name| name.value.as_str()).collect();
    assert_eq!(providers, ["cuda", "cpu"]);
    let options: Vec<(&str, &str)> =
        plan.runtime.options["cuda"].iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(options, [("arena", "kSame"), ("device_id", "1"), ("limit", "0.5"), ("tf32", "true")]);
    assert_eq!(plan.digest, digest("version: 1"), "where it runs isn't what it does");
}

fn groups(plan: &Plan) -> Vec<(Group, f64, Pool)> {
    plan.rules
        .iter()
        .map(prune)
        .map(|rule| match (&rule.weights, &rule.mask) {
            (Selector::CrDiff(group), Mask::Ratio { ratio, pool, ties: Ties::All }) => {
                (*group, ratio.value.get(), *pool)
            }
            _ => panic!("{rule:?}"),
        })
        .collect()
}

#[test]
fn crdiff_is_a_rule_a_group() {
    let unet = plan("version: 1\ncrdiff: {up: 0.3, down: 0.1}\nrules: []");
    assert_eq!(groups(&unet), [(Group::Down, 0.1, Pool::Group), (Group::Up, 0.3, Pool::Group)]);
    let transformer = plan("version: 1\ncrdiff: {ratio: 0.2}");
    assert_eq!(groups(&transformer), [(Group::All, 0.2, Pool::Tensor)]);
    let mixed = plan("version: 1\ncrdiff: {mid: 0.2}\nrules: [{bypass: mid_block.attentions.0}]");
    assert_eq!(mixed.rules.len(), 2);
}

/// The shape of the authors' `config.json`, as their search writes it.
const RESULT: &str = r#"{
    "model_config": {
        "name": "sdxl",
        "width": 512,
        "height": 512
    },
    "best_avg_score": 0.8123,
    "best_global_params_ratio": {
        "down_ratio": 0.30000000000000004,
        "up_ratio": 0.25,
        "mid_ratio": 0.4
    }
}"#;

#[test]
fn the_authors_result_is_a_plan() {
    let result = plan(RESULT);
    let expected = [
        (Group::Down, 0.30000000000000004, Pool::Group),
        (Group::Mid, 0.4, Pool::Group),
        (Group::Up, 0.25, Pool::Group),
    ];
    assert_eq!(groups(&result), expected);
    assert_eq!(result.digest, digest("version: 1\ncrdiff: {down: 0.30000000000000004, mid: 0.4, up: 0.25}"));

    let named = RESULT.replace("\"best_avg", "\"pruning_method\": \"ratio\", \"best_avg");
    assert_eq!(digest(&named), result.digest);
}

#[test]
fn the_authors_magnitudes_are_thresholds() {
    let text =
        RESULT.replace("\"best_avg", "\"pruning_method\": \"magnitude\", \"best_avg").replace("0.4", "1.4");
    let thresholds: Vec<f64> = plan(&text)
        .rules
        .iter()
        .map(|rule| match prune(rule).mask {
            Mask::Threshold { threshold } => threshold.value,
            mask => panic!("{mask:?}"),
        })
        .collect();
    assert_eq!(thresholds, [0.30000000000000004, 1.4, 0.25]);
}

#[test]
fn the_authors_shared_ratio_is_for_transformers() {
    let shared = "\"best_global_params_sd3\": {\"shared_ratio\": 0.15}";
    let alone = format!("{{{shared}}}");
    assert_eq!(groups(&plan(&alone)), [(Group::All, 0.15, Pool::Tensor)]);
    let both =
        |name: &str| RESULT.replace("sdxl", name).replace("\"best_avg", &format!("{shared}, \"best_avg"));
    assert_eq!(groups(&plan(&both("sd3-medium"))), [(Group::All, 0.15, Pool::Tensor)]);
    assert_eq!(groups(&plan(&both("flux"))), [(Group::All, 0.15, Pool::Tensor)]);
    assert_eq!(groups(&plan(&both("sdxl"))).len(), 3);
}

#[test]
fn the_digest_is_of_the_meaning() {
    let one = "version: 1\nrules:\n  - bypass: [a, b]\n  - prune: {weights: c, ratio: 0.5}\n";
    for same in [
        "version: 1\nrules:\n  - prune: {weights: [c, c], ratio: 5e-1, pool: group, ties: all, scale: -0.0}\n  - bypass: {modules: [b, a], via: shortcut}\n",
        "{\"rules\": [{\"bypass\": [\"a\", \"b\"]}, {\"prune\": {\"ratio\": 0.50, \"weights\": \"c\"}}], \"version\": 1}",
    ] {
        assert_eq!(digest(same), digest(one), "{same}");
    }
    assert_eq!(digest(one).len(), 64);
    let others = [
        one.replace("0.5", "0.25"),
        one.replace("c,", "d,"),
        one.replace("[a, b]", "[a]"),
        one.replace("[a, b]", "{modules: [a, b], via: input}"),
        one.replace("0.5}", "0.5, pool: tensor}"),
        one.replace("0.5}", "0.5, ties: exact}"),
        one.replace("0.5}", "0.5, scale: 1}"),
        one.replace("ratio", "threshold"),
        one.to_owned() + "amplify: {weight: 2}\n",
        one.to_owned() + "amplify: {weight: [1.5]}\n",
        one.to_owned() + "amplify: {on: cond}\n",
        one.to_owned() + "amplify: {every: 2}\n",
        one.to_owned() + "amplify: {during: [0, 0.5]}\n",
        one.to_owned() + "amplify: {during: {sigma: [0, 1]}}\n",
    ];
    let mut digests: Vec<String> = others.iter().map(|text| digest(text)).chain([digest(one)]).collect();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), others.len() + 1);
}

#[test]
fn anchors_and_merges_work() {
    let plan = plan(
        "version: 1\nrules:\n  - prune: &ff {weights: \"**.ff.**\", ratio: 0.1}\n  - prune: {<<: *ff, weights: \"**.attn1.**\"}\n",
    );
    let rule = prune(&plan.rules[1]);
    assert_eq!(globs(&rule.weights), ["**.attn1.**"]);
    assert!(matches!(rule.mask, Mask::Ratio { ratio, .. } if ratio.value.get() == 0.1));
}
