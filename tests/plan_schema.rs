//! The JSON Schema in `configs/` is the one that the types give. `BLESS=1` writes it.

use std::path::Path;

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
