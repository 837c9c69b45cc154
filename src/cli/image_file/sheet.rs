//! Several images in one, each below its label.

use crate::diffusion::vae::Image;

/// Columns and rows of white around labels and between images.
const GAP: usize = 8;
/// The frame of the best image, in pixels and in red, green, blue.
const LINE: usize = 3;
const FRAME: [u8; 3] = [220, 60, 0];
/// Pixels of a letter at scale 1.
const LETTER: usize = 8;

/// An image of a sheet.
#[derive(Clone, Debug)]
pub struct Tile<'a> {
    /// Its label, a line each.
    pub label: Vec<String>,
    /// The image.
    pub image: &'a Image,
    /// Whether it has a frame around it.
    pub is_best: bool,
}

impl<'a> Tile<'a> {
    /// Returns a tile without a frame, with a label that is broken at commas.
    pub fn new(label: &str, image: &'a Image) -> Self {
        Self { label: label.split(", ").map(str::to_string).collect(), image, is_best: false }
    }
}

/// Draws tiles in rows of `columns`. Letters grow with the images; images that are narrower than their labels in the
/// smallest ones are drawn several times as large, each pixel as a square.
pub fn sheet(tiles: &[Tile<'_>], columns: usize) -> Image {
    let columns = columns.clamp(1, tiles.len().max(1));
    let most = |of: &dyn Fn(&Tile<'_>) -> usize| tiles.iter().map(of).max().unwrap_or(0);
    let letters = most(&|tile| tile.label.iter().map(|line| line.chars().count()).max().unwrap_or(0));
    let zoom = (LETTER * letters).div_ceil(most(&|tile| tile.image.width).max(1)).max(1);
    let (height, width) = (zoom * most(&|tile| tile.image.height), zoom * most(&|tile| tile.image.width));
    let scale = (width / 128).min(width / (LETTER * letters.max(1))).max(1);
    let (line, lines) = (LETTER * scale + scale * 2, most(&|tile| tile.label.len()));
    let strip = lines * line + GAP;
    let (cell_height, cell_width) = (GAP + strip + height, GAP + width);
    let mut sheet =
        Canvas::white(tiles.len().div_ceil(columns) * cell_height + GAP, columns * cell_width + GAP);
    for (i, tile) in tiles.iter().enumerate() {
        let (top, left) = (i / columns * cell_height + GAP, i % columns * cell_width + GAP);
        for (n, text) in tile.label.iter().enumerate() {
            sheet.write(text, scale, top + n * line, left);
        }
        let top = top + strip;
        if tile.is_best {
            let (height, width) = (zoom * tile.image.height + 2 * LINE, zoom * tile.image.width + 2 * LINE);
            for y in 0..height {
                sheet.paste(top - LINE + y, left - LINE, &FRAME.repeat(width));
            }
        }
        for (y, row) in tile.image.pixels.chunks_exact((3 * tile.image.width).max(1)).enumerate() {
            let row: Vec<u8> = row.chunks_exact(3).flat_map(|pixel| pixel.repeat(zoom)).collect();
            (0..zoom).for_each(|line| sheet.paste(top + y * zoom + line, left, &row));
        }
    }
    sheet.0
}

struct Canvas(Image);

impl Canvas {
    fn white(height: usize, width: usize) -> Self {
        Self(Image { height, width, pixels: vec![255; 3 * height * width] })
    }

    fn paste(&mut self, y: usize, x: usize, row: &[u8]) {
        let start = 3 * (y * self.0.width + x);
        if let Some(to) = self.0.pixels.get_mut(start..start + row.len()) {
            to.copy_from_slice(row);
        }
    }

    /// Writes a line of text, each pixel of a letter `scale` pixels wide.
    fn write(&mut self, text: &str, scale: usize, top: usize, left: usize) {
        for (i, letter) in text.chars().enumerate() {
            let bits = font8x8::UnicodeFonts::get(&font8x8::BASIC_FONTS, letter).unwrap_or_default();
            for (y, row) in bits.iter().enumerate() {
                for x in (0..LETTER).filter(|x| row >> x & 1 == 1) {
                    for line in 0..scale {
                        let (y, x) = (top + y * scale + line, left + (i * LETTER + x) * scale);
                        self.paste(y, x, &[0; 3].repeat(scale));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grey(height: usize, width: usize, value: u8) -> Image {
        Image { height, width, pixels: vec![value; 3 * height * width] }
    }

    fn pixel(image: &Image, y: usize, x: usize) -> &[u8] {
        &image.pixels[3 * (y * image.width + x)..][..3]
    }

    /// Rows and columns that are neither white nor of an image.
    fn ink(image: &Image, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) -> usize {
        rows.flat_map(|y| columns.clone().map(move |x| (y, x)))
            .filter(|(y, x)| pixel(image, *y, *x) == [0; 3])
            .count()
    }

    #[test]
    fn images_stand_side_by_side_below_their_labels() {
        let (first, second) = (grey(2, 9, 10), grey(2, 16, 20));
        let joined = sheet(&[Tile::new("l", &first), Tile::new("ll", &second)], 2);
        let (strip, cell) = (GAP + 10 + GAP, 16 + GAP);
        assert_eq!((joined.height, joined.width), (strip + 2 + GAP, 2 * cell + GAP));
        assert_eq!(
            (pixel(&joined, strip, GAP), pixel(&joined, strip + 1, GAP + 8)),
            (&[10; 3][..], &[10; 3][..])
        );
        assert_eq!(pixel(&joined, strip, GAP + 9), [255; 3]);
        assert_eq!(pixel(&joined, strip, cell + GAP + 15), [20; 3]);
        let one = ink(&joined, 0..strip, GAP..GAP + 8);
        assert!(one > 0);
        assert_eq!(ink(&joined, 0..strip, cell + GAP..cell + GAP + 16), 2 * one);
    }

    #[test]
    fn labels_fit_at_any_size() {
        for width in [1, 24, 128, 512, 2048] {
            let image = grey(8, width, 99);
            let label = "w 1.25  0.9731";
            let drawn = sheet(&[Tile::new(label, &image), Tile::new(label, &image)], 2);
            let half = drawn.width / 2;
            let [left, right] =
                [0..half, half..drawn.width].map(|columns| ink(&drawn, 0..drawn.height, columns));
            assert!(left > 0 && left == right, "{width}: {left} and {right}");
        }
    }

    #[test]
    fn images_that_are_narrower_than_their_labels_are_enlarged() {
        let mut image = grey(1, 10, 7);
        image.pixels[27..].fill(9);
        // Nine letters, 72 pixels: eight pixels for one, and a second line.
        let drawn = sheet(&[Tile::new("amplified, w 1.5", &image)], 1);
        let strip = GAP + 2 * 10 + GAP;
        assert_eq!((drawn.height, drawn.width), (strip + 8 + GAP, GAP + 80 + GAP));
        assert_eq!([0, 71, 72, 79].map(|x| pixel(&drawn, strip + 7, GAP + x)[0]), [7, 7, 9, 9]);
    }

    #[test]
    fn the_best_image_has_a_frame() {
        let images = [grey(2, 3, 10), grey(2, 3, 20), grey(2, 3, 30)];
        let mut tiles: Vec<Tile<'_>> = images.iter().map(|image| Tile::new("", image)).collect();
        tiles[1].is_best = true;
        let drawn = sheet(&tiles, 2);
        let (top, cell) = (GAP + 10 + GAP, (GAP + 10 + GAP + 2, GAP + 3));
        assert_eq!((drawn.height, drawn.width), (2 * cell.0 + GAP, 2 * cell.1 + GAP));
        assert_eq!(pixel(&drawn, top, GAP), [10; 3]);
        assert_eq!(pixel(&drawn, top, cell.1 + GAP), [20; 3]);
        assert_eq!(pixel(&drawn, top, cell.1 + GAP - 1), FRAME);
        assert_eq!(pixel(&drawn, cell.0 + top + 1, GAP + 2), [30; 3]);
        assert_eq!(pixel(&drawn, top - 1, GAP), [255; 3], "the others have none");
    }
}
