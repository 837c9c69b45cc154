//! An image to be scored.

use std::{
    cell::OnceCell,
    fs::File,
    io::BufWriter,
    path::{Path, PathBuf},
};

use crate::{diffusion::vae::Image, search::SearchError};

/// An image and its prompt. As a file it exists once somebody asks for it.
#[derive(Debug)]
pub struct Drawn<'a> {
    /// The pixels.
    pub image: &'a Image,
    /// The prompt.
    pub prompt: &'a str,
    path: &'a Path,
    written: OnceCell<PathBuf>,
}

impl<'a> Drawn<'a> {
    /// Returns an image that is written to `path`, if it is.
    pub fn new(image: &'a Image, prompt: &'a str, path: &'a Path) -> Self {
        Self { image, prompt, path, written: OnceCell::new() }
    }

    /// Returns the image as a PNG file.
    ///
    /// # Errors
    /// [`SearchError::Io`] if it cannot be written.
    pub fn file(&self) -> Result<&Path, SearchError> {
        if let Some(path) = self.written.get() {
            return Ok(path);
        }
        write_png(self.path, self.image).map_err(|e| SearchError::io("write the image", self.path, e))?;
        Ok(self.written.get_or_init(|| self.path.to_path_buf()))
    }
}

fn write_png(path: &Path, image: &Image) -> Result<(), std::io::Error> {
    let side = |n: usize| u32::try_from(n).map_err(std::io::Error::other);
    let file = BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(file, side(image.width)?, side(image.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // It is read once and removed.
    encoder.set_compression(png::Compression::Fastest);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&image.pixels)?;
    writer.finish()?;
    Ok(())
}
