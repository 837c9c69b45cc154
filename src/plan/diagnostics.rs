//! Diagnostics of plans: every fault that a plan can have, with the place in its text.

use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode, SourceSpan};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The text of a plan, the name to call it by, and the folder from which it names files.
#[derive(Debug, Clone)]
pub struct PlanSource {
    text: NamedSource<Arc<str>>,
    folder: PathBuf,
}

impl PlanSource {
    /// Returns a plan's text under the name `name`. Files that it names are looked for in the working folder.
    pub fn new(name: &str, text: &str) -> Self {
        Self { text: NamedSource::new(name, Arc::from(text)), folder: PathBuf::new() }
    }

    /// Returns the same text with files that it names looked for beside the one at `path`.
    #[must_use]
    pub fn in_folder_of(self, path: &Path) -> Self {
        self.in_folder(path.parent().unwrap_or(Path::new("")))
    }

    /// Returns the same text with files that it names looked for in `folder`.
    #[must_use]
    pub fn in_folder(self, folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), ..self }
    }

    /// Returns the folder from which it names files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the name of the plan: the file it was loaded from.
    pub fn name(&self) -> &str {
        self.text.name()
    }

    /// Returns the whole text.
    pub fn text(&self) -> &str {
        self.text.inner()
    }

    /// Returns the line that `at` begins in, counted from 1.
    pub fn line(&self, at: SourceSpan) -> usize {
        let end = at.offset().min(self.text().len());
        1 + self.text().as_bytes().iter().take(end).filter(|byte| **byte == b'\n').count()
    }
}

/// A plan that can't be used, with everything that is wrong with it.
///
/// As a [`Diagnostic`] it shows each problem on the lines of the plan that it comes from.
#[derive(Debug, Clone)]
pub struct PlanError(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    source: PlanSource,
    first: Problem,
    rest: Vec<Problem>,
}

/// One thing that is wrong with a plan.
#[derive(Debug, Clone, PartialEq, thiserror::Error, Diagnostic)]
#[non_exhaustive]
pub enum Problem {
    /// The file can't be read.
    #[error("the plan can't be read: {reason}")]
    #[diagnostic(code(plan::unreadable))]
    Unreadable {
        /// The system's reason.
        reason: String,
    },
    /// The file is larger than any plan.
    #[error("the plan has {size} bytes; at most {max} are read")]
    #[diagnostic(code(plan::too_big), help("is this the plan, and not the model?"))]
    TooBig {
        /// Its size in bytes.
        size: u64,
        /// The most that is read.
        max: u64,
    },
    /// The file isn't text.
    #[error("the plan isn't UTF-8 text: byte {offset} can't be decoded")]
    #[diagnostic(code(plan::not_utf8))]
    NotUtf8 {
        /// The first byte that isn't part of a character.
        offset: usize,
        /// The encoding or format that it may be instead.
        #[help]
        help: &'static str,
    },
    /// There is nothing in it.
    #[error("the plan is empty")]
    #[diagnostic(code(plan::empty), help("a plan that changes nothing is `version: 1`"))]
    Empty,
    /// It isn't YAML, or YAML of a kind that plans don't need.
    #[error("{message}")]
    #[diagnostic(code(plan::syntax))]
    Syntax {
        /// The YAML parser's message.
        message: String,
        /// The probable intention.
        #[help]
        help: Option<String>,
        /// Where.
        #[label("here")]
        at: SourceSpan,
    },
    /// A key that has no meaning.
    #[error("unknown key `{key}` in {place}")]
    #[diagnostic(code(plan::unknown_key))]
    UnknownKey {
        /// The key.
        key: String,
        /// The mapping it was found in.
        place: &'static str,
        /// The keys that it may be meant to be, or all there are.
        #[help]
        help: String,
        /// Where.
        #[label("unknown")]
        at: SourceSpan,
    },
    /// A key that is there twice.
    #[error("`{key}` appears twice in {place}")]
    #[diagnostic(code(plan::duplicate_key))]
    DuplicateKey {
        /// The key.
        key: String,
        /// The mapping it was found in.
        place: &'static str,
        /// Where it is first.
        #[label("first")]
        first: SourceSpan,
        /// Where it is again.
        #[label("again")]
        again: SourceSpan,
    },
    /// A key that has to be there.
    #[error("{place} needs {key}")]
    #[diagnostic(code(plan::missing_key))]
    MissingKey {
        /// The key, or the keys one of which is needed.
        key: String,
        /// The mapping it is missing from.
        place: &'static str,
        /// A text to write.
        #[help]
        help: Option<String>,
        /// Where it would belong.
        #[label("{key} is missing")]
        at: SourceSpan,
    },
    /// A value of another kind than is needed.
    #[error("{what} must be {expected}, not {found}")]
    #[diagnostic(code(plan::wrong_type))]
    WrongType {
        /// The purpose of the value.
        what: &'static str,
        /// The type it has to have.
        expected: &'static str,
        /// The type it has.
        found: &'static str,
        /// More on what to write.
        #[help]
        help: Option<String>,
        /// Where.
        #[label("{found}")]
        at: SourceSpan,
    },
    /// A value of the right kind that is none of those allowed.
    #[error("{what} must be {expected}, not {found}")]
    #[diagnostic(code(plan::out_of_range))]
    OutOfRange {
        /// The purpose of the value.
        what: &'static str,
        /// The values it may have.
        expected: String,
        /// The value it has.
        found: String,
        /// Where.
        #[label("{expected}")]
        at: SourceSpan,
    },
    /// A version of the language that isn't known here.
    #[error("this plan is written for version {found}; only version 1 is known here")]
    #[diagnostic(code(plan::version))]
    Version {
        /// Its version.
        found: String,
        /// Where.
        #[label("unknown version")]
        at: SourceSpan,
    },
    /// A selector that isn't a glob.
    #[error("{reason}")]
    #[diagnostic(code(plan::bad_glob))]
    BadGlob {
        /// The fault.
        reason: String,
        /// The remedy.
        #[help]
        help: Option<String>,
        /// Where.
        #[label("here")]
        at: SourceSpan,
    },
    /// Two things that can't both be said.
    #[error("{message}")]
    #[diagnostic(code(plan::conflict))]
    Conflict {
        /// Why not.
        message: String,
        /// The remedy.
        #[help]
        help: Option<String>,
        /// The one.
        #[label("this")]
        first: SourceSpan,
        /// The other.
        #[label("and this")]
        second: SourceSpan,
    },
    /// A selector that selects nothing in the model.
    #[error("`{pattern}` matches nothing in this model")]
    #[diagnostic(code(plan::no_match))]
    NoMatch {
        /// The selector.
        pattern: String,
        /// Names that are there.
        #[help]
        help: Option<String>,
        /// Where.
        #[label("matches nothing")]
        at: SourceSpan,
    },
    /// Two prune rules for one weight.
    #[error("two prune rules select the weight of `{weight}`")]
    #[diagnostic(code(plan::overlap), help("a weight takes one rule: make one of the selectors narrower"))]
    Overlap {
        /// The module that has it.
        weight: String,
        /// The one.
        #[label("selected here")]
        first: SourceSpan,
        /// The other.
        #[label("and here")]
        second: SourceSpan,
    },
    /// A file that a rule names, which can't be used.
    #[error("`{file}` can't be used: {reason}")]
    #[diagnostic(code(plan::bad_file))]
    BadFile {
        /// The file, as the plan has it.
        file: String,
        /// Why.
        reason: String,
        /// Where.
        #[label("named here")]
        at: SourceSpan,
    },
    /// A module that can't be taken out.
    #[error("`{module}` can't be bypassed: {reason}")]
    #[diagnostic(code(plan::illegal_bypass))]
    IllegalBypass {
        /// The module.
        module: String,
        /// Why.
        reason: String,
        /// A rule to write instead.
        #[help]
        help: Option<String>,
        /// The selector that asked for it.
        #[label("asked for here")]
        at: SourceSpan,
    },
    /// A module at which the network can't be cut.
    #[error("there can be no cache at `{module}`: {reason}")]
    #[diagnostic(code(plan::illegal_cut))]
    IllegalCut {
        /// The module.
        module: String,
        /// Why.
        reason: String,
        /// The modules that can be named instead.
        #[help]
        help: Option<String>,
        /// Where.
        #[label("asked for here")]
        at: SourceSpan,
    },
    /// A module or weight that the compiler can't change.
    #[error("`{name}` can't be changed: {reason}")]
    #[diagnostic(code(plan::not_editable))]
    NotEditable {
        /// The module, or the module that has the weight.
        name: String,
        /// Why.
        reason: String,
        /// The selector that asked for it.
        #[label("selected here")]
        at: SourceSpan,
    },
}

impl PlanError {
    /// Returns an error with one problem.
    pub fn new(source: &PlanSource, problem: Problem) -> Self {
        Self(Box::new(Inner { source: source.clone(), first: problem, rest: Vec::new() }))
    }

    /// Returns an error with all of `problems`, in the order of the text; `None` if there are none.
    pub fn from_problems(source: &PlanSource, problems: Vec<Problem>) -> Option<Self> {
        let mut problems = problems;
        problems.sort_by_key(Problem::offset);
        let mut problems = problems.into_iter();
        let first = problems.next()?;
        Some(Self(Box::new(Inner { source: source.clone(), first, rest: problems.collect() })))
    }

    /// Returns a selector that selects nothing: `at` is the glob's span, `nearest` names that are there.
    pub fn no_match(source: &PlanSource, at: SourceSpan, pattern: &str, nearest: &[String]) -> Self {
        let help = match nearest {
            [] => None,
            names => Some(format!("did you mean {}?", join(names, "or"))),
        };
        Self::new(source, Problem::NoMatch { pattern: pattern.to_owned(), help, at })
    }

    /// Returns two prune rules, at `first` and `second`, that both select the weight of the module `weight`.
    pub fn overlap(source: &PlanSource, first: SourceSpan, second: SourceSpan, weight: &str) -> Self {
        Self::new(source, Problem::Overlap { weight: weight.to_owned(), first, second })
    }

    /// Returns a module that the rule at `at` wants to bypass but that can't be.
    pub fn illegal_bypass(
        source: &PlanSource,
        at: SourceSpan,
        module: &str,
        reason: impl fmt::Display,
        help: Option<String>,
    ) -> Self {
        let (module, reason) = (module.to_owned(), reason.to_string());
        Self::new(source, Problem::IllegalBypass { module, reason, help, at })
    }

    /// Returns a module, or a module's weight, that the rule at `at` selects but that can't be changed.
    pub fn not_editable(source: &PlanSource, at: SourceSpan, name: &str, reason: impl fmt::Display) -> Self {
        Self::new(source, Problem::NotEditable { name: name.to_owned(), reason: reason.to_string(), at })
    }

    /// Joins several errors about one plan into one; `None` if there are none.
    pub fn combine(errors: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut source = None;
        let mut problems = Vec::new();
        for PlanError(inner) in errors {
            source.get_or_insert(inner.source);
            problems.push(inner.first);
            problems.extend(inner.rest);
        }
        Self::from_problems(&source?, problems)
    }

    /// Returns everything that is wrong, in the order of the text. Never empty.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        std::iter::once(&self.0.first).chain(&self.0.rest)
    }

    /// Returns the plan.
    pub fn plan_source(&self) -> &PlanSource {
        &self.0.source
    }

    /// Returns the problem, if there is just one.
    fn only(&self) -> Option<&Problem> {
        self.0.rest.is_empty().then_some(&self.0.first)
    }
}

impl Problem {
    /// Returns the conflict between two places of a plan.
    pub(crate) fn conflict(
        message: impl Into<String>,
        help: Option<&str>,
        one: SourceSpan,
        other: SourceSpan,
    ) -> Self {
        let (first, second) = if one.offset() <= other.offset() { (one, other) } else { (other, one) };
        Self::Conflict { message: message.into(), help: help.map(str::to_owned), first, second }
    }

    fn offset(&self) -> usize {
        let labels = self.labels().into_iter().flatten();
        labels.map(|label| label.offset()).min().unwrap_or(0)
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.only() {
            Some(problem) => problem.fmt(f),
            None => write!(f, "{} mistakes in {}", self.0.rest.len() + 1, self.0.source.name()),
        }
    }
}

impl std::error::Error for PlanError {}

impl Diagnostic for PlanError {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.only()?.code()
    }

    fn severity(&self) -> Option<Severity> {
        Some(Severity::Error)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.only()?.help()
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        (!self.0.source.text().is_empty()).then_some(&self.0.source.text as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.only()?.labels()
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        match self.only() {
            Some(_) => None,
            None => Some(Box::new(self.problems().map(|problem| problem as &dyn Diagnostic))),
        }
    }
}

/// Returns `a`, `b` and `c`, each in backticks, with `word` for the "and".
pub(crate) fn join(names: &[impl AsRef<str>], word: &str) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, start)) => format!("{} {word} {last}", start.join(", ")),
        None => String::new(),
    }
}
