//! Mistakes in a space, told with the place in its text.

use std::{fmt, path::PathBuf};

use miette::{Diagnostic, LabeledSpan, Severity, SourceCode};

use crate::plan::{PlanError, PlanSource, Problem};

/// A space that can't be used, with everything that is wrong with it.
///
/// Its [`Diagnostic`] shows each problem on the lines of the space that it comes from.
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
    error: PlanError,
    each: Vec<Mistake>,
}

/// One of them: a plan's, whose code has another name here.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Mistake(Problem);

impl SpaceError {
    /// Returns `problems` of the text `source`, in its order; `None` if there are none.
    pub(super) fn of(source: &PlanSource, problems: Vec<Problem>) -> Option<Self> {
        PlanError::from_problems(source, problems).map(Self::from)
    }

    /// Returns what is wrong, if it is in the text.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.mistakes().into_iter().flat_map(|mistakes| mistakes.error.problems())
    }

    fn mistakes(&self) -> Option<&Mistakes> {
        match self {
            Self::File { .. } => None,
            Self::Mistakes(mistakes) => Some(mistakes),
        }
    }
}

impl From<PlanError> for SpaceError {
    fn from(error: PlanError) -> Self {
        let each = error.problems().cloned().map(Mistake).collect();
        Self::Mistakes(Mistakes { error, each })
    }
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, what } => write!(f, "{}: {what}", path.display()),
            Self::Mistakes(mistakes) => mistakes.error.fmt(f),
        }
    }
}

impl std::error::Error for SpaceError {}

impl Diagnostic for SpaceError {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        match self.mistakes()?.each.as_slice() {
            [one] => one.code(),
            _ => None,
        }
    }

    fn severity(&self) -> Option<Severity> {
        Some(Severity::Error)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.mistakes()?.error.help()
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.mistakes()?.error.source_code()
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.mistakes()?.error.labels()
    }

    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        let each = &self.mistakes()?.each;
        (each.len() > 1).then(|| Box::new(each.iter().map(|one| one as &dyn Diagnostic)) as _)
    }
}

impl Diagnostic for Mistake {
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
