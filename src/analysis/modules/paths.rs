//! Reading module paths from names and metadata.

use super::Naming;

/// Modules that stand at the top of a model: where one of them is met below something else, that is a wrapper.
const TOP: [&str; 9] = [
    "down_blocks",
    "mid_block",
    "up_blocks",
    "input_blocks",
    "middle_block",
    "output_blocks",
    "conv_norm_out",
    "time_text_embed",
    "time_embedding",
];

/// Returns the path in a TorchScript node name: `/down_blocks.0/resnets.0/conv1/Conv` is
/// `down_blocks.0.resnets.0.conv1`. `None` if the name has no scope.
pub fn from_node_name(name: &str) -> Option<String> {
    // ONNX Runtime names a fused node `<name of a node>/<fusion>/`.
    let scoped = name.strip_prefix('/')?;
    let scoped =
        scoped.strip_suffix('/').map_or(scoped, |fused| fused.rsplit_once('/').map_or("", |(n, _)| n));
    let segments = scoped.rsplit_once('/').map_or("", |(path, _)| path);
    Some(join(&segments.split('/').collect::<Vec<_>>()))
}

/// Returns the path in a node name without a slash in front: `down_blocks.0/attn1/to_q/MatMul_node_12`. `None` if the
/// name has no scope.
pub fn from_relative_name(name: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/');
    let (path, _) = name.rsplit_once('/').filter(|_| name.chars().all(plain))?;
    Some(join(&path.split('/').filter(|s| !s.is_empty()).collect::<Vec<_>>()))
}

/// Joins scopes, each relative to the one before. Children of an `nn.Sequential` carry its name once more:
/// `to_out/to_out.0`.
fn join(segments: &[&str]) -> String {
    let mut path = String::new();
    for (i, segment) in segments.iter().enumerate() {
        let repeated = |next: &&str| next.strip_prefix(segment).is_some_and(|rest| rest.starts_with('.'));
        if segments.get(i + 1).is_some_and(repeated) {
            continue;
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(segment);
    }
    through_processor(path)
}

/// Adds the processor to the path of an IP-Adapter's layer: TorchScript, which does not call the processor as a module,
/// leaves it out (`attn2/to_k_ip.0` for `attn2.processor.to_k_ip.0`).
fn through_processor(path: String) -> String {
    match [".to_k_ip", ".to_v_ip"].into_iter().find_map(|layer| path.find(layer)) {
        Some(at) if !path[..at].ends_with("processor") => {
            format!("{}.processor{}", &path[..at], &path[at..])
        }
        _ => path,
    }
}

/// Returns the path in dynamo's `pkg.torch.onnx.name_scopes`: the last but one entry of a Python list of strings.
/// `None` for a node that stands outside any module.
pub fn from_name_scopes(scopes: &str) -> Option<String> {
    let entries = python_strings(scopes);
    let path = entries.len().checked_sub(2).and_then(|i| entries.get(i))?;
    (!path.starts_with("_empty_nn_module_stack")).then(|| without_slices(path))
}

/// Returns the path in `pkg.onnxscript.name_scopes`: a Python list of module names, each relative to the one before.
pub fn from_relative_scopes(scopes: &str) -> Option<String> {
    let entries = python_strings(scopes);
    let names: Vec<&str> = entries.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    (!entries.is_empty()).then(|| join(&names))
}

/// Leaves out slices. A part of an `nn.Sequential` is a module of its own when it runs (`out_layers.slice(1, None,
/// None).3`), but its children are those of the whole.
fn without_slices(path: &str) -> String {
    let segments = path.split('.').filter(|segment| !segment.starts_with("slice("));
    segments.collect::<Vec<_>>().join(".")
}

/// Returns the module that owns a parameter: `down_blocks.0.resnets.0.conv1` for `...conv1.weight`. `None` for
/// anonymous names such as `onnx::MatMul_2378` or `val_166`.
pub fn from_parameter(name: &str) -> Option<&str> {
    let (path, leaf) = name.rsplit_once('.')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    (matches!(leaf, "weight" | "bias" | "gamma" | "beta") && path.chars().all(plain)).then_some(path)
}

/// Returns the prefix that a wrapper module puts before every path (`unet.`), if `paths` show one. Where several
/// networks stand side by side (`unet.`, `controlnet.`), it is that of the only one with a way up.
pub fn wrapper<'a>(paths: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let mut prefixes: Vec<(&str, bool)> = Vec::new();
    for path in paths.clone() {
        let mut start = 0;
        for segment in path.split('.') {
            if TOP.contains(&segment) {
                let up = matches!(segment, "up_blocks" | "output_blocks");
                match prefixes.iter_mut().find(|(known, _)| *known == &path[..start]) {
                    Some((_, known_up)) => *known_up |= up,
                    None => prefixes.push((&path[..start], up)),
                }
                break;
            }
            start += segment.len() + 1;
        }
    }
    if prefixes.iter().any(|(_, up)| *up) {
        prefixes.retain(|(_, up)| *up);
    } else {
        // A module may have a child of such a name (HunyuanImage's `context_embedder.time_text_embed`).
        prefixes.retain(|(prefix, _)| {
            let bare = prefix.strip_suffix('.').unwrap_or_default();
            paths.clone().into_iter().all(|p| p.starts_with(prefix) || p == bare || p.is_empty())
        });
    }
    match prefixes[..] {
        [(prefix, _)] => prefix.to_string(),
        _ => String::new(),
    }
}

/// Returns whose names these are.
pub fn layout<'a>(paths: impl IntoIterator<Item = &'a str>) -> Naming {
    let mut layout = Naming::Unknown;
    for path in paths {
        match path.split('.').next() {
            Some("down_blocks" | "mid_block" | "up_blocks") => return Naming::Diffusers,
            Some("input_blocks" | "middle_block" | "output_blocks") => layout = Naming::Ldm,
            _ => {}
        }
    }
    layout
}

/// Returns the longest path that both paths lie in.
pub fn common<'a>(a: &'a str, b: &str) -> &'a str {
    let mut end = 0;
    let mut matched = 0;
    let mut theirs = b.split('.');
    for segment in a.split('.') {
        if theirs.next() != Some(segment) {
            break;
        }
        matched += segment.len();
        end = matched;
        matched += 1;
    }
    &a[..end]
}

/// Returns the entries of a printed Python list of strings.
fn python_strings(list: &str) -> Vec<String> {
    let mut entries = Vec::new();
    let mut chars = list.chars();
    while let Some(quote) = chars.find(|c| matches!(c, '\'' | '"')) {
        let mut entry = String::new();
        while let Some(c) = chars.next() {
            match c {
                c if c == quote => break,
                '\\' => entry.extend(chars.next()),
                c => entry.push(c),
            }
        }
        entries.push(entry);
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torchscript_scopes() {
        let name = "/down_blocks.0/attentions.0/transformer_blocks.0/attn1/to_out.0/MatMul";
        assert_eq!(
            from_node_name(name).as_deref(),
            Some("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0")
        );
        let nested = "/input_blocks.1/input_blocks.1.1/attn1/to_out/to_out.0/MatMul";
        assert_eq!(from_node_name(nested).as_deref(), Some("input_blocks.1.1.attn1.to_out.0"));
        let adapter = "/mid_block/attn2/to_k_ip.0/MatMul";
        assert_eq!(from_node_name(adapter).as_deref(), Some("mid_block.attn2.processor.to_k_ip.0"));
        let whole = "/mid_block/attn2/processor/to_v_ip.0/MatMul";
        assert_eq!(from_node_name(whole).as_deref(), Some("mid_block.attn2.processor.to_v_ip.0"));
        assert_eq!(from_node_name("/Shape").as_deref(), Some(""));
        assert_eq!(from_node_name("Constant_634"), None);
    }

    #[test]
    fn names_of_fused_nodes() {
        let name = "/mid_block/resnets.0/nonlinearity/Mul/QuickGeluFusion/";
        assert_eq!(from_node_name(name).as_deref(), Some("mid_block.resnets.0.nonlinearity"));
    }

    #[test]
    fn relative_scopes() {
        let scopes = "['', 'down_blocks.0', 'attn1', 'to_out', 'to_out.0']";
        assert_eq!(from_relative_scopes(scopes).as_deref(), Some("down_blocks.0.attn1.to_out.0"));
        let name = "down_blocks.0/attn1/to_q/MatMul_node_12";
        assert_eq!(from_relative_name(name).as_deref(), Some("down_blocks.0.attn1.to_q"));
        assert_eq!(from_relative_name("MatMul_12"), None);
        assert_eq!(from_relative_name("onnx::MatMul/12"), None);
    }

    #[test]
    fn slices() {
        let scopes = "['', 'dec.out_layers', 'dec.out_layers.slice(1, None, None).3', 'conv2d_1']";
        assert_eq!(from_name_scopes(scopes).as_deref(), Some("dec.out_layers.3"));
    }

    #[test]
    fn dynamo_scopes() {
        assert_eq!(
            from_name_scopes("['', 'mid_block', 'mid_block.resnets.0', 'conv2d_1']").as_deref(),
            Some("mid_block.resnets.0")
        );
        assert_eq!(from_name_scopes("['', 'conv2d_1']").as_deref(), Some(""));
        assert_eq!(from_name_scopes("['_empty_nn_module_stack_from_metadata_hook', 'mul_1']"), None);
        assert_eq!(from_name_scopes("[]"), None);
    }

    #[test]
    fn parameters() {
        assert_eq!(from_parameter("mid_block.resnets.0.conv1.weight"), Some("mid_block.resnets.0.conv1"));
        assert_eq!(from_parameter("onnx::MatMul_2378"), None);
        assert_eq!(from_parameter("val_166"), None);
    }

    #[test]
    fn wrappers() {
        assert_eq!(wrapper(["unet.down_blocks.0.resnets.0", "unet.mid_block", ""]), "unet.");
        assert_eq!(wrapper(["down_blocks.0.resnets.0", "mid_block"]), "");
        let both = ["controlnet.down_blocks.0", "unet.down_blocks.0", "unet.up_blocks.0"];
        assert_eq!(wrapper(both), "unet.");
        assert_eq!(wrapper(["a.up_blocks.0", "b.up_blocks.0"]), "");
        assert_eq!(wrapper(["refiner.time_text_embed.linear", "transformer_blocks.0.attn"]), "");
        assert_eq!(wrapper(["text_encoder.layers.0", "unet.mid_block", "unet.up_blocks.0"]), "unet.");
    }

    #[test]
    fn common_paths() {
        assert_eq!(common("a.b.c", "a.b.d"), "a.b");
        assert_eq!(common("blocks.1", "blocks.10"), "blocks");
        assert_eq!(common("a.b", "a.b"), "a.b");
        assert_eq!(common("a", "b"), "");
    }
}
