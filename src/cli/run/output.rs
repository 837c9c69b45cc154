//! The places of a run's files, which are checked before anything is drawn.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use super::{Args, Failure};
use crate::{cli::image_file::Format, diffusion::pipeline::Output, engine::io::write_npy};

/// The image where nothing else is said. It alone may be written over.
const DEFAULT: &str = "out.png";

/// The files of a run.
#[derive(Debug)]
pub(super) struct Files {
    /// An image for each of the batch.
    pub(super) images: Vec<PathBuf>,
    /// The final latents.
    latents: Option<PathBuf>,
    /// The images of the default name that were there before.
    pub(super) replaced: Vec<PathBuf>,
}

impl Files {
    /// Looks at the places of `count` images, their contact sheets and previews, if there will be any, and the latents.
    ///
    /// # Errors
    /// [`Failure::Message`] if a folder isn't there or cannot be written, a name doesn't say a known format, or a file is
    /// there already.
    pub(super) fn of(args: &Args, count: usize) -> Result<Self, Failure> {
        let given = args.output.as_deref();
        let output = given.unwrap_or(Path::new(DEFAULT));
        let failed = |what: String| Err(Failure::Message(format!("{}: {what}", output.display())));
        if output.is_dir() {
            return failed("it is a folder; name a file in it".to_string());
        }
        if Format::of(output).is_none() {
            let name = output.extension().map(|end| format!(".{} is no image format here", end.display()));
            let name = name.unwrap_or_else(|| "its name says no format".to_string());
            return failed(format!("{name}; end it in .png, .jpg or .webp"));
        }
        let images = numbered(output, count);
        let mut all: Vec<PathBuf> = images.clone();
        if args.refine.is_some() {
            all.extend(images.iter().map(|image| sheet(image)));
        }
        if args.preview.is_some() {
            all.extend(images.iter().map(|image| preview(image)));
        }
        let there: Vec<PathBuf> = all.iter().filter(|path| path.exists()).cloned().collect();
        if let (Some(path), Some(_), false) = (there.first(), given, args.force) {
            return already_there(path);
        }
        can_write(output)?;
        if let Some(latents) = &args.save_latents {
            if latents.exists() && !args.force {
                return already_there(latents);
            }
            can_write(latents)?;
        }
        let replaced = if given.is_none() { there } else { Vec::new() };
        Ok(Self { images, latents: args.save_latents.clone(), replaced })
    }

    /// Writes the latents, where they were asked for.
    pub(super) fn save_latents(&self, output: &Output) -> Result<(), Failure> {
        let Some(path) = &self.latents else { return Ok(()) };
        let failed =
            |what: String| Failure::Message(format!("{}: cannot write the latents: {what}", path.display()));
        let partial = tempfile::Builder::new().prefix(".crdiff-").tempdir_in(folder(path));
        let partial = partial.map_err(|e| failed(e.to_string()))?;
        let file = partial.path().join("latents.npy");
        write_npy(&file, &output.latents)?;
        fs::rename(&file, path).map_err(|e| failed(e.to_string()))
    }
}

/// Returns where the contact sheet of an image goes.
pub(super) fn sheet(image: &Path) -> PathBuf {
    beside(image, "sheet")
}

/// Returns where the preview of an image goes.
pub(super) fn preview(image: &Path) -> PathBuf {
    beside(image, "preview")
}

fn beside(image: &Path, what: &str) -> PathBuf {
    let extension = image.extension().unwrap_or(OsStr::new("png")).to_string_lossy();
    image.with_extension(format!("{what}.{extension}"))
}

/// Returns `out.png`, or `out-1.png`, `out-2.png`.
fn numbered(output: &Path, count: usize) -> Vec<PathBuf> {
    if count == 1 {
        return vec![output.to_path_buf()];
    }
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    let extension = output.extension().unwrap_or_default().to_string_lossy();
    (1..=count).map(|i| output.with_file_name(format!("{stem}-{i}.{extension}"))).collect()
}

fn already_there(path: &Path) -> Result<Files, Failure> {
    Err(Failure::Message(format!("{} is there already; --force writes over it", path.display())))
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Tries whether a file can be made beside `path`.
fn can_write(path: &Path) -> Result<(), Failure> {
    let folder = folder(path);
    let why = match tempfile::Builder::new().prefix(".crdiff-").tempfile_in(folder) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            format!("the folder {} does not exist; make it first", folder.display())
        }
        Err(error) => format!("nothing can be written to the folder {}: {}", folder.display(), error.kind()),
    };
    Err(Failure::Message(format!("{}: {why}", path.display())))
}
