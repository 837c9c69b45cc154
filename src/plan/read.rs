//! Typed readers of a YAML node, each of which notes what is wrong with it.

use super::diagnostics::{Problem, join};
use super::glob::{BadGlob, Glob};
use super::model::Located;
use super::select::Selector;
use super::yaml::{Key, Node, Value};
use miette::SourceSpan;

/// A constructor of globs from text.
type Compile = fn(&str, SourceSpan) -> Result<Glob, BadGlob>;

/// The entries of a mapping.
pub(crate) struct Fields<'a> {
    place: &'static str,
    span: SourceSpan,
    entries: Vec<(&'a Key, &'a Node)>,
    /// The keys that unknown ones are probably meant to be. They aren't reported as missing as well.
    meant: Vec<String>,
}

/// Reads `node`, called `place` in messages, as a mapping with no other keys than `keys`.
pub(crate) fn fields<'a>(
    node: &'a Node,
    place: &'static str,
    keys: &[&str],
    problems: &mut Vec<Problem>,
) -> Option<Fields<'a>> {
    let Value::Map(map) = &node.value else {
        problems.push(wrong_type(node, place, "a mapping"));
        return None;
    };
    let mut entries: Vec<(&Key, &Node)> = Vec::new();
    let mut meant = Vec::new();
    for (key, value) in map {
        if let Some((first, _)) = entries.iter().find(|(known, _)| known.name == key.name) {
            let (key, first, again) = (key.name.clone(), first.span, key.span);
            problems.push(Problem::DuplicateKey { key, place, first, again });
            continue;
        }
        if !keys.contains(&key.name.as_str()) {
            meant.extend(similar(&key.name, keys).map(str::to_owned));
            problems.push(unknown_key(key, place, keys));
        }
        entries.push((key, value));
    }
    Some(Fields { place, span: node.span, entries, meant })
}

impl<'a> Fields<'a> {
    /// Returns the key `key` and its value, if it is there.
    pub fn entry(&self, key: &str) -> Option<(&'a Key, &'a Node)> {
        self.entries.iter().copied().find(|(known, _)| known.name == key)
    }

    /// Returns the value of `key`, if it is there.
    pub fn get(&self, key: &str) -> Option<&'a Node> {
        self.entry(key).map(|(_, node)| node)
    }

    /// Returns the value of `key`, which has to be there.
    pub fn require(&self, key: &str, help: Option<&str>, problems: &mut Vec<Problem>) -> Option<&'a Node> {
        self.require_entry(key, help, problems).map(|(_, node)| node)
    }

    /// Returns the key `key`, which has to be there, and its value.
    pub fn require_entry(
        &self,
        key: &str,
        help: Option<&str>,
        problems: &mut Vec<Problem>,
    ) -> Option<(&'a Key, &'a Node)> {
        let found = self.entry(key);
        if found.is_none() {
            self.report_missing(&[key], help, problems);
        }
        found
    }

    /// Reports that one of `keys` is missing, unless a key that isn't known is probably meant to be it.
    pub fn report_missing(&self, keys: &[&str], help: Option<&str>, problems: &mut Vec<Problem>) {
        if !self.meant.iter().any(|meant| keys.contains(&meant.as_str())) {
            let (key, help) = (join(keys, "or"), help.map(str::to_owned));
            problems.push(Problem::MissingKey { key, place: self.place, help, at: self.span });
        }
    }
}

/// Returns the problem of a `key` that isn't one of `keys`.
pub(crate) fn unknown_key(key: &Key, place: &'static str, keys: &[&str]) -> Problem {
    let is_number = !key.name.is_empty() && key.name.bytes().all(|byte| byte.is_ascii_digit());
    let help = match similar(&key.name, keys) {
        _ if is_number => format!("a number is written with a point, such as 0.{}", key.name),
        Some(known) => format!("did you mean `{known}`?"),
        None => format!("the keys here are {}", join(keys, "and")),
    };
    Problem::UnknownKey { key: key.name.clone(), place, help, at: key.span }
}

/// Returns the one of `keys` that is most like `name`, if any is.
pub(crate) fn similar<'a>(name: &str, keys: &[&'a str]) -> Option<&'a str> {
    let similarity = |key: &&str| strsim::normalized_damerau_levenshtein(name, key);
    let best = keys.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(best) >= 0.5).then_some(*best)
}

/// Returns the problem of a `node` that isn't `expected`.
pub(crate) fn wrong_type(node: &Node, what: &'static str, expected: &'static str) -> Problem {
    Problem::WrongType { what, expected, found: node.value.kind(), help: None, at: node.span }
}

/// Returns the problem of a `node` that isn't `expected`, and what to write.
pub(crate) fn wrong_type_help(
    node: &Node,
    what: &'static str,
    expected: &'static str,
    help: &str,
) -> Problem {
    let help = Some(help.to_owned());
    Problem::WrongType { what, expected, found: node.value.kind(), help, at: node.span }
}

/// Reads a number that `allowed` holds for; `expected` says in words what that is.
pub(crate) fn number(
    node: &Node,
    what: &'static str,
    expected: &'static str,
    allowed: impl Fn(f64) -> bool,
    problems: &mut Vec<Problem>,
) -> Option<Located<f64>> {
    let value = match &node.value {
        Value::Integer(value) => *value as f64,
        Value::Float(value) => *value,
        Value::Text(text) if text.parse::<f64>().is_ok() => {
            let help = Some("leave the quotes out".to_owned());
            problems.push(Problem::WrongType {
                what,
                expected: "a number",
                found: "text",
                help,
                at: node.span,
            });
            return None;
        }
        Value::Text(text) if text.replacen(',', ".", 1).parse::<f64>().is_ok() => {
            let help = format!("write it with a point: {}", text.replacen(',', ".", 1));
            problems.push(wrong_type_help(node, what, "a number", &help));
            return None;
        }
        _ => {
            problems.push(wrong_type(node, what, "a number"));
            return None;
        }
    };
    let is_single = (value as f32).is_finite() || !value.is_finite();
    if allowed(value) && is_single {
        return Some(Located { value, span: node.span });
    }
    let expected = if is_single { expected } else { "a number that float32 holds" };
    let (expected, found) = (expected.to_owned(), value.to_string());
    problems.push(Problem::OutOfRange { what, expected, found, at: node.span });
    None
}

/// Reads any number but an infinite one.
pub(crate) fn finite(node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<Located<f64>> {
    number(node, what, "a finite number", f64::is_finite, problems)
}

/// Reads one of a few words.
pub(crate) fn choice<T: Copy>(
    node: &Node,
    what: &'static str,
    words: &[(&str, T)],
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let Value::Text(text) = &node.value else {
        problems.push(wrong_type(node, what, "a word"));
        return None;
    };
    let found = words.iter().find(|(word, _)| word == text).map(|(_, value)| *value);
    if found.is_none() {
        let quoted: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        let (expected, found) = (quoted.join(" or "), format!("`{text}`"));
        problems.push(Problem::OutOfRange { what, expected, found, at: node.span });
    }
    found
}

/// Reads a list.
pub(crate) fn list<'a>(
    node: &'a Node,
    what: &'static str,
    problems: &mut Vec<Problem>,
) -> Option<&'a [Node]> {
    match &node.value {
        Value::List(items) => Some(items),
        _ => {
            problems.push(wrong_type(node, what, "a list"));
            None
        }
    }
}

/// Reads the two ends of a range, the lower one first; `expected` says what both have to be.
pub(crate) fn range(
    node: &Node,
    what: &'static str,
    expected: &'static str,
    allowed: impl Fn(f64) -> bool,
    problems: &mut Vec<Problem>,
) -> Option<(f64, f64)> {
    let items = list(node, what, problems)?;
    let out_of_range = |expected: &str, found: String| {
        let expected = expected.to_owned();
        Problem::OutOfRange { what, expected, found, at: node.span }
    };
    let [low, high] = items else {
        problems.push(out_of_range("a list of two numbers", format!("one of {}", items.len())));
        return None;
    };
    let low = number(low, what, expected, &allowed, problems);
    let high = number(high, what, expected, &allowed, problems);
    let (low, high) = (low?.value, high?.value);
    if low > high {
        problems.push(out_of_range("the lower end and then the upper", format!("{low} and then {high}")));
        return None;
    }
    Some((low, high))
}

/// Reads what a key says, or the default where it is left out.
pub(crate) fn or_default<T: Default>(
    node: Option<&Node>,
    read: impl FnOnce(&Node) -> Option<T>,
) -> Option<T> {
    node.map_or(Some(T::default()), read)
}

/// Reads a glob or a list of them.
pub(crate) fn selector(
    node: &Node,
    what: &'static str,
    compile: Compile,
    problems: &mut Vec<Problem>,
) -> Option<Selector> {
    let items = match &node.value {
        Value::List(items) => items.as_slice(),
        _ => std::slice::from_ref(node),
    };
    if items.is_empty() {
        let (expected, found) = ("a glob or a list of globs".to_owned(), "an empty list".to_owned());
        problems.push(Problem::OutOfRange { what, expected, found, at: node.span });
        return None;
    }
    let globs: Vec<Option<Glob>> = items.iter().map(|item| glob(item, what, compile, problems)).collect();
    globs.into_iter().collect::<Option<Vec<_>>>().map(Selector::Globs)
}

fn glob(node: &Node, what: &'static str, compile: Compile, problems: &mut Vec<Problem>) -> Option<Glob> {
    let Value::Text(text) = &node.value else {
        problems.push(wrong_type(node, what, "a glob or a list of globs"));
        return None;
    };
    match compile(text, node.span) {
        Ok(glob) => Some(glob),
        Err(BadGlob { reason, at, help }) => {
            let inside = at.zip(node.verbatim).map(|(at, start)| (start + at.start, at.len()).into());
            problems.push(Problem::BadGlob { reason, help, at: inside.unwrap_or(node.span) });
            None
        }
    }
}
