//! Temporary files: each lies beside its place until it is complete, and is locked by the process that writes it. Those
//! that a killed process has left behind are not locked, and the next one that writes to the same place removes them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};
use tempfile::{Builder, NamedTempFile};

use super::files::folder_of;

/// How the name of a temporary file ends; it begins with a dot and the name of its place.
const SUFFIX: &str = ".crdiff-tmp";
/// Letters and digits in between, which make it unique.
const LETTERS: usize = 6;

/// Makes the temporary file of `path`, after it has removed those that are left behind.
///
/// # Errors
/// The system's error if the folder cannot be written to.
pub(crate) fn create(path: &Path) -> io::Result<NamedTempFile> {
    let name = path.file_name().map(|n| n.to_string_lossy()).unwrap_or_default();
    let prefix = format!(".{name}.");
    let folder = folder_of(path);
    remove_left(folder, &prefix);
    loop {
        let file = Builder::new()
            .prefix(&prefix)
            .suffix(SUFFIX)
            .rand_bytes(LETTERS)
            // The umask applies, so the file gets the mode of any newly created one.
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(folder)
            .map_err(unnamed)?;
        lock(file.as_file());
        // Another process may have taken it for left behind before it was locked.
        if fs::metadata(file.path()).is_ok_and(|m| m.nlink() > 0) {
            return Ok(file);
        }
    }
}

/// Returns the system's error without the name of the temporary file, which nobody has heard of.
pub(crate) fn unnamed(error: io::Error) -> io::Error {
    let text = error.to_string();
    match text.split_once(" at path ") {
        Some((what, _)) => io::Error::new(error.kind(), what.to_string()),
        None => error,
    }
}

/// Locks a file until it is closed. Where the system has no locks, nothing is ever removed.
pub(crate) fn lock(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn remove_left(folder: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let letters = name.to_str().and_then(|n| n.strip_prefix(prefix)?.strip_suffix(SUFFIX));
        let is_temporary = letters.is_some_and(|letters| letters.len() == LETTERS);
        let is_file = || entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_temporary && is_file() && File::open(entry.path()).is_ok_and(|file| lock(&file)) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_behind_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("m.onnx");
        let at_work = create(&place).unwrap();
        for name in [
            ".m.onnx.abcdef.crdiff-tmp",
            ".m.onnx.backup",
            ".other.abcdef.crdiff-tmp",
            ".m.onnx.a.crdiff-tmp",
        ] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let next = create(&place).unwrap();
        let mut names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let name = |file: &NamedTempFile| file.path().file_name().unwrap().to_str().unwrap().to_string();
        let mut expected = vec![
            name(&at_work),
            name(&next),
            ".m.onnx.backup".into(),
            ".other.abcdef.crdiff-tmp".into(),
            ".m.onnx.a.crdiff-tmp".into(),
        ];
        expected.sort();
        assert_eq!(names, expected);
    }
}
