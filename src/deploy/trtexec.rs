//! The `trtexec` command that builds a TensorRT engine from a graph.

use std::path::{Path, PathBuf};

use super::{DeployError, Sizes, profile};
use crate::{
    ir::Graph,
    onnx::{self, DataType},
};

/// An engine to build.
#[derive(Clone, Debug)]
pub struct TrtexecJob<'a> {
    /// The model.
    pub model: &'a Path,
    /// The sizes of the engine's inputs.
    pub sizes: &'a Sizes,
    /// Where trtexec is to put the engine; beside the model, as `unet.plan`, unless said.
    pub engine: Option<&'a Path>,
}

/// Returns the arguments of `trtexec`, itself first.
///
/// A graph in half precision gets `--fp16` (or `--bf16`), which TensorRT up to 10 needs to compute in it; TensorRT 11
/// takes precisions from the graph alone and has no such option.
///
/// # Errors
/// As [`profile()`], and if the model cannot be read.
pub fn command(job: &TrtexecJob<'_>) -> Result<Vec<String>, DeployError> {
    let mut graph = Graph::load(onnx::open_with_weights(job.model)?)?;
    let precision = precision(&graph)?;
    let profile = profile(&mut graph, job.model, job.sizes)?;
    let beside = |ending: &str| job.model.with_extension(ending);
    let engine = job.engine.map_or_else(|| beside("plan"), Path::to_path_buf);
    let text = |path: &PathBuf| path.display().to_string();
    let mut arguments = vec!["trtexec".to_string(), format!("--onnx={}", job.model.display())];
    let shapes = [("min", profile.min), ("opt", profile.opt), ("max", profile.max)];
    let dynamic = shapes.into_iter().filter(|(_, shapes)| !shapes.is_empty());
    arguments.extend(dynamic.map(|(which, shapes)| format!("--{which}Shapes={shapes}")));
    arguments.extend(precision.map(str::to_string));
    arguments.push(format!("--saveEngine={}", text(&engine)));
    arguments.push(format!("--timingCacheFile={}", text(&engine.with_extension("timing.cache"))));
    Ok(arguments)
}

/// Returns the option for the type that most of the weights have.
fn precision(graph: &Graph) -> Result<Option<&'static str>, DeployError> {
    let option = |data_type: DataType| match data_type {
        DataType::FLOAT16 => Some("--fp16"),
        DataType::BFLOAT16 => Some("--bf16"),
        _ => None,
    };
    let mut elements = std::collections::BTreeMap::<DataType, u64>::new();
    for (_, initializer) in graph.initializers() {
        let header = &initializer.header;
        if header.data_type.is_weight_float() {
            let count = elements.entry(header.data_type).or_default();
            *count = count.saturating_add(header.elements());
        }
    }
    let most = elements.into_iter().max_by_key(|(_, count)| *count).map(|(data_type, _)| data_type);
    // A graph without weights has the types of its inputs.
    let of_inputs = || -> Result<Option<DataType>, DeployError> {
        let inputs = super::signature(graph)?.inputs;
        Ok(inputs.iter().map(|input| input.data_type).find(|data_type| data_type.is_weight_float()))
    };
    Ok(match most {
        Some(data_type) => option(data_type),
        None => of_inputs()?.and_then(option),
    })
}

/// Returns the command as a shell takes it, an argument a line.
pub fn shell(arguments: &[String]) -> String {
    let quoted: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
    quoted.join(" \\\n  ") + "\n"
}

fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@%".contains(c);
    match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.to_string(),
        false => format!("'{}'", argument.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_see_one_argument_each() {
        let arguments = ["trtexec", "--onnx=my model's.onnx", "--minShapes=sample:1x4x64x64,t:1"];
        let arguments = arguments.map(str::to_string);
        let text = shell(&arguments);
        assert!(text.ends_with("--minShapes=sample:1x4x64x64,t:1\n"), "{text}");
        let script = text.replacen("trtexec", "printf '%s\\n'", 1);
        let ran = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), arguments[1..].join("\n") + "\n");
    }
}
