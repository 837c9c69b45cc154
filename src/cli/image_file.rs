//! Image files that carry how they were made.

mod exif;
mod sheet;

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Seek},
    path::Path,
};

pub use sheet::{Tile, sheet};

use super::{Failure, files::replace};
use crate::diffusion::vae::Image;

/// The text of a PNG that holds everything needed to repeat a run, as JSON.
const SETTINGS: &str = "crdiff";
/// The text that web interfaces read.
const PARAMETERS: &str = "parameters";
/// The quality of JPEG files.
const QUALITY: u8 = 95;
/// The most that a JPEG's segment of metadata can hold.
const MOST_EXIF: usize = 65_000;

/// How an image file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lossless, with all texts.
    Png,
    /// Quality 95.
    Jpeg,
    /// Lossless.
    WebP,
}

impl Format {
    /// Returns the format that the ending of a file's name says.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "png" => Self::Png,
            "jpg" | "jpeg" => Self::Jpeg,
            "webp" => Self::WebP,
            _ => return None,
        })
    }
}

/// The texts in an image.
#[derive(Clone, Debug)]
pub struct Texts {
    /// All that is needed to make it again, as JSON.
    pub settings: String,
    /// The prompt and the settings in the form that web interfaces and their viewers read.
    pub parameters: String,
    /// Others by keyword; only a PNG has room for them.
    pub others: Vec<(&'static str, String)>,
}

/// Writes an image in the format that its name says. The file appears whole or not at all.
///
/// # Errors
/// [`Failure::Message`] if the format is not known, or the file cannot be written.
pub fn write(path: &Path, image: &Image, texts: &Texts) -> Result<(), Failure> {
    let failed =
        |what: String| Failure::Message(format!("{}: cannot write the image: {what}", path.display()));
    let size =
        |n: usize| u32::try_from(n).map_err(|_| failed(format!("{n} pixels are too many for an image")));
    let (width, height) = (size(image.width)?, size(image.height)?);
    let format =
        Format::of(path).ok_or_else(|| failed("its name does not end in .png, .jpg or .webp".to_string()))?;
    let (pixels, exif) = (&image.pixels, || exif::block(&ascii(&texts.settings), &texts.parameters));
    match format {
        Format::Png => replace(path, |file| png_file(file, (width, height), pixels, texts)),
        Format::Jpeg => {
            let side =
                |n: u32| u16::try_from(n).map_err(|_| failed(format!("{n} pixels are too many for a JPEG")));
            let (width, height) = (side(width)?, side(height)?);
            replace(path, |file| {
                let mut encoder = jpeg_encoder::Encoder::new(BufWriter::new(file), QUALITY);
                let exif = exif();
                if exif.len() < MOST_EXIF {
                    encoder.add_exif_metadata(&exif)?;
                }
                encoder.encode(pixels, width, height, jpeg_encoder::ColorType::Rgb)
            })
        }
        Format::WebP => replace(path, |file| {
            let mut encoder = image_webp::WebPEncoder::new(BufWriter::new(file));
            encoder.set_exif_metadata(exif());
            encoder.encode(pixels, width, height, image_webp::ColorType::Rgb8)
        }),
    }
    .map_err(failed)
}

fn png_file(
    file: &mut File,
    (width, height): (u32, u32),
    pixels: &[u8],
    texts: &Texts,
) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(BufWriter::new(file), width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let ours = [(PARAMETERS, &texts.parameters), (SETTINGS, &texts.settings)];
    let others = texts.others.iter().map(|(keyword, text)| (*keyword, text));
    for (keyword, text) in others.chain(ours) {
        encoder.add_itxt_chunk(keyword.to_string(), text.clone())?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()
}

/// Returns JSON with all that is not ASCII escaped.
fn ascii(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter.is_ascii() {
            true => escaped.push(letter),
            false => {
                let mut units = [0; 2];
                for unit in letter.encode_utf16(&mut units) {
                    escaped.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    escaped
}

/// Returns the settings that an image was made with.
///
/// # Errors
/// [`Failure::Message`] if it cannot be read, or carries none.
pub fn read_settings(path: &Path) -> Result<String, Failure> {
    let failed = |what: String| Failure::Message(format!("{}: {what}", path.display()));
    let file = File::open(path).map_err(|e| failed(format!("cannot open: {e}")))?;
    let file = BufReader::new(file);
    let text = match Format::of(path) {
        Some(Format::Jpeg) => {
            let block = exif::of_jpeg(file).map_err(|e| failed(e.to_string()))?;
            block.and_then(|block| exif::description(&block))
        }
        Some(Format::WebP) => {
            let block = image_webp::WebPDecoder::new(file).and_then(|mut decoder| decoder.exif_metadata());
            block.map_err(|e| failed(e.to_string()))?.and_then(|block| exif::description(&block))
        }
        Some(Format::Png) | None => png_text(file).map_err(|e| failed(e.to_string()))?,
    };
    text.ok_or_else(|| failed("it doesn't say how it was made: no text `crdiff` in it".to_string()))
}

fn png_text(file: impl BufRead + Seek) -> Result<Option<String>, png::DecodingError> {
    let mut reader = png::Decoder::new(file).read_info()?;
    // Texts may stand behind the image.
    reader.finish()?;
    let texts = &reader.info().utf8_text;
    texts.iter().find(|text| text.keyword == SETTINGS).map(|text| text.get_text()).transpose()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn every_format_is_what_it_says_and_carries_its_settings() {
        let folder = tempfile::tempdir().unwrap();
        let pixels = (0..3 * 16 * 24).map(|i| (i / 4) as u8).collect();
        let image = Image { height: 16, width: 24, pixels };
        let settings = r#"{"prompt": "猫 — é 🐈"}"#;
        let texts = Texts {
            settings: settings.to_string(),
            parameters: "猫\nSteps: 3".to_string(),
            others: vec![("prompt", "猫".to_string())],
        };
        for name in ["a.png", "a.jpg", "a.JPEG", "a.webp"] {
            let path = folder.path().join(name);
            write(&path, &image, &texts).ok().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let (starts, decoded, allowed) = match Format::of(&path).unwrap() {
                Format::Png => (&b"\x89PNG"[..], None, 0),
                Format::Jpeg => {
                    (&b"\xff\xd8\xff"[..], zune_jpeg::JpegDecoder::new(Cursor::new(&bytes)).decode().ok(), 24)
                }
                Format::WebP => {
                    let mut pixels = vec![0; image.pixels.len()];
                    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(&bytes)).unwrap();
                    decoder.read_image(&mut pixels).unwrap();
                    (&b"RIFF"[..], Some(pixels), 0)
                }
            };
            assert!(bytes.starts_with(starts), "{name}");
            if let Some(decoded) = decoded {
                assert_eq!(decoded.len(), image.pixels.len(), "{name}");
                let most = decoded.iter().zip(&image.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!(most <= allowed, "{name}: {most}");
            }
            let read: serde_json::Value = serde_json::from_str(&read_settings(&path).ok().unwrap()).unwrap();
            assert_eq!(read, serde_json::from_str::<serde_json::Value>(settings).unwrap(), "{name}");
            std::fs::write(&path, "no image").unwrap();
            assert!(read_settings(&path).is_err(), "{name}");
        }
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 4, "no other file is left");
        assert!(write(&folder.path().join("a.gif"), &image, &texts).is_err());
    }
}
