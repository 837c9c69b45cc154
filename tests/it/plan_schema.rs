//! The JSON Schema in `configs/` is the one that the types give, and the reference in `docs/` is made from it. `BLESS=1`
//! writes both.

use std::path::Path;

use serde_json::Value;

#[test]
fn the_schema_in_configs_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/plan.schema.json");
    let schema = serde_json::to_string_pretty(&crdiff::plan::json_schema()).unwrap() + "\n";
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &schema).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == schema, "configs/plan.schema.json is stale: run this test with BLESS=1");
}

#[test]
fn the_reference_in_docs_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plan-reference.md");
    let reference = reference(crdiff::plan::json_schema().as_value());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &reference).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == reference, "docs/plan-reference.md is stale: run this test with BLESS=1");
    for key in ["`rules[].bypass.via`", "`rules[].prune.ratio`", "`crdiff.down`", "`amplify.during.sigma`"] {
        assert!(reference.contains(key), "{key} is missing");
    }
}

/// Every key of the schema, as a table in Markdown.
fn reference(schema: &Value) -> String {
    let mut rows = Vec::new();
    keys(schema, schema, "", &mut rows);
    let mut text = String::from(
        "# Every key of a plan\n\nMade from `configs/plan.schema.json` by `tests/it/plan_schema.rs`. [plan.md](plan.md) explains, \
         with examples.\n\n| key | value | meaning |\n|---|---|---|\n",
    );
    for [key, value, meaning] in rows {
        text.push_str(&format!("| `{key}` | {value} | {meaning} |\n"));
    }
    text
}

/// Adds a row for each key below `at`, in the order of the schema; a key that several forms have is there once.
fn keys(root: &Value, at: &Value, path: &str, rows: &mut Vec<[String; 3]>) {
    let at = follow(root, at);
    for form in forms(at) {
        keys(root, form, path, rows);
    }
    if let Some(items) = at.get("items") {
        keys(root, items, &format!("{path}[]"), rows);
    }
    let required: Vec<&str> =
        at["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, value) in at["properties"].as_object().into_iter().flatten() {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if rows.iter().all(|[known, ..]| *known != key) {
            let must = if required.contains(&name.as_str()) { " Required here." } else { "" };
            let meaning = value["description"].as_str().or(follow(root, value)["description"].as_str());
            let meaning = meaning.unwrap_or_default().replace('\n', " ").replace('|', "\\|");
            rows.push([key.clone(), describe(root, value), meaning + must]);
        }
        keys(root, value, &key, rows);
    }
}

/// Describes the values of a schema in words.
fn describe(root: &Value, at: &Value) -> String {
    let at = follow(root, at);
    if let Some(constant) = at.get("const") {
        return format!("`{}`", constant.to_string().trim_matches('"'));
    }
    let mut words: Vec<String> = match &at["type"] {
        Value::String(kind) => vec![kind.clone()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).map(str::to_string).collect(),
        _ => forms(at).iter().map(|form| describe(root, form)).collect(),
    };
    words.retain(|word| word != "null" && !word.is_empty());
    words.dedup();
    let mut text = words.join(" or ");
    if text == "array" {
        text = format!("list of {}", describe(root, &at["items"]));
    }
    for (key, sign) in
        [("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<")]
    {
        if let Some(bound) = at[key].as_f64() {
            text.push_str(&format!(" {sign} {bound}"));
        }
    }
    text
}

/// The alternatives of a schema.
fn forms(at: &Value) -> Vec<&Value> {
    ["anyOf", "oneOf"].iter().filter_map(|key| at[key].as_array()).flatten().collect()
}

/// The definition that a `$ref` points to, or the schema itself.
fn follow<'a>(root: &'a Value, at: &'a Value) -> &'a Value {
    match at["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
        Some(name) => &root["$defs"][name],
        None => at,
    }
}
