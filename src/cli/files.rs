//! Files that a command writes beside its main output: pictures, reports, plans. They appear whole or not at all.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::Failure;

/// A report that is going to be written. Its place is tried before the work begins, so that a mistake in its name costs
/// nothing. Dropped without [`place`](Self::place), it leaves nothing behind.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    /// `None` for a pipe or a device, which cannot be replaced.
    file: Option<NamedTempFile>,
}

impl Report {
    /// Begins the report that will be `path`.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let file = match fs::metadata(path) {
            Ok(there) if there.is_dir() => Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Ok(there) if !there.is_file() => Ok(None),
            _ => temporary(path).map(Some),
        };
        let file = file.map_err(|error| cannot_write(path, &error))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Whether its name says that it is to be a page for a browser.
    pub fn is_html(&self) -> bool {
        let is = |end: &str| self.path.extension().is_some_and(|e| e.eq_ignore_ascii_case(end));
        is("html") || is("htm")
    }

    /// Writes it and gives it its name.
    pub fn place(self, text: &str) -> Result<(), Failure> {
        let written = match self.file {
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

/// Writes a file beside its place, and moves it there when it is whole.
#[cfg(feature = "runner")]
pub fn replace<E: std::fmt::Display>(
    path: &Path,
    write: impl FnOnce(&mut fs::File) -> Result<(), E>,
) -> Result<(), String> {
    let mut file = temporary(path).map_err(|e| e.to_string())?;
    write(file.as_file_mut()).map_err(|e| e.to_string())?;
    file.as_file_mut().flush().map_err(|e| e.to_string())?;
    file.persist(path).map_err(|e| e.to_string())?;
    Ok(())
}

fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // What the user's mask leaves of read and write, as other files get it.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    tempfile::Builder::new().prefix(".crdiff-").permissions(permissions).tempfile_in(folder)
}
