//! External data: finding the files that hold a model's weights and reading ranges of them.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex},
};

use super::{ExternalRange, OnnxError, foreign};
use crate::lock::lock;

/// The data files of one model, opened when first needed.
#[derive(Debug)]
pub struct DataFiles {
    folder: PathBuf,
    open: Mutex<BTreeMap<String, Arc<DataFile>>>,
}

/// An open file and its length when it was opened.
#[derive(Debug)]
pub struct DataFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    file: File,
}

impl DataFile {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// [`OnnxError::Io`] if the system refuses.
    pub fn open(path: &Path) -> Result<Self, OnnxError> {
        let file = open_file(path)?;
        let len = file.metadata().map_err(|e| OnnxError::io("read the size", path, e))?.len();
        Ok(Self { path: path.to_path_buf(), len, file })
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`OnnxError::Io`] if the system refuses or the file has become shorter.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), OnnxError> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|e| OnnxError::io(format!("read {} bytes at {offset}", buffer.len()), &self.path, e))
    }

    /// Returns whether it is a Git LFS pointer, which stands for the file.
    fn is_pointer(&self) -> bool {
        let mut bytes = vec![0; self.len.min(64) as usize];
        self.read_at(0, &mut bytes).is_ok() && foreign::is_pointer(&bytes)
    }

    /// Returns the open file, for system calls that copy from it.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl DataFiles {
    /// Returns the data files of a model that lies in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), open: Mutex::default() }
    }

    /// Returns the file that holds `range` of `tensor`, which is `len` bytes long, after checking that it is all there.
    ///
    /// # Errors
    /// [`OnnxError::ExternalData`] if the location leaves the model's folder, the file is missing or too short, or
    /// the range's length is not `len`.
    pub fn locate(&self, tensor: &str, range: &ExternalRange, len: u64) -> Result<Arc<DataFile>, OnnxError> {
        let fail = |what: String| OnnxError::ExternalData { tensor: tensor.to_string(), what };
        let file = self.file(&range.location).map_err(|e| match e {
            OnnxError::Io { action, path, source } => {
                fail(format!("cannot {action} its external data {}: {source}", path.display()))
            }
            other => fail(other.to_string()),
        })?;
        if let Some(stated) = range.length.filter(|stated| *stated != len) {
            return Err(fail(format!("its shape takes {len} bytes, but external_data says {stated}")));
        }
        match range.offset.checked_add(len) {
            Some(end) if end <= file.len => Ok(file),
            _ if file.is_pointer() => Err(fail(format!(
                "its data file {} is a Git LFS pointer: `git lfs pull` fetches the file itself",
                file.path.display()
            ))),
            _ => Err(fail(format!(
                "its data would be bytes {}..{} of {}, which has only {}",
                range.offset,
                range.offset.saturating_add(len),
                file.path.display(),
                file.len
            ))),
        }
    }

    /// Returns where the data file with this `location` lies.
    ///
    /// # Errors
    /// [`OnnxError::Invalid`] if the location is absolute or leaves the model's folder: ONNX Runtime refuses those.
    pub fn path(&self, location: &str) -> Result<PathBuf, OnnxError> {
        check_location(location)?;
        Ok(self.folder.join(location))
    }

    fn file(&self, location: &str) -> Result<Arc<DataFile>, OnnxError> {
        let mut open = lock(&self.open);
        if let Some(file) = open.get(location) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(DataFile::open(&self.path(location)?)?);
        open.insert(location.to_string(), Arc::clone(&file));
        Ok(file)
    }
}

/// Checks that `location` names a file in the model's folder or below it.
///
/// # Errors
/// [`OnnxError::Invalid`] if it doesn't.
pub(super) fn check_location(location: &str) -> Result<(), OnnxError> {
    let mut components = Path::new(location).components();
    let inside = components.all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if inside && Path::new(location).file_name().is_some() {
        return Ok(());
    }
    Err(OnnxError::invalid(
        format!("external data location `{location}`"),
        "it must be the path of a file inside the model's folder, without `..`",
    ))
}

/// Opens a file for reading. Opening a pipe that nobody writes to would never end.
pub(super) fn open_file(path: &Path) -> Result<File, OnnxError> {
    let meta = std::fs::metadata(path).map_err(|e| OnnxError::io("open", path, e))?;
    if !meta.is_file() {
        let what = match meta.is_dir() {
            true => format!("it is a folder, not a file{}", foreign::meant(path)),
            false => "it is a pipe or a device, not a file".to_string(),
        };
        return Err(OnnxError::invalid(path.display().to_string(), what));
    }
    File::open(path).map_err(|e| OnnxError::io("open", path, e))
}
