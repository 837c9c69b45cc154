//! Files that a command writes beside its main output: images, reports, plans. They appear whole or not at all.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::{Failure, print};
use crate::onnx::{self, OnnxError, Taken, temporary};

/// The name of standard output.
const STDOUT: &str = "-";

/// A report that is going to be written. Its place is tried before the work begins, so that a mistake in its name costs
/// nothing. Dropped without [`place`](Self::place), it leaves nothing behind.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    /// `None` for standard output, a pipe or a device, which cannot be replaced.
    file: Option<NamedTempFile>,
}

impl Report {
    /// Begins the report that will be `path`, which must be none of the files in `taken`; `-` is standard output.
    pub fn create(path: &Path, taken: &Taken) -> Result<Self, Failure> {
        let is_special = fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir());
        let file = match is_special || path == Path::new(STDOUT) {
            true => None,
            false => {
                taken.check(path)?;
                Some(temporary::create(path).map_err(|error| cannot_write(path, &error))?)
            }
        };
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Returns whether its name says that it is to be a page for a browser.
    pub fn is_html(&self) -> bool {
        let is = |end: &str| self.path.extension().is_some_and(|e| e.eq_ignore_ascii_case(end));
        is("html") || is("htm")
    }

    /// Writes it and gives it its name.
    pub fn place(self, text: &str) -> Result<(), Failure> {
        let written = match self.file {
            None if self.path == Path::new(STDOUT) => return print(format_args!("{text}")),
            None => fs::write(&self.path, text),
            Some(mut file) => file
                .write_all(text.as_bytes())
                .and_then(|()| file.persist(&self.path).map(drop).map_err(|error| error.error)),
        };
        written.map_err(|error| cannot_write(&self.path, &error))
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    // The error itself can name a temporary file that nobody has heard of; its kind says what is wrong.
    let why = match error.kind() {
        io::ErrorKind::NotFound => "its folder does not exist; make it first".to_string(),
        kind => kind.to_string(),
    };
    Failure::Message(format!("{}: cannot write the report: {why}", path.display()))
}

/// Tries whether [`replace`] could write a file, before the work that makes it.
#[cfg(feature = "runner")]
pub fn can_replace(path: &Path) -> Result<(), String> {
    place_for(path).map(drop)
}

/// Returns the file that will be `path`.
#[cfg(feature = "runner")]
fn place_for(path: &Path) -> Result<NamedTempFile, String> {
    Taken::default().check(path).map_err(|e| match e {
        OnnxError::Output { what, .. } => what,
        other => other.to_string(),
    })?;
    temporary::create(path).map_err(|e| e.to_string())
}

/// Writes a file beside its place, and moves it there when it is whole.
#[cfg(feature = "runner")]
pub fn replace<E: std::fmt::Display>(
    path: &Path,
    write: impl FnOnce(&mut fs::File) -> Result<(), E>,
) -> Result<(), String> {
    let mut file = place_for(path)?;
    write(file.as_file_mut()).map_err(|e| e.to_string())?;
    file.as_file_mut().flush().map_err(|e| e.to_string())?;
    file.persist(path).map_err(|e| e.to_string())?;
    Ok(())
}

/// Returns the files of models that a report must not be written over.
pub fn models(paths: &[&Path]) -> Result<Taken, OnnxError> {
    let mut taken = Taken::default();
    for path in paths {
        taken.add_source(&onnx::open(path)?)?;
    }
    Ok(taken)
}
