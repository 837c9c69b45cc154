//! Output files: written under a temporary name beside their place, put there only when all of them are complete.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tempfile::TempPath;

use super::temporary;
use crate::onnx::OnnxError;

/// Why a pipe or a device is refused.
const NO_FILE: &str = "it is a pipe or a device; name a file";

/// Where the output goes.
#[derive(Debug)]
pub struct Target {
    /// The output as the user named it.
    pub path: PathBuf,
    /// Its folder, canonical.
    pub folder: PathBuf,
    /// Its file name.
    pub name: String,
}

impl Target {
    /// Looks at the place without touching it.
    ///
    /// # Errors
    /// [`OnnxError::Output`] if it is no file, has no name, or its folder does not exist.
    pub fn new(path: &Path) -> Result<Self, OnnxError> {
        let fail = |what: String| OnnxError::output(path, what);
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(|| fail("it must end in a file name that is valid UTF-8".into()))?
            .to_string();
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => return Err(fail("it is a folder; name a file in it".into())),
            Ok(there) if !there.is_file() => return Err(fail(NO_FILE.into())),
            _ => {}
        }
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = parent.canonicalize().map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                fail(format!("the folder {} does not exist; make it first", parent.display()))
            }
            _ => fail(format!("the folder {} cannot be used: {e}", parent.display())),
        })?;
        if !folder.is_dir() {
            return Err(fail(format!("{} is not a folder", parent.display())));
        }
        Ok(Self { path: path.to_path_buf(), folder, name })
    }

    /// Returns the path of a file beside the output, as the user would name it.
    pub fn beside(&self, location: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(location)
    }

    /// Returns the name of the output's own external data file with this index.
    pub fn data_name(&self, index: usize) -> String {
        match index {
            0 => format!("{}_data", self.name),
            _ => format!("{}_data_{index}", self.name),
        }
    }
}

/// Files that must not be written over: what the output is made from, and outputs that were begun.
#[derive(Debug, Default)]
pub struct Taken(Vec<TakenFile>);

#[derive(Debug)]
struct TakenFile {
    path: PathBuf,
    id: Option<FileId>,
    what: &'static str,
}

/// Device and inode: the same for all names of a file.
pub type FileId = (u64, u64);

impl Taken {
    /// Protects `path`, which is `what`.
    pub fn add(&mut self, path: &Path, what: &'static str) {
        self.0.push(TakenFile { path: resolved(path), id: file_id(path), what });
    }

    /// Checks that `path` may be written: it is none of these files, by name, by link or by hard link.
    ///
    /// # Errors
    /// [`OnnxError::Output`] saying which it is.
    pub fn check(&self, path: &Path) -> Result<(), OnnxError> {
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => return Err(OnnxError::output(path, "it is a folder")),
            Ok(there) if !there.is_file() => return Err(OnnxError::output(path, NO_FILE)),
            _ => {}
        }
        let (name, id) = (resolved(path), file_id(path));
        match self.0.iter().find(|taken| taken.path == name || (id.is_some() && taken.id == id)) {
            Some(TakenFile { what, .. }) => {
                Err(OnnxError::output(path, format!("it is {what}; choose another output name")))
            }
            None => Ok(()),
        }
    }
}

/// Returns which file this is, if it exists.
pub fn file_id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Returns the canonical path of a file that need not exist.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(found) = path.canonicalize() {
        return found;
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (parent.canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.to_path_buf(),
    }
}

/// A file under its temporary name. Dropped without [`place`], it vanishes, with the folders made for it.
#[derive(Debug)]
pub struct Pending {
    /// The name that it will have.
    pub path: PathBuf,
    /// The file, open for writing.
    pub file: File,
    temporary: TempPath,
    _folders: MadeFolders,
}

impl Pending {
    /// Begins the file that will be `path`, and adds it to `taken`.
    ///
    /// # Errors
    /// [`OnnxError::Output`] if `path` is taken; [`OnnxError::Io`] if the folder cannot be written to.
    pub fn create(path: &Path, taken: &mut Taken) -> Result<Self, OnnxError> {
        taken.check(path)?;
        let folders = MadeFolders::for_file(path)?;
        // The error itself names a temporary file that nobody has heard of; its kind says what is wrong.
        let temporary = temporary::create(path)
            .map_err(|e| OnnxError::io("create a file in this folder", folder_of(path), e.kind().into()))?;
        let (file, temporary) = temporary.into_parts();
        taken.add(path, "another file of the same output");
        Ok(Self { path: path.to_path_buf(), file, temporary, _folders: folders })
    }

    /// Waits until the contents are on the disk.
    ///
    /// # Errors
    /// [`OnnxError::Io`] if the disk is full or broken.
    pub fn flush(&self) -> Result<(), OnnxError> {
        self.file.sync_data().map_err(|e| OnnxError::io("flush to the disk", &self.path, e))
    }

    /// Returns the length so far.
    ///
    /// # Errors
    /// [`OnnxError::Io`] if the system refuses.
    pub fn len(&self) -> Result<u64, OnnxError> {
        Ok(self.file.metadata().map_err(|e| OnnxError::io("read the size", &self.path, e))?.len())
    }
}

/// Returns the folder that the file `path` is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Folders that were made for an output; those that stay empty are removed again.
#[derive(Debug, Default)]
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn for_file(path: &Path) -> Result<Self, OnnxError> {
        let mut missing: Vec<PathBuf> = Vec::new();
        let mut folder = folder_of(path);
        while !folder.exists() && folder != Path::new(".") {
            missing.push(folder.to_path_buf());
            folder = folder_of(folder);
        }
        let mut made = Self::default();
        for folder in missing.into_iter().rev() {
            fs::create_dir(&folder).map_err(|e| OnnxError::io("make the folder", &folder, e))?;
            made.0.push(folder);
        }
        Ok(made)
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // Fails, as it should, for a folder that has got its file.
            fs::remove_dir(folder).ok();
        }
    }
}

/// Gives complete files their names: of each output data files first, the model last.
///
/// A model alone replaces an older one in one step. With data files, an older model must never meet newer data:
/// the older files are first moved aside, the model before its data, so that whoever looks in between, even after
/// a crash, finds either no model or one that fits its data. The same holds for several outputs. On an error older
/// files are moved back.
///
/// # Errors
/// [`OnnxError::Io`] if a file cannot be renamed; then everything is as it was.
pub fn place(outputs: Vec<(Vec<Pending>, Pending)>) -> Result<(), OnnxError> {
    let mut swap = Swap::default();
    let is_one_file = outputs.len() == 1 && outputs.iter().all(|(data, _)| data.is_empty());
    if !is_one_file {
        for (data, model) in &outputs {
            swap.move_aside(&model.path)?;
            for file in data {
                swap.move_aside(&file.path)?;
            }
        }
    }
    for (data, model) in outputs {
        for file in data {
            swap.persist(file)?;
        }
        swap.persist(model)?;
    }
    swap.placed.clear();
    // Removes the older files.
    swap.moved.clear();
    Ok(())
}

/// The files renamed so far. Dropped before it is emptied, it takes everything back.
#[derive(Default)]
struct Swap {
    /// The older files under their temporary names, with their names and, where they can be opened, their locks.
    moved: Vec<(TempPath, PathBuf, Option<File>)>,
    placed: Vec<PathBuf>,
}

impl Swap {
    fn move_aside(&mut self, path: &Path) -> Result<(), OnnxError> {
        if fs::symlink_metadata(path).is_err() {
            return Ok(());
        }
        let fail = |e| OnnxError::io("replace", path, e);
        let locked = File::open(path).ok().filter(temporary::lock);
        let aside = temporary::create(path).map_err(fail)?.into_temp_path();
        fs::rename(path, &aside).map_err(fail)?;
        self.moved.push((aside, path.to_path_buf(), locked));
        Ok(())
    }

    fn persist(&mut self, file: Pending) -> Result<(), OnnxError> {
        let Pending { path, temporary, .. } = file;
        temporary
            .persist(&path)
            .map_err(|e| OnnxError::io("put the finished file in place", &path, e.error))?;
        self.placed.push(path);
        Ok(())
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        for path in self.placed.drain(..).rev() {
            fs::remove_file(path).ok();
        }
        for (old, path, _) in self.moved.drain(..).rev() {
            old.persist(path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_replacement_is_taken_back() {
        let work = tempfile::tempdir().unwrap();
        let names = ["m.onnx", "m.onnx_data"].map(|name| work.path().join(name));
        for with_older in [false, true] {
            if with_older {
                names.iter().for_each(|name| fs::write(name, "older").unwrap());
            }
            let mut taken = Taken::default();
            let [model, data] = names.each_ref().map(|name| Pending::create(name, &mut taken).unwrap());
            // The data file gets its name, the model cannot.
            fs::remove_file(&model.temporary).unwrap();
            assert!(place(vec![(vec![data], model)]).is_err());
            let left: Vec<_> = names.iter().filter_map(|name| fs::read_to_string(name).ok()).collect();
            assert_eq!(left, vec!["older"; if with_older { 2 } else { 0 }]);
            assert_eq!(fs::read_dir(work.path()).unwrap().count(), left.len());
        }
    }
}
