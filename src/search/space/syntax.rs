//! How spaces are written: one description of each mapping, from which it is read and the JSON Schema is made.

use serde_json::{Map, Value as Json, json};

use crate::plan::{
    Problem,
    read::{Fields, choice, fields, list, number, wrong_type},
    yaml::{Key as NameAt, Node, Value},
};

/// A mapping with fixed keys.
pub(super) struct Section {
    /// Its name in the schema.
    pub(super) title: &'static str,
    /// Its name in messages.
    pub(super) place: &'static str,
    pub(super) about: &'static str,
    pub(super) keys: &'static [&'static [Key]],
}

/// A key of a section.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// The name as messages have it.
    pub(super) quoted: &'static str,
    pub(super) about: &'static str,
    pub(super) form: Form,
    /// For a key that must be there, the help where it is not; may be empty.
    pub(super) required: Option<&'static str>,
}

/// Makes keys: `name: form, "about";`, or `name or "help": ...` for one that must be there.
macro_rules! keys {
    (@) => { None };
    (@ $help:literal) => { Some($help) };
    ($($name:ident $(or $help:literal)?: $form:expr, $about:literal;)*) => {{
        #[allow(unused_imports, reason = "few sections have all forms")]
        use $crate::search::space::syntax::{Form::*, Key, keys};
        [$(Key {
            name: stringify!($name),
            quoted: concat!("`", stringify!($name), "`"),
            about: $about,
            form: $form,
            required: keys!(@ $($help)?),
        }),*]
    }};
}
pub(super) use keys;

/// Makes a section: `NAME = "title", "place", with SHARED KEYS;`, then its own keys.
macro_rules! section {
    (
        #[doc = $about:literal]
        $vis:vis $name:ident = $title:literal, $place:literal $(, with $shared:ident)?;
        $($keys:tt)*
    ) => {
        $vis static $name: $crate::search::space::syntax::Section = $crate::search::space::syntax::Section {
            title: $title,
            place: $place,
            about: $about,
            keys: &[$(&$shared,)? &$crate::search::space::syntax::keys!($($keys)*)],
        };
    };
}
pub(super) use section;

/// The values that a key takes.
pub(super) enum Form {
    Number(Range),
    Text,
    /// Text, a number, true or false.
    Scalar,
    Word(&'static [&'static str]),
    /// At least one item of a form; the words name the items.
    List(&'static Form, &'static str),
    Exactly(usize, &'static Form),
    Mapping(&'static Section),
    /// A mapping whose keys are free.
    Named(&'static Form),
    /// Another language's mapping.
    Foreign,
    OneOf(&'static [Form]),
}

/// A range of numbers.
#[derive(Clone, Copy)]
pub(super) struct Range {
    words: &'static str,
    least: f64,
    most: f64,
    /// Whether the ends themselves are left out.
    open: [bool; 2],
    whole: bool,
}

impl Range {
    pub(super) const FINITE: Self = Self::of("a finite number", f64::MIN, f64::MAX);
    pub(super) const ABOVE_0: Self = Self::of("a number above 0", 0.0, f64::MAX).open([true, false]);
    pub(super) const PIXELS: Self = Self::whole("a whole number from 1 to 65536", 1.0, 65536.0);

    pub(super) const fn of(words: &'static str, least: f64, most: f64) -> Self {
        Self { words, least, most, open: [false; 2], whole: false }
    }

    pub(super) const fn whole(words: &'static str, least: f64, most: f64) -> Self {
        Self { whole: true, ..Self::of(words, least, most) }
    }

    pub(super) const fn open(self, open: [bool; 2]) -> Self {
        Self { open, ..self }
    }

    pub(super) const fn words(&self) -> &'static str {
        self.words
    }

    fn allows(&self, number: f64) -> bool {
        let [above, below] = self.open;
        (self.least..=self.most).contains(&number)
            && !(above && number == self.least || below && number == self.most)
            && !(self.whole && number.fract() != 0.0)
    }

    /// Reads a number of the range.
    pub(super) fn read(&self, node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<f64> {
        number(node, what, self.words, |number| self.allows(number), problems).map(|number| number.value)
    }

    fn schema(&self) -> Json {
        let mut schema = json!({ "type": if self.whole { "integer" } else { "number" } });
        let ends = [
            (["minimum", "exclusiveMinimum"], self.least, self.open[0]),
            (["maximum", "exclusiveMaximum"], self.most, self.open[1]),
        ];
        for (names, end, is_open) in ends.into_iter().filter(|(_, end, _)| end.abs() < f64::MAX) {
            schema[names[usize::from(is_open)]] = match end.fract() == 0.0 {
                true => json!(end as i64),
                false => json!(end),
            };
        }
        schema
    }
}

impl Section {
    /// Returns the names of its keys.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.keys.iter().copied().flatten().map(|key| key.name).collect()
    }

    /// Returns the JSON Schema of files that are such a mapping.
    pub(super) fn schema(&'static self) -> Json {
        let mut defs = Map::new();
        let mut root =
            json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "title": self.title });
        let object = self.object(&mut defs);
        root.as_object_mut().into_iter().for_each(|root| root.extend(object.clone()));
        root["$defs"] = defs.into();
        root
    }

    fn object(&'static self, defs: &mut Map<String, Json>) -> Map<String, Json> {
        let mut properties = Map::new();
        for key in self.keys.iter().copied().flatten() {
            let mut property = json!({ "description": key.about });
            let form = key.form.schema(defs);
            property
                .as_object_mut()
                .into_iter()
                .zip(form.as_object())
                .for_each(|(to, form)| to.extend(form.clone()));
            properties.insert(key.name.to_string(), property);
        }
        let required = self.keys.iter().copied().flatten().filter(|key| key.required.is_some());
        let required: Vec<&str> = required.map(|key| key.name).collect();
        let mut object = Map::new();
        for (name, value) in [
            ("description", self.about.trim().into()),
            ("type", "object".into()),
            ("properties", properties.into()),
            ("required", required.into()),
            ("additionalProperties", false.into()),
        ] {
            object.insert(name.to_string(), value);
        }
        object
    }
}

impl Form {
    fn schema(&self, defs: &mut Map<String, Json>) -> Json {
        match self {
            Self::Number(range) => range.schema(),
            Self::Text => json!({ "type": "string" }),
            Self::Scalar => json!({ "type": ["string", "number", "boolean"] }),
            Self::Word(words) => json!({ "enum": words }),
            Self::List(form, _) => json!({ "type": "array", "items": form.schema(defs), "minItems": 1 }),
            Self::Exactly(count, form) => {
                json!({ "type": "array", "items": form.schema(defs), "minItems": count, "maxItems": count })
            }
            Self::Mapping(section) => {
                if !defs.contains_key(section.title) {
                    // It may be a part of itself.
                    defs.insert(section.title.to_string(), Json::Null);
                    let object = section.object(defs).into();
                    defs.insert(section.title.to_string(), object);
                }
                json!({ "$ref": format!("#/$defs/{}", section.title) })
            }
            Self::Named(form) => json!({ "type": "object", "additionalProperties": form.schema(defs) }),
            Self::Foreign => json!({ "type": "object" }),
            Self::OneOf(forms) => {
                let forms: Vec<Json> = forms.iter().map(|form| form.schema(defs)).collect();
                json!({ "anyOf": forms })
            }
        }
    }
}

/// A mapping that is read as a section. Mistakes go into `problems`, and a key with a mistake has the value of one that is
/// left out: a space with problems is never used.
pub(super) struct Reader<'a> {
    pub(super) fields: Fields<'a>,
    pub(super) section: &'static Section,
}

impl<'a> Reader<'a> {
    /// Reads `node`, all of whose required keys must be there.
    pub(super) fn new(
        section: &'static Section,
        node: &'a Node,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let reader = Self::part(section, node, problems)?;
        for key in section.keys.iter().copied().flatten() {
            if let Some(help) = key.required {
                reader.fields.require(key.name, Some(help).filter(|help| !help.is_empty()), problems);
            }
        }
        Some(reader)
    }

    /// Reads `node`, some of whose keys are wanted.
    pub(super) fn part(
        section: &'static Section,
        node: &'a Node,
        problems: &mut Vec<Problem>,
    ) -> Option<Self> {
        let fields = fields(node, section.place, &section.names(), problems)?;
        Some(Self { fields, section })
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Node> {
        self.fields.get(name)
    }

    fn key(&self, name: &str) -> Option<(&'static Key, &'a Node)> {
        let key = self.section.keys.iter().copied().flatten().find(|key| key.name == name)?;
        Some((key, self.get(name)?))
    }

    pub(super) fn number(&self, name: &str, problems: &mut Vec<Problem>) -> Option<f64> {
        match self.key(name)? {
            (Key { form: Form::Number(range), quoted, .. }, node) => range.read(node, quoted, problems),
            _ => None,
        }
    }

    pub(super) fn count(&self, name: &str, problems: &mut Vec<Problem>) -> Option<usize> {
        self.number(name, problems).map(|number| number as usize)
    }

    pub(super) fn text(&self, name: &str, problems: &mut Vec<Problem>) -> Option<String> {
        let (key, node) = self.key(name)?;
        text(node, key.quoted, problems)
    }

    /// Reads one of the key's words as the value in its place.
    pub(super) fn word<T: Copy>(&self, name: &str, values: &[T], problems: &mut Vec<Problem>) -> Option<T> {
        match self.key(name)? {
            (Key { form: Form::Word(words), quoted, .. }, node) => {
                let words: Vec<_> = words.iter().copied().zip(values.iter().copied()).collect();
                choice(node, quoted, &words, problems)
            }
            _ => None,
        }
    }

    /// Reads a list that is not empty.
    pub(super) fn list(&self, name: &str, problems: &mut Vec<Problem>) -> Option<&'a [Node]> {
        match self.key(name)? {
            (Key { form: Form::List(_, words), quoted, .. }, node) => full(node, quoted, words, problems),
            _ => None,
        }
    }

    /// Reads another section.
    pub(super) fn section(&self, name: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        match self.key(name)? {
            (Key { form: Form::Mapping(section), .. }, node) => Self::new(section, node, problems),
            _ => None,
        }
    }

    /// Returns which of `kinds` the mapping is, by the one key of them that it has. The helps are for two, and for none.
    pub(super) fn kind(
        &self,
        kinds: &[&'static str],
        [two, none]: [Option<&str>; 2],
        problems: &mut Vec<Problem>,
    ) -> Option<(&'static str, &'a NameAt, &'a Node)> {
        let given = kinds.iter().filter_map(|kind| {
            let (key, node) = self.fields.entry(kind)?;
            Some((*kind, key, node))
        });
        match given.collect::<Vec<_>>().as_slice() {
            [one] => Some(*one),
            [(one, first, _), (other, second, _), ..] => {
                let message = format!("{} is one of these, not `{one}` and `{other}`", self.section.place);
                problems.push(Problem::conflict(message, two, first.span, second.span));
                None
            }
            [] => {
                self.fields.report_missing(kinds, none, problems);
                None
            }
        }
    }
}

/// Reads a list that is not empty.
pub(super) fn full<'a>(
    node: &'a Node,
    what: &'static str,
    words: &'static str,
    problems: &mut Vec<Problem>,
) -> Option<&'a [Node]> {
    let items = list(node, what, problems)?;
    if items.is_empty() {
        let (expected, found) = (words.to_string(), "none".to_string());
        problems.push(Problem::OutOfRange { what, expected, found, at: node.span });
    }
    (!items.is_empty()).then_some(items)
}

/// Returns the entries of a mapping with free keys, none twice.
pub(super) fn entries<'a>(
    node: &'a Node,
    what: &'static str,
    problems: &mut Vec<Problem>,
) -> Option<&'a [(NameAt, Node)]> {
    let Value::Map(map) = &node.value else {
        problems.push(wrong_type(node, what, "a mapping"));
        return None;
    };
    let names: Vec<&str> = map.iter().map(|(key, _)| key.name.as_str()).collect();
    // Any key is known here; a key that is there twice still is a mistake.
    let _ = fields(node, what, &names, problems);
    Some(map)
}

/// Reads text, a number, true or false.
pub(super) fn scalar(node: &Node, problems: &mut Vec<Problem>) -> Option<Json> {
    match &node.value {
        Value::Bool(flag) => Some((*flag).into()),
        Value::Integer(number) => i64::try_from(*number).ok().map(Json::from),
        Value::Float(number) if number.is_finite() => Some((*number).into()),
        Value::Text(text) => Some(text.as_str().into()),
        _ => {
            problems.push(wrong_type(node, "an option", "text, a number, true or false"));
            None
        }
    }
}

/// Reads text.
pub(super) fn text(node: &Node, what: &'static str, problems: &mut Vec<Problem>) -> Option<String> {
    match &node.value {
        Value::Text(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        _ => {
            problems.push(wrong_type(node, what, "text"));
            None
        }
    }
}
