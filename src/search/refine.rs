//! Refinement for one picture: the amplification w that the objective likes best.

use std::path::Path;

use super::{
    SearchError,
    objective::{Objective, Picture},
};
use crate::{
    diffusion::{
        Pipeline,
        pipeline::{Listener, Output, Request},
        vae::Image,
    },
    plan::Weight,
};

/// How far from the plan's w the sweep goes on both sides.
const REACH: f64 = 0.5;
/// Pixels between the pictures of a contact sheet, and of the frame around the best.
const GAP: usize = 8;
const FRAME: [u8; 3] = [220, 40, 40];

/// A picture that was tried.
#[derive(Debug)]
pub struct Tried {
    /// Its w; 0 is the dense network alone.
    pub weight: f64,
    /// The mean score of the batch.
    pub score: f64,
    /// What was drawn.
    pub output: Output,
}

/// The weights of a sweep: the dense network, then `count` evenly spaced ones around `center`, which is one of them if
/// their number is odd.
pub fn weights(center: f64, count: usize) -> Vec<f64> {
    let spaced = (0..count).map(|at| match count {
        1 => center,
        _ => center - REACH + 2.0 * REACH * at as f64 / (count - 1) as f64,
    });
    std::iter::once(0.0).chain(spaced).collect()
}

/// Draws `request` at each of `weights` and scores it. `scratch` is a file for pictures on their way to a program.
///
/// # Errors
/// [`SearchError`] if a picture cannot be drawn or scored.
pub fn sweep(
    pipeline: &mut Pipeline,
    request: &Request,
    weights: &[f64],
    objective: &mut dyn Objective,
    scratch: &Path,
    listener: Listener<'_>,
) -> Result<Vec<Tried>, SearchError> {
    let mut all = Vec::with_capacity(weights.len());
    for weight in weights {
        let mut request = request.clone();
        request.amplify.weight.value = Weight::Constant(*weight);
        let output = pipeline.run(&request, listener)?;
        let mut sum = 0.0;
        for image in &output.images {
            sum += objective.score(&Picture::new(image, &request.prompt, scratch))?.score;
        }
        all.push(Tried { weight: *weight, score: sum / output.images.len().max(1) as f64, output });
    }
    Ok(all)
}

/// Which one is the best: the first of those with the highest score.
pub fn best(tried: &[Tried]) -> Option<usize> {
    let scores = tried.iter().map(|tried| tried.score).enumerate();
    scores.reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(index, _)| index)
}

/// Pictures in rows of `columns`, with a frame around the one at `best`.
pub fn contact_sheet(images: &[&Image], columns: usize, best: Option<usize>) -> Image {
    let columns = columns.clamp(1, images.len().max(1));
    let tall = images.iter().map(|image| image.height).max().unwrap_or(0) + 2 * GAP;
    let wide = images.iter().map(|image| image.width).max().unwrap_or(0) + 2 * GAP;
    let (height, width) = (images.len().div_ceil(columns) * tall, columns * wide);
    let mut sheet = Image { height, width, pixels: vec![255; 3 * height * width] };
    for (index, image) in images.iter().enumerate() {
        let (top, left) = (index / columns * tall, index % columns * wide);
        if best == Some(index) {
            let frame = FRAME.repeat(image.width + GAP);
            for y in 0..image.height + GAP {
                paste(&mut sheet, top + GAP / 2 + y, left + GAP / 2, &frame);
            }
        }
        for (y, row) in image.pixels.chunks_exact((3 * image.width).max(1)).enumerate() {
            paste(&mut sheet, top + GAP + y, left + GAP, row);
        }
    }
    sheet
}

fn paste(sheet: &mut Image, y: usize, x: usize, row: &[u8]) {
    let start = 3 * (y * sheet.width + x);
    if let Some(to) = sheet.pixels.get_mut(start..start + row.len()) {
        to.copy_from_slice(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sweep_is_around_the_plan_s_weight() {
        assert_eq!(weights(1.5, 5), [0.0, 1.0, 1.25, 1.5, 1.75, 2.0]);
        assert_eq!(weights(1.2, 1), [0.0, 1.2]);
    }

    #[test]
    fn the_best_picture_has_a_frame() {
        let grey = |value| Image { height: 2, width: 3, pixels: vec![value; 18] };
        let sheet = contact_sheet(&[&grey(10), &grey(20), &grey(30)], 2, Some(1));
        assert_eq!((sheet.height, sheet.width), (2 * 18, 2 * 19));
        let pixel = |y: usize, x: usize| &sheet.pixels[3 * (y * sheet.width + x)..][..3];
        assert_eq!(pixel(8, 8), [10; 3]);
        assert_eq!(pixel(8, 19 + 8), [20; 3]);
        assert_eq!(pixel(8, 19 + 7), FRAME);
        assert_eq!(pixel(18 + 9, 8 + 2), [30; 3]);
        assert_eq!(pixel(7, 8), [255; 3], "the others have none");
    }
}
