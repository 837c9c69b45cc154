//! Diagnostics of spaces: every fault that a space can have, with the place in its text.

use std::{fmt, path::PathBuf, sync::Arc};

use miette::{Diagnostic, LabeledSpan, NamedSource, Severity, SourceCode};

use crate::plan::{PlanError, PlanSource, Problem};

/// A space that can't be used, with everything that is wrong with it.
///
/// As a [`Diagnostic`] it shows each problem on the lines of the space that it comes from.
#[derive(Debug)]
#[non_exhaustive]
pub enum SpaceError {
    /// A file cannot be read.
    File {
        /// The file: the space, or one that it names.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// There are mistakes in it.
    Mistakes(Mistakes),
}

/// Mistakes in a space, at least one.
#[derive(Debug)]
pub struct Mistakes {
    source: NamedSource<Arc<str>>,
    mistakes: Vec<Mistake>,
}

/// One of them.
#[derive(Debug)]
struct Mistake(Problem);

impl SpaceError {
    /// Returns `problems` of the text `source`, in its order; `None` if there are none.
    pub(super) fn of(source: &PlanSource, problems: Vec<Problem>) -> Option<Self> {
        PlanError::from_problems(source, problems).map(Self::from)
    }

    /// Returns the fault, if it is in the text.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        let mistakes = match self {
            Self::File { .. } => None,
            Self::Mistakes(mistakes) => Some(&mistakes.mistakes),
        };
        mistakes.into_iter().flatten().map(|mistake| &mistake.0)
    }

    /// Returns the mistake, if there is just one.
    fn only(&self) -> Option<&Mistake> {
        match self {
            Self::Mistakes(Mistakes { mistakes, .. }) => match mistakes.as_slice() {
                [one] => Some(one),
                _ => None,
            },
            Self::File { .. } => None,
        }
    }
}

impl From<PlanError> for SpaceError {
    fn from(error: PlanError) -> Self {
        let source = error.plan_source();
        let source = NamedSource::new(source.name(), Arc::from(source.text()));
        Self::Mistakes(Mistakes { source, mistakes: error.problems().cloned().map(Mistake).collect() })
    }
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.only()) {
            (Self::File { path, what }, _) => write!(f, "{}: {what}", path.display()),
            (_, Some(one)) => one.fmt(f),
            (Self::Mistakes(all), None) => {
                write!(f, "{} mistakes in {}", all.mistakes.len(), all.source.name())
            }
        }
    }
}

impl std::error::Error for SpaceError {}

impl Diagnostic for SpaceError {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.only()?.code()
    }

    fn severity(&self) -> Option<Severity> {
        Some(Severity::Error)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.only()?.0.help()
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        match self {
            Self::Mistakes(all) if !all.source.inner().is_empty() => Some(&all.source),
            _ => None,
        }
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.only()?.0.labels()
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        match (self, self.only()) {
            (Self::Mistakes(all), None) => {
                Some(Box::new(all.mistakes.iter().map(|mistake| mistake as &dyn Diagnostic)))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Mistake {}

impl Diagnostic for Mistake {
    /// Returns the code of a plan's problem, under another name.
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let code = self.0.code()?.to_string();
        Some(Box::new(code.replacen("plan::", "space::", 1)))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.0.labels()
    }
}
