//! Folders that appear complete or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::DeployError;
use crate::onnx::{OnnxError, temporary};

/// Makes, or adds to, the folder `place` what `fill` writes: all of it, or nothing if anything fails. Errors name files
/// where they would have been.
pub(super) fn complete<T>(
    place: &Path,
    fill: impl FnOnce(&Staging) -> Result<T, DeployError>,
) -> Result<T, DeployError> {
    let staging = Staging::beside(place)?;
    let filled = fill(&staging).map_err(|error| staging.named(error))?;
    staging.place()?;
    Ok(filled)
}

/// A folder in the making, beside its place. Dropped without [`Staging::place`], it vanishes.
#[derive(Debug)]
pub(super) struct Staging {
    place: PathBuf,
    root: PathBuf,
    _work: TempDir,
    _made: MadeFolders,
}

/// Folders that were made for a place. Dropped, those that are empty vanish.
#[derive(Debug)]
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// Makes `folder` and those that it lies in, where they are not there.
    fn down_to(folder: &Path) -> Result<Self, DeployError> {
        let missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
        let missing: Vec<PathBuf> = folder.ancestors().take_while(missing).map(Path::to_path_buf).collect();
        fs::create_dir_all(folder).map_err(DeployError::io("create", folder))?;
        Ok(Self(missing))
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            // A folder that isn't empty stays.
            let _ = fs::remove_dir(folder);
        }
    }
}

impl Staging {
    /// Begins what will be, or be added to, the folder `place`. The folders that it lies in are made.
    fn beside(place: &Path) -> Result<Self, DeployError> {
        if place.exists() && !place.is_dir() {
            return Err(DeployError::output(place, "it is a file; name a folder"));
        }
        let parent = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = MadeFolders::down_to(parent)?;
        let work = tempfile::Builder::new().prefix(".crdiff-").tempdir_in(parent).map_err(temporary::unnamed);
        let work = work.map_err(DeployError::io("create a folder in this folder", parent))?;
        // The temporary folder itself is closed to others; this one has the mode of any new folder.
        let root = work.path().join("root");
        fs::create_dir(&root).map_err(DeployError::io("create", &root))?;
        Ok(Self { place: place.to_path_buf(), root, _work: work, _made: made })
    }

    /// Returns where to write what will be at `name` in the place. Fails if something is there already.
    pub(super) fn path(&self, name: &str) -> Result<PathBuf, DeployError> {
        let target = self.place.join(name);
        match fs::symlink_metadata(&target) {
            Ok(_) => {
                Err(DeployError::output(&target, "it is there already; remove it or choose another name"))
            }
            Err(_) => Ok(self.root.join(name)),
        }
    }

    /// Writes a file of text.
    pub(super) fn write(&self, path: &Path, text: &str) -> Result<(), DeployError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(DeployError::io("create", folder))?;
        }
        fs::write(path, text).map_err(DeployError::io("write", path))
    }

    /// Returns an error that names a file where it would have been, not in the temporary folder.
    fn named(&self, mut error: DeployError) -> DeployError {
        if let DeployError::Io { path, .. }
        | DeployError::Onnx(OnnxError::Io { path, .. } | OnnxError::Output { path, .. }) = &mut error
            && let Ok(name) = path.strip_prefix(&self.root)
        {
            *path = self.place.join(name);
        }
        error
    }

    /// Moves everything to its place: the whole folder if the place is not there, else each entry.
    fn place(self) -> Result<(), DeployError> {
        if !self.place.exists() {
            return fs::rename(&self.root, &self.place).map_err(DeployError::io("create", &self.place));
        }
        let listing = || DeployError::io("list", &self.root);
        let mut placed: Vec<(PathBuf, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(listing())? {
            let entry = entry.map_err(listing())?;
            let (from, to) = (entry.path(), self.place.join(entry.file_name()));
            let moved = match to.exists() {
                true => Err(std::io::ErrorKind::AlreadyExists.into()),
                false => fs::rename(&from, &to),
            };
            if let Err(source) = moved {
                for (from, to) in placed.iter().rev() {
                    fs::rename(to, from).ok();
                }
                return Err(DeployError::Io { action: "create", path: to, source });
            }
            placed.push((from, to));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_added_together_or_not_at_all() {
        let work = tempfile::tempdir().unwrap();
        let place = work.path().join("repo");
        let staged = |names: &[&str]| {
            let staging = Staging::beside(&place).unwrap();
            for name in names {
                staging.write(&staging.path(name).unwrap().join("file"), name).unwrap();
            }
            staging
        };
        let late = staged(&["a", "b", "c"]);
        staged(&["b"]).place().unwrap();
        assert_eq!(fs::read_to_string(place.join("b/file")).unwrap(), "b");
        assert!(late.place().is_err(), "`b` came in between");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
        staged(&["a", "c"]).place().unwrap();
        assert_eq!(fs::read_dir(&place).unwrap().count(), 3);
        assert!(Staging::beside(&place).unwrap().path("a").is_err());
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 1, "nothing temporary is left");
        assert!(Staging::beside(&place.join("b/file")).is_err());
        drop(Staging::beside(&work.path().join("new/repo")).unwrap());
        assert!(!work.path().join("new").exists(), "folders made for nothing are gone");
    }
}
