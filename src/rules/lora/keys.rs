//! Names of tensors in LoRA files: those of kohya's scripts, PEFT and diffusers, and which layer and factor each means.

/// The network that a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The one that the file is applied to: the key names none.
    Any,
    /// The UNet or transformer.
    Denoiser,
    /// The first text encoder, the second, the third.
    Text(u8),
}

impl Part {
    /// Returns what it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any network",
            Self::Denoiser => "the UNet or transformer",
            Self::Text(1) => "the first text encoder",
            Self::Text(2) => "the second text encoder",
            Self::Text(_) => "the third text encoder",
        }
    }
}

/// The tensor of a layer that a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A, from the inputs to the rank.
    Down,
    /// B, from the rank to the outputs.
    Up,
    /// The number that is divided by the rank.
    Alpha,
    /// One of another method, by its name.
    Other(&'static str),
}

/// A key that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub part: Part,
    /// The layer's module: a path, or one with `_` for each dot.
    pub module: String,
    pub role: Role,
}

const PREFIXES: [(&str, Part); 13] = [
    ("lora_unet_", Part::Denoiser),
    ("lora_transformer_", Part::Denoiser),
    ("lora_te1_", Part::Text(1)),
    ("lora_te2_", Part::Text(2)),
    ("lora_te3_", Part::Text(3)),
    ("lora_te_", Part::Text(1)),
    ("unet.", Part::Denoiser),
    ("transformer.", Part::Denoiser),
    ("diffusion_model.", Part::Denoiser),
    ("text_encoder.", Part::Text(1)),
    ("text_encoder_2.", Part::Text(2)),
    ("text_encoder_3.", Part::Text(3)),
    (PEFT, Part::Any),
];

/// The prefix that PEFT puts before the names of a model's modules.
pub(super) const PEFT: &str = "base_model.model.";

/// Reads the name of a tensor; `None` if it is none of a LoRA.
pub(super) fn read(key: &str) -> Option<Key> {
    let known = PREFIXES.iter().find_map(|(prefix, part)| Some((key.strip_prefix(prefix)?, *part)));
    let (rest, part) = known.unwrap_or((key, Part::Any));
    let segments: Vec<&str> = rest.split('.').collect();
    let (module, role) = split(&segments)?;
    let mut module: Vec<&str> = module.iter().copied().filter(|segment| *segment != "processor").collect();
    if let Some(last) = module.last_mut() {
        // Attention processors had names of their own for the layers: `to_q_lora`.
        *last = last.strip_suffix("_lora").unwrap_or(last);
    }
    let module = module.join(".");
    (!module.is_empty()).then_some(Key { part, module, role })
}

/// Divides the segments of a key into those of the module and what the others mean.
fn split<'a, 'k>(segments: &'a [&'k str]) -> Option<(&'a [&'k str], Role)> {
    let factor = |name: &str| match name {
        "lora_down" | "lora_A" | "down" => Some(Role::Down),
        "lora_up" | "lora_B" | "up" => Some(Role::Up),
        _ => None,
    };
    for (at, segment) in segments.iter().enumerate() {
        let other = match *segment {
            "dora_scale" | "lora_magnitude_vector" => "DoRA",
            "lora_mid" | "lora_mid_weight" => "LoCon in Tucker form",
            "oft_blocks" | "oft_diag" => "OFT",
            "w_norm" | "b_norm" => "a LoRA of norms",
            "diff" | "diff_b" if at + 1 == segments.len() => "a full difference",
            name if name.starts_with("hada_") => "LoHa",
            name if name.starts_with("lokr_") => "LoKr",
            _ => continue,
        };
        return Some((&segments[..at], Role::Other(other)));
    }
    match segments {
        [module @ .., "lora_A" | "lora_B" | "lora_down" | "lora_up", "bias"] => {
            Some((module, Role::Other("a LoRA with biases")))
        }
        [module @ .., "lora" | "lora_linear_layer", name @ ("down" | "up"), "weight"]
        | [module @ .., name @ ("lora_down" | "lora_up" | "lora_A" | "lora_B"), "weight"]
        | [module @ .., name @ ("lora_A" | "lora_B"), _, "weight"] => Some((module, factor(name)?)),
        [module @ .., name @ ("down" | "up"), "weight"] => {
            module.last()?.ends_with("_lora").then_some((module, factor(name)?))
        }
        [module @ .., "lora" | "lora_linear_layer", "alpha"] | [module @ .., "alpha"] => {
            Some((module, Role::Alpha))
        }
        _ => None,
    }
}

/// Returns the names that the module of a key may have in a graph, with `_` for dots, the likeliest first. `layers` is
/// the number of resnets in a down block of the network.
pub(super) fn names(part: Part, module: &str, layers: usize) -> Vec<String> {
    let name = flat(module);
    let mut names = vec![name.clone()];
    if name.ends_with("_to_out") {
        names.push(format!("{name}_0"));
    }
    if part != Part::Denoiser {
        for (theirs, ours) in [
            ("self_attn_to_q", "self_attn_q_proj"),
            ("self_attn_to_k", "self_attn_k_proj"),
            ("self_attn_to_v", "self_attn_v_proj"),
            ("self_attn_to_out", "self_attn_out_proj"),
        ] {
            names.extend(name.strip_suffix(theirs).map(|start| format!("{start}{ours}")));
        }
    }
    names.extend(of_original(&name, layers));
    names
}

/// Returns a module's path with `_` for dots. What the model of a text encoder calls its one child is left out: not
/// every release of transformers has it.
pub(super) fn flat(path: &str) -> String {
    let name = path.replace('.', "_");
    name.strip_prefix("text_model_").map(str::to_string).unwrap_or(name)
}

/// Returns the name that diffusers has for a module of the original Stable Diffusion UNet (`input_blocks_4_1_proj_in`),
/// whose blocks are numbered through.
fn of_original(name: &str, layers: usize) -> Option<String> {
    const WHOLE: [(&str, &str); 6] = [
        ("input_blocks_0_0", "conv_in"),
        ("out_2", "conv_out"),
        ("time_embed_0", "time_embedding_linear_1"),
        ("time_embed_2", "time_embedding_linear_2"),
        ("label_emb_0_0", "add_embedding_linear_1"),
        ("label_emb_0_2", "add_embedding_linear_2"),
    ];
    if let Some((_, ours)) = WHOLE.iter().find(|(theirs, _)| *theirs == name) {
        return Some((*ours).to_string());
    }
    let number = |text: &str| text.parse::<usize>().ok();
    let stage = layers.checked_add(1)?;
    let (block, child) = if let Some(rest) = name.strip_prefix("middle_block_") {
        let (index, child) = rest.split_once('_')?;
        let block = match index {
            "0" => "mid_block_resnets_0",
            "1" => "mid_block_attentions_0",
            "2" => "mid_block_resnets_1",
            _ => return None,
        };
        (block.to_string(), child)
    } else if let Some(rest) = name.strip_prefix("input_blocks_") {
        let (index, rest) = rest.split_once('_')?;
        let (part, child) = rest.split_once('_')?;
        let index = number(index)?.checked_sub(1)?;
        let (block, layer) = (index / stage, index % stage);
        match part {
            "0" if layer == layers => (format!("down_blocks_{block}_downsamplers_0"), child),
            "0" => (format!("down_blocks_{block}_resnets_{layer}"), child),
            "1" => (format!("down_blocks_{block}_attentions_{layer}"), child),
            _ => return None,
        }
    } else {
        let (index, rest) = name.strip_prefix("output_blocks_")?.split_once('_')?;
        let (part, child) = rest.split_once('_')?;
        let (block, layer) = (number(index)? / stage, number(index)? % stage);
        match part {
            // Blocks without attention have the upsampler second.
            "1" | "2" if child == "conv" => (format!("up_blocks_{block}_upsamplers_0"), child),
            "0" => (format!("up_blocks_{block}_resnets_{layer}"), child),
            "1" => (format!("up_blocks_{block}_attentions_{layer}"), child),
            _ => return None,
        }
    };
    let child = match child {
        "in_layers_2" => "conv1",
        "out_layers_3" => "conv2",
        "emb_layers_1" => "time_emb_proj",
        "skip_connection" => "conv_shortcut",
        "op" => "conv",
        same => same,
    };
    Some(format!("{block}_{child}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_each_style_are_read() {
        let q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
        for (key, part, module, role) in [
            (
                "lora_unet_mid_block_resnets_0_conv1.lora_down.weight",
                Part::Denoiser,
                "mid_block_resnets_0_conv1",
                Role::Down,
            ),
            (
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha",
                Part::Text(2),
                "text_model_encoder_layers_0_mlp_fc1",
                Role::Alpha,
            ),
            (&format!("unet.{q}.lora_B.weight"), Part::Denoiser, q, Role::Up),
            (&format!("unet.{q}.lora.down.weight"), Part::Denoiser, q, Role::Down),
            (
                &format!("unet.{}.processor.to_q_lora.up.weight", q.trim_end_matches(".to_q")),
                Part::Denoiser,
                q,
                Role::Up,
            ),
            (&format!("base_model.model.{q}.lora_A.default.weight"), Part::Any, q, Role::Down),
            (
                "text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer.up.weight",
                Part::Text(1),
                "text_model.encoder.layers.1.self_attn.q_proj",
                Role::Up,
            ),
            (&format!("unet.{q}.lora_magnitude_vector.weight"), Part::Denoiser, q, Role::Other("DoRA")),
            ("lora_unet_x.hada_w1_a", Part::Denoiser, "x", Role::Other("LoHa")),
            ("lora_unet_x.lokr_w1", Part::Denoiser, "x", Role::Other("LoKr")),
            ("lora_unet_x.diff", Part::Denoiser, "x", Role::Other("a full difference")),
        ] {
            assert_eq!(read(key), Some(Key { part, module: module.to_string(), role }), "{key}");
        }
        assert_eq!(read("unet.conv_in.weight"), None);
        assert_eq!(read("lora_A.weight"), None);
    }

    /// The pairs are those of diffusers' conversion of SDXL (two layers a block).
    #[test]
    fn names_of_the_original_unet_are_those_of_diffusers() {
        for (theirs, ours) in [
            (
                "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
                "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
            ),
            ("input_blocks_5_0_in_layers_2", "down_blocks_1_resnets_1_conv1"),
            ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
            ("input_blocks_0_0", "conv_in"),
            ("middle_block_1_proj_in", "mid_block_attentions_0_proj_in"),
            ("middle_block_2_out_layers_3", "mid_block_resnets_1_conv2"),
            ("output_blocks_2_1_proj_out", "up_blocks_0_attentions_2_proj_out"),
            ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
            ("output_blocks_3_0_skip_connection", "up_blocks_1_resnets_0_conv_shortcut"),
            ("output_blocks_8_0_emb_layers_1", "up_blocks_2_resnets_2_time_emb_proj"),
            ("time_embed_0", "time_embedding_linear_1"),
            ("label_emb_0_2", "add_embedding_linear_2"),
        ] {
            assert_eq!(of_original(theirs, 2).as_deref(), Some(ours), "{theirs}");
        }
        assert_eq!(of_original("down_blocks_0_attentions_0_proj_in", 2), None);
    }
}
