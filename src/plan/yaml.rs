//! YAML as a tree in which every node knows its place.
//!
//! Plans are read from this tree and not straight into structs, because then every mistake of a plan can be
//! reported at once, and each with its span.

use super::diagnostics::Problem;
use miette::SourceSpan;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::options::NonFiniteFloatPolicy;
use serde_saphyr::{DuplicateKeyPolicy, Location, Options, Spanned};
use std::fmt;

/// A node of the tree.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub value: Value,
    /// Bytes of the text. A mapping or list that goes over several lines is known by its first.
    pub span: SourceSpan,
    /// Where a string's characters start, if they stand in the text as they are.
    pub verbatim: Option<usize>,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the text; a key can be there twice.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub name: String,
    pub span: SourceSpan,
}

impl Value {
    /// Returns the type of the value, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Reads the one YAML document of `text`, within limits that no plan comes near.
pub(crate) fn read(text: &str) -> Result<Node, Problem> {
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options()) {
        Ok(root) => Ok(node(text, root)),
        Err(error) => Err(syntax(text, &error)),
    }
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 16,
            flow_nesting_limit: 16,
            max_events: 200_000,
            max_nodes: 100_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_merge_keys: 100,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000 },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        reject_unsupported_tags: true,
        strict_booleans: true,
        with_snippet: false,
    }
}

fn syntax(text: &str, error: &serde_saphyr::Error) -> Problem {
    let location = error.location().unwrap_or(Location::UNKNOWN);
    let mut cause = error.without_snippet();
    while let serde_saphyr::Error::AliasError { error, .. } = cause {
        cause = error.without_snippet();
    }
    let message = match cause {
        serde_saphyr::Error::MultipleDocuments { .. } => {
            "there is more than one YAML document; only one is read".to_owned()
        }
        serde_saphyr::Error::Budget { breach: BudgetBreach::Depth { .. }, .. } => {
            "nested deeper than any plan".to_owned()
        }
        serde_saphyr::Error::Budget { .. } => "larger than any plan".to_owned(),
        serde_saphyr::Error::AliasReplayLimitExceeded { .. }
        | serde_saphyr::Error::AliasReplayStackDepthExceeded { .. }
        | serde_saphyr::Error::AliasExpansionLimitExceeded { .. } => {
            "the aliases stand for more than any plan".to_owned()
        }
        _ => plain(cause),
    };
    let at = span(text, location);
    // YAML takes a word that begins with `*` for an alias.
    let is_glob = text.get(at.offset()..).is_some_and(|rest| rest.starts_with('*'));
    let help = is_glob.then(|| "quote globs that begin with `*`: \"**.attn1.**\"".to_owned());
    Problem::Syntax { message, help, at }
}

/// Returns the parser's message without its own account of the place, which the label shows.
fn plain(error: &serde_saphyr::Error) -> String {
    let location = error.location().unwrap_or(Location::UNKNOWN);
    let message = error.to_string();
    let place = format!(" at line {}, column {}", location.line(), location.column());
    message.strip_suffix(place.as_str()).unwrap_or(&message).to_owned()
}

/// Returns a location as bytes of `text`, whatever the parser knows of it.
fn span(text: &str, location: Location) -> SourceSpan {
    let span = location.span();
    let (start, end) = match (span.byte_offset(), span.byte_len()) {
        (Some(start), Some(length)) => {
            let start = usize::try_from(start).unwrap_or(usize::MAX);
            (start, start.saturating_add(usize::try_from(length).unwrap_or(0)))
        }
        _ if location == Location::UNKNOWN => (0, 0),
        _ => {
            let skipped = usize::try_from(span.offset()).unwrap_or(usize::MAX);
            let mut offsets = text.char_indices().map(|(offset, _)| offset).skip(skipped);
            let start = offsets.next().unwrap_or(text.len());
            (start, offsets.next().unwrap_or(text.len()))
        }
    };
    let start = floor(text, start);
    let end = floor(text, end).max(start);
    (start, end - start).into()
}

fn floor(text: &str, offset: usize) -> usize {
    text.floor_char_boundary(offset.min(text.len()))
}

fn node(text: &str, raw: Spanned<Raw>) -> Node {
    let start = span(text, raw.referenced);
    match raw.value {
        Raw::Null => Node { value: Value::Null, span: start, verbatim: None },
        Raw::Bool(value) => Node { value: Value::Bool(value), span: start, verbatim: None },
        Raw::Integer(value) => Node { value: Value::Integer(value), span: start, verbatim: None },
        Raw::Float(value) => Node { value: Value::Float(value), span: start, verbatim: None },
        Raw::Text(value) => {
            let verbatim = verbatim(text, start, &value);
            Node { value: Value::Text(value), span: start, verbatim }
        }
        Raw::List(items) => {
            let items: Vec<Node> = items.into_iter().map(|item| node(text, item)).collect();
            let last = items.iter().map(|item| end(item.span)).max();
            Node { span: first_line(text, start, last), value: Value::List(items), verbatim: None }
        }
        Raw::Map(entries) => {
            let entry = |(key, value): (Spanned<String>, Spanned<Raw>)| {
                let key = Key { span: span(text, key.referenced), name: key.value };
                (key, node(text, value))
            };
            let entries: Vec<(Key, Node)> = entries.into_iter().map(entry).collect();
            let last = entries.iter().map(|(key, value)| end(key.span).max(end(value.span))).max();
            Node { span: first_line(text, start, last), value: Value::Map(entries), verbatim: None }
        }
    }
}

fn end(span: SourceSpan) -> usize {
    span.offset() + span.len()
}

fn slice(text: &str, span: SourceSpan) -> &str {
    text.get(span.offset()..end(span)).unwrap_or_default()
}

fn verbatim(text: &str, span: SourceSpan, value: &str) -> Option<usize> {
    let written = slice(text, span);
    if written == value {
        return Some(span.offset());
    }
    let inside = |quote| written.strip_prefix(quote)?.strip_suffix(quote);
    [inside('"'), inside('\'')].contains(&Some(value)).then_some(span.offset() + 1)
}

/// Returns the part of a collection that is on the line it starts on: up to the end of its last part and the bracket
/// that closes it.
fn first_line(text: &str, start: SourceSpan, last: Option<usize>) -> SourceSpan {
    let offset = start.offset();
    let rest = text.get(offset..).unwrap_or_default();
    let line = rest.lines().next().unwrap_or_default();
    let last = last.unwrap_or(0).max(end(start)).saturating_sub(offset);
    let length = match line.get(last..) {
        None => line.trim_end().len(),
        Some(after) => {
            let closing = after.trim_start_matches([' ', ',']);
            let is_flow = matches!(line.as_bytes().first(), Some(b'[' | b'{'));
            let is_closed = is_flow && closing.starts_with([']', '}']);
            if is_closed { line.len() - closing.len() + 1 } else { last }
        }
    };
    (offset, length).into()
}

enum Raw {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Raw::Map(map))
    }
}
