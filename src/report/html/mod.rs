//! Reports as pages for a browser: each one file that needs nothing else, no network, no fonts, no scripts of others.
//!
//! A page is `template.html` with three things put into it: the styles, the scripts, and what they show as JSON. All
//! numbers and all states are decided here; the scripts only lay them out. Names from models and plans reach the page
//! as text in that JSON and nowhere else, so nothing in them is ever read as HTML.

mod model_page;
mod states;

use serde::Serialize;

pub use model_page::{Anatomy, Part};
pub use states::{State, What};

use super::{ChangeReport, CompileReport, diff::message};
use crate::{
    plan::Plan,
    verify::structure::{self, Diff},
};

const TEMPLATE: &str = include_str!("template.html");
const STYLE: &str = include_str!("style.css");
const SCRIPTS: [&str; 7] = [
    include_str!("dom.js"),
    include_str!("network.js"),
    include_str!("details.js"),
    include_str!("table.js"),
    include_str!("histogram.js"),
    include_str!("page.js"),
    include_str!("sections.js"),
];

/// Longest text of a plan, in bytes, and most differences that a page shows.
const PLAN_LIMIT: usize = 64 << 10;
const DIFFERENCES_LIMIT: usize = 5000;

/// The data of a page.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Page<'a> {
    kind: PageKind,
    title: String,
    tool: String,
    models: Vec<Anatomy>,
    views: Vec<View<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<PlanText<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<Differences>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum PageKind {
    Compile,
    Inspect,
    Diff,
}

/// One way to look at a model: what became of it in one output, or in comparison with another.
#[derive(Debug, Serialize)]
struct View<'a> {
    name: String,
    /// Index in the page's models.
    model: usize,
    /// One entry a module.
    states: Vec<State>,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<&'a CompileReport>,
    /// The report's changes of modules, of whatever rule.
    changes: &'a [ChangeReport],
}

#[derive(Debug, Serialize)]
struct PlanText<'a> {
    name: &'a str,
    digest: &'a str,
    /// Empty if it is too long.
    text: &'a str,
}

#[derive(Debug, Serialize)]
struct Differences {
    /// Number of nodes of each graph, and of those that are in both.
    nodes: [usize; 2],
    matched: usize,
    /// How many there are, of which some may not be in `rows`.
    all: usize,
    rows: Vec<DifferenceRow>,
}

#[derive(Debug, Serialize)]
struct DifferenceRow {
    module: String,
    /// `added`, `removed` or `changed`.
    what: What,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    text: String,
}

/// Returns the page about a model without a plan.
pub fn inspect(model: Anatomy) -> Page<'static> {
    let view =
        View { name: String::new(), model: 0, states: states::plain(&model), report: None, changes: &[] };
    page(PageKind::Inspect, model.name.clone(), vec![model], vec![view])
}

/// Returns the page about what `plan` made of `model`: one report for each graph that was emitted.
pub fn compile<'a>(model: Anatomy, plan: &'a Plan, reports: &'a [CompileReport]) -> Page<'a> {
    let view = |report: &'a CompileReport| View {
        name: report.emit.name().to_string(),
        model: 0,
        states: states::compiled(&model, report),
        report: Some(report),
        changes: &report.changes,
    };
    let views = reports.iter().map(view).collect();
    let text = plan.source.text();
    let text = if text.len() <= PLAN_LIMIT { text } else { "" };
    Page {
        plan: Some(PlanText { name: plan.source.name(), digest: &plan.digest, text }),
        ..page(PageKind::Compile, model.name.clone(), vec![model], views)
    }
}

/// Returns the page about the differences between two models.
pub fn diff(models: [Anatomy; 2], diff: &Diff) -> Page<'static> {
    let [a, b] = &models;
    let view = |model: usize, anatomy: &Anatomy, side| View {
        name: anatomy.name.clone(),
        model,
        states: states::compared(anatomy, diff, side),
        report: None,
        changes: &[],
    };
    let views = vec![view(0, a, states::Side::First), view(1, b, states::Side::Second)];
    let row = |difference: &structure::Difference| DifferenceRow {
        module: difference.module.clone(),
        what: What::of(&difference.what),
        node: difference.node.clone(),
        text: message(difference),
    };
    let differences = Differences {
        nodes: [diff.nodes_a, diff.nodes_b],
        matched: diff.matched,
        all: diff.differences.len(),
        rows: diff.differences.iter().take(DIFFERENCES_LIMIT).map(row).collect(),
    };
    let title = format!("{} and {}", a.name, b.name);
    Page { diff: Some(differences), ..page(PageKind::Diff, title, models.into(), views) }
}

fn page<'a>(kind: PageKind, title: String, models: Vec<Anatomy>, views: Vec<View<'a>>) -> Page<'a> {
    let tool = format!("crdiff {}", env!("CARGO_PKG_VERSION"));
    Page { kind, title, tool, models, views, plan: None, diff: None }
}

/// Returns the page as HTML.
///
/// # Errors
/// Those of `serde_json`, which has none for these types.
pub fn render(page: &Page<'_>) -> Result<String, serde_json::Error> {
    let data = script_safe(&serde_json::to_string(page)?);
    let mut html = String::with_capacity(data.len() + (64 << 10));
    // Inserted text is not searched for names again.
    for (index, piece) in TEMPLATE.split("%%").enumerate() {
        match (index % 2, piece) {
            (1, "title") => html.push_str(&escape(&page.title)),
            (1, "style") => html.push_str(STYLE),
            (1, "data") => html.push_str(&data),
            (1, "scripts") => html.extend(SCRIPTS),
            _ => html.push_str(piece),
        }
    }
    Ok(html)
}

/// Returns JSON that a `script` element can hold: no `<`, so neither its end nor a comment can begin in it.
fn script_safe(json: &str) -> String {
    json.replace('<', "\\u003c")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_is_html() {
        let name = "</script><img src=x onerror=alert(1)><!--%%scripts%%";
        let model = Anatomy { name: name.into(), ..Anatomy::default() };
        let html = render(&inspect(model)).unwrap();
        assert!(!html.contains("<img") && !html.contains("<!--"));
        assert_eq!(html.matches("</script>").count(), 2);
        assert!(html.contains("<title>&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;"));
        let data = html.split_once("<script type=\"application/json\" id=\"data\">").unwrap().1;
        let data: serde_json::Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
        assert_eq!(data["models"][0]["name"], name);
    }

    #[test]
    fn every_place_in_the_template_is_filled() {
        let names: Vec<&str> = TEMPLATE.split("%%").skip(1).step_by(2).collect();
        assert_eq!(names, ["title", "style", "data", "scripts"]);
        let html = render(&inspect(Anatomy::default())).unwrap();
        assert!(!html.contains("%%"));
    }
}
