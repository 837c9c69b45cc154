//! Draws an image with a pipeline, amplified: `cargo run --example run -- PIPELINE PRUNED.onnx "a cat" image.ppm`.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::{env, error::Error, fs::File, io::Write, path::Path};

use crdiff::{
    diffusion::pipeline::{Pipeline, Request, Unets},
    engine::{EngineRequest, SessionOptions, choose},
    observer::{Event, Observer},
};

/// Prints how far the run is.
struct Calls;

impl Observer for Calls {
    fn hear(&self, event: Event<'_>) {
        if let Event::Call { call, calls, .. } = event {
            println!("{} of {calls}", call + 1);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [pipeline, pruned, prompt, image] = &args[..] else {
        return Err("four arguments, please: PIPELINE PRUNED PROMPT IMAGE".into());
    };
    // ONNX Runtime if it is found, else rten.
    let engine = choose(&EngineRequest::default())?.engine;
    let unets = Unets::WithPruned(pruned.into());
    let mut pipeline = Pipeline::open(Path::new(pipeline), engine, SessionOptions::default(), unets)?;
    let request = Request::new(prompt, 512, 512);
    let output = pipeline.run(&request, &Calls)?;
    let drawn = &output.images[0];
    let mut file = File::create(image)?;
    writeln!(file, "P6 {} {} 255", drawn.width, drawn.height)?;
    Ok(file.write_all(&drawn.pixels)?)
}
