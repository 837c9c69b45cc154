//! Reading module paths from names and metadata.

use super::Layout;

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

/// The path in a TorchScript node name: `/down_blocks.0/resnets.0/conv1/Conv` is `down_blocks.0.resnets.0.conv1`.
/// `None` if the name has no scope.
pub fn from_node_name(name: &str) -> Option<String> {
    let scoped = name.strip_prefix('/')?;
    let segments: Vec<&str> = scoped.rsplit_once('/').map_or("", |(path, _)| path).split('/').collect();
    let mut path = String::new();
    for (i, segment) in segments.iter().enumerate() {
        // Children of an `nn.Sequential` carry its name once more: `to_out/to_out.0`.
        let repeated = |next: &&str| next.strip_prefix(segment).is_some_and(|rest| rest.starts_with('.'));
        if segments.get(i + 1).is_some_and(repeated) {
            continue;
        }
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(segment);
    }
    Some(path)
}

/// The path in dynamo's `pkg.torch.onnx.name_scopes`: the last but one entry of a Python list of strings. `None` for
/// a node that stands outside any module.
pub fn from_name_scopes(scopes: &str) -> Option<String> {
    let entries = python_strings(scopes);
    let path = entries.len().checked_sub(2).and_then(|i| entries.get(i))?;
    (!path.starts_with("_empty_nn_module_stack")).then(|| path.clone())
}

/// The module that owns a parameter: `down_blocks.0.resnets.0.conv1` for `...conv1.weight`. `None` for anonymous names
/// such as `onnx::MatMul_2378` or `val_166`.
pub fn from_parameter(name: &str) -> Option<&str> {
    let (path, leaf) = name.rsplit_once('.')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    (matches!(leaf, "weight" | "bias" | "gamma" | "beta") && path.chars().all(plain)).then_some(path)
}

/// The prefix that a wrapper module puts before every path (`unet.`), if `paths` show one.
pub fn wrapper<'a>(paths: impl IntoIterator<Item = &'a str>) -> String {
    let mut found: Option<String> = None;
    for path in paths {
        let mut start = 0;
        for segment in path.split('.') {
            if TOP.contains(&segment) {
                let prefix = &path[..start];
                match &found {
                    None => found = Some(prefix.to_string()),
                    Some(known) if known != prefix => return String::new(),
                    Some(_) => {}
                }
                break;
            }
            start += segment.len() + 1;
        }
    }
    found.unwrap_or_default()
}

/// Whose names these are.
pub fn layout<'a>(paths: impl IntoIterator<Item = &'a str>) -> Layout {
    let mut layout = Layout::Unknown;
    for path in paths {
        match path.split('.').next() {
            Some("down_blocks" | "mid_block" | "up_blocks") => return Layout::Diffusers,
            Some("input_blocks" | "middle_block" | "output_blocks") => layout = Layout::Ldm,
            _ => {}
        }
    }
    layout
}

/// The longest path that both paths lie in.
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

/// The entries of a printed Python list of strings.
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
        assert_eq!(from_node_name("/Shape").as_deref(), Some(""));
        assert_eq!(from_node_name("Constant_634"), None);
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
    }

    #[test]
    fn common_paths() {
        assert_eq!(common("a.b.c", "a.b.d"), "a.b");
        assert_eq!(common("blocks.1", "blocks.10"), "blocks");
        assert_eq!(common("a.b", "a.b"), "a.b");
        assert_eq!(common("a", "b"), "");
    }
}
