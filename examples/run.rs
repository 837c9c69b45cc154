//! Draws an image with a pipeline, amplified: `cargo run --example run -- PIPELINE PRUNED.onnx "a cat" image.ppm`.
#![allow(clippy::print_stdout, reason = "it is a program")]

use std::{env, error::Error, fs::File, io::Write, ops::ControlFlow, path::Path};

use crdiff::{
    diffusion::pipeline::{Event, Pipeline, Request, Unets},
    engine::{EngineRequest, SessionOptions, choose},
};

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
    let output = pipeline.run(&request, &mut |event| {
        if let Event::Call { call, calls, .. } = event {
            println!("{} of {calls}", call + 1);
        }
        ControlFlow::Continue(())
    })?;
    let picture = &output.images[0];
    let mut file = File::create(image)?;
    writeln!(file, "P6 {} {} 255", picture.width, picture.height)?;
    Ok(file.write_all(&picture.pixels)?)
}
