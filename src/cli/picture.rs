//! PNG files that carry how they were made.

use std::{
    fs::File,
    io::{BufReader, BufWriter},
    path::Path,
};

use super::{Failure, files::replace};
use crate::diffusion::vae::Image;

/// The text chunk that holds everything needed to repeat a run, as JSON.
const SETTINGS: &str = "crdiff";

/// Columns of white between pictures that stand side by side.
const GAP: usize = 8;

/// Pictures side by side, each below its name. A name that is wider than its picture is cut off.
pub fn side_by_side(pictures: &[(&str, &Image)]) -> Image {
    let height = pictures.iter().map(|(_, image)| image.height).max().unwrap_or(0);
    let width = pictures.iter().map(|(_, image)| image.width + GAP).sum::<usize>().saturating_sub(GAP);
    // Letters of 8 pixels on small pictures, of 16 from 256 pixels on, and so on.
    let widest = pictures.iter().map(|(_, image)| image.width).max().unwrap_or(0);
    let scale = (widest / 128).max(1);
    let strip = 2 * GAP + 8 * scale;
    let (height, line) = (height + strip, 3 * width);
    let mut pixels = vec![255; line * height];
    let mut left = 0;
    for (name, image) in pictures {
        let rows = pixels.chunks_exact_mut(line.max(1)).skip(strip);
        for (row, source) in rows.zip(image.pixels.chunks_exact((3 * image.width).max(1))) {
            if let Some(row) = row.get_mut(3 * left..3 * (left + image.width)) {
                row.copy_from_slice(source);
            }
        }
        for (i, letter) in name.chars().take(image.width / (8 * scale)).enumerate() {
            let bits = font8x8::UnicodeFonts::get(&font8x8::BASIC_FONTS, letter).unwrap_or_default();
            for (y, x) in (0..8 * scale).flat_map(|y| (0..8 * scale).map(move |x| (y, x))) {
                let is_ink = bits.get(y / scale).is_some_and(|row| row >> (x / scale) & 1 == 1);
                let at = line * (GAP + y) + 3 * (left + 8 * scale * i + x);
                if let (true, Some(pixel)) = (is_ink, pixels.get_mut(at..at + 3)) {
                    pixel.fill(0);
                }
            }
        }
        left += image.width + GAP;
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
    fn pictures_stand_side_by_side_below_their_names() {
        let joined = side_by_side(&[("l", &grey(2, 9, 10)), ("ll", &grey(2, 12, 20))]);
        let (strip, width) = (2 * GAP + 8, 9 + GAP + 12);
        assert_eq!((joined.height, joined.width), (strip + 2, width));
        let line = |y: usize| &joined.pixels[3 * width * y..3 * width * (y + 1)];
        assert_eq!(line(strip)[..3 * 9], [10; 27]);
        assert_eq!(line(strip)[3 * 9..3 * (9 + GAP)], [255; 3 * GAP]);
        assert_eq!(line(strip + 1)[3 * (9 + GAP)..], [20; 36]);
        // Both are named; of the second name there is room for one letter.
        let ink = |from: usize, to: usize| {
            (0..strip).flat_map(|y| &line(y)[3 * from..3 * to]).filter(|value| **value == 0).count()
        };
        assert!(ink(0, 8) > 0);
        assert_eq!(ink(9 + GAP, 9 + GAP + 8), ink(0, 8));
        assert_eq!(ink(9 + GAP + 8, width), 0);
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
