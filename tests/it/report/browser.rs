//! A headless Chromium, driven by `browser/look.mjs`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::common::node::node_with_packages;

/// Text on its background is legible for almost everyone from here on (WCAG 2.2, success criterion 1.4.3).
const LEGIBLE: f64 = 4.5;

/// Takes the steps on the page `file` and returns their answers. Fails if the page logs anything, or asks the network
/// for anything; and unless it is legible in light and dark, and no wider than a window of 1280 and of 400 pixels.
pub fn look(file: &Path, steps: &[Value]) -> Vec<Value> {
    look_at_all(&[file], steps).remove(0)
}

/// Does the same for several pages, in one browser: it takes seconds to start.
pub fn look_at_all(files: &[impl AsRef<Path>], steps: &[Value]) -> Vec<Vec<Value>> {
    let mut all = steps.to_vec();
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (400, "dark"), (400, "light")] {
        all.push(json!({ "step": "view", "width": width, "scheme": scheme }));
        all.push(json!({ "step": "overflow" }));
        all.push(json!({ "step": "contrast" }));
    }
    all.insert(0, json!({ "step": "view", "width": 1280, "scheme": "light" }));
    let folder = tempfile::tempdir().unwrap();
    let request = folder.path().join("request.json");
    let pages: Vec<Value> = files.iter().map(|file| json!({ "file": file.as_ref(), "steps": all })).collect();
    let asked = json!({ "browser": chromium(), "pages": pages });
    fs::write(&request, asked.to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report/browser/look.mjs");
    let ran = node_with_packages("browser", &script).arg(&request).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{pages:?}: {}\n{said}", ran.status);
    let seen: Vec<Value> = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(seen.len(), files.len());
    seen.iter().map(|seen| checked(seen, steps.len())).collect()
}

/// Checks what was seen of a page, and returns the answers of its own steps.
fn checked(seen: &Value, steps: usize) -> Vec<Value> {
    assert_eq!(seen["logged"], json!([]), "the page logs something");
    let asked = seen["requests"].as_array().unwrap().iter();
    let network: Vec<&Value> = asked.filter(|url| !url.as_str().unwrap().starts_with("data:")).collect();
    assert!(network.is_empty(), "the page asks for {network:?}");
    let mut answers = seen["answers"].as_array().unwrap()[1..].to_vec();
    let views = answers.split_off(steps);
    let mut backgrounds = Vec::new();
    for view in views.chunks(3) {
        assert_eq!(view[1], 0, "the page is wider than the window");
        let least = &view[2]["least"];
        assert!(view[2]["checked"].as_u64().unwrap() > 50, "{}", view[2]);
        assert!(least["ratio"].as_f64().unwrap() >= LEGIBLE, "{least}");
        backgrounds.push((&view[2]["background"], &view[2]["ink"]));
    }
    assert_eq!(backgrounds[1], backgrounds[2]);
    assert!(backgrounds[0].0 != backgrounds[1].0 && backgrounds[0].1 != backgrounds[1].1, "{backgrounds:?}");
    answers
}

/// The strings in a list.
pub fn strings(answer: &Value) -> Vec<&str> {
    answer.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// The column `name` of a table's answer.
pub fn column<'t>(table: &'t Value, name: &str) -> Vec<&'t str> {
    let rows = table.as_array().unwrap();
    let heads = strings(&rows[0]);
    let index =
        heads.iter().position(|head| *head == name).unwrap_or_else(|| panic!("no {name} in {heads:?}"));
    rows[1..].iter().map(|row| row[index].as_str().unwrap()).collect()
}

/// A number as the page writes it.
pub fn number(text: &str) -> u64 {
    text.replace(',', "").parse().unwrap_or_else(|_| panic!("`{text}` is no number"))
}

/// The browser that CHROMIUM names, else the first of its usual names on the PATH. `look.mjs` has one for where there is
/// none.
fn chromium() -> Option<PathBuf> {
    if let Some(named) = env::var_os("CHROMIUM").filter(|path| !path.is_empty()) {
        return Some(named.into());
    }
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    found.into_iter().find(|path| path.is_file())
}
