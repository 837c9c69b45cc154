//! PNG files that carry how they were made.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write},
    path::Path,
};

use super::Failure;
use crate::diffusion::vae::Image;

/// The text chunk that holds everything needed to repeat a run, as JSON.
const SETTINGS: &str = "crdiff";

/// Columns of white between pictures that stand side by side.
const GAP: usize = 8;

/// Pictures of one height side by side.
pub fn side_by_side(images: &[&Image]) -> Image {
    let height = images.iter().map(|image| image.height).max().unwrap_or(0);
    let width = images.iter().map(|image| image.width + GAP).sum::<usize>().saturating_sub(GAP);
    let mut pixels = Vec::with_capacity(3 * height * width);
    for y in 0..height {
        for (i, image) in images.iter().enumerate() {
            if i > 0 {
                pixels.extend([255; 3 * GAP]);
            }
            match image.pixels.chunks_exact((3 * image.width).max(1)).nth(y) {
                Some(line) => pixels.extend_from_slice(line),
                None => pixels.extend(std::iter::repeat_n(255, 3 * image.width)),
            }
        }
    }
    Image { height, width, pixels }
}

/// Writes a picture with its settings (JSON) and further texts by keyword. The file appears whole or not at all.
pub fn write(path: &Path, image: &Image, settings: &str, texts: &[(&str, String)]) -> Result<(), Failure> {
    let failed =
        |what: String| Failure::Message(format!("{}: cannot write the picture: {what}", path.display()));
    let size = |n: usize| u32::try_from(n).map_err(|_| failed(format!("{n} pixels are too many for a PNG")));
    let (width, height) = (size(image.width)?, size(image.height)?);
    replace(path, |file| {
        let mut encoder = png::Encoder::new(BufWriter::new(file), width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let texts = texts.iter().map(|(key, text)| (*key, text.as_str()));
        for (keyword, text) in texts.chain([(SETTINGS, settings)]) {
            encoder.add_itxt_chunk(keyword.to_string(), text.to_string())?;
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&image.pixels)?;
        writer.finish()
    })
    .map_err(failed)
}

/// Writes a file beside its place, and moves it there when it is whole.
pub fn replace<E: std::fmt::Display>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), String> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".crdiff-")
        .permissions(permissions())
        .tempfile_in(folder)
        .map_err(|e| e.to_string())?;
    write(file.as_file_mut()).map_err(|e| e.to_string())?;
    file.as_file_mut().flush().map_err(|e| e.to_string())?;
    file.persist(path).map_err(|e| e.to_string())?;
    Ok(())
}

/// What the user's mask leaves of read and write, as other files get it.
#[cfg(unix)]
fn permissions() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o666)
}

/// The settings that a picture was made with.
pub fn read_settings(path: &Path) -> Result<String, Failure> {
    let failed = |what: String| Failure::Message(format!("{}: {what}", path.display()));
    let file = File::open(path).map_err(|e| failed(format!("cannot open: {e}")))?;
    let mut reader =
        png::Decoder::new(BufReader::new(file)).read_info().map_err(|e| failed(e.to_string()))?;
    // Texts may stand behind the picture.
    reader.finish().map_err(|e| failed(e.to_string()))?;
    let texts = &reader.info().utf8_text;
    let text = texts.iter().find(|text| text.keyword == SETTINGS).map(|text| text.get_text());
    let text =
        text.ok_or_else(|| failed("it doesn't say how it was made: no text `crdiff` in it".to_string()))?;
    text.map_err(|e| failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(height: usize, width: usize, value: u8) -> Image {
        Image { height, width, pixels: vec![value; 3 * height * width] }
    }

    #[test]
    fn pictures_stand_side_by_side() {
        let joined = side_by_side(&[&grey(2, 1, 10), &grey(2, 2, 20)]);
        assert_eq!((joined.height, joined.width, joined.pixels.len()), (2, 1 + GAP + 2, 2 * 3 * (3 + GAP)));
        assert_eq!(&joined.pixels[..4], [10, 10, 10, 255]);
        assert_eq!(joined.pixels.last(), Some(&20));
    }

    #[test]
    fn settings_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        write(&path, &grey(3, 2, 7), r#"{"prompt": "猫 — é"}"#, &[("prompt", "猫".to_string())])
            .ok()
            .unwrap();
        assert_eq!(read_settings(&path).ok().unwrap(), r#"{"prompt": "猫 — é"}"#);
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "no other file is left");
        std::fs::write(&path, "no picture").unwrap();
        assert!(read_settings(&path).is_err());
    }
}
