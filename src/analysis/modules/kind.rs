//! Module kinds: resnet, attention, transformer block and others, found from a module's path and contents.

use std::fmt;

use super::{Module, ModuleId};
use crate::ir::Graph;

/// The kind of a module. The names are those of diffusers' classes; LDM modules get the name of their counterpart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleKind {
    /// The whole model.
    Root,
    /// A `ModuleList` or `Sequential`: `resnets`, `attentions`, `net`.
    List,
    /// A stage of the way down: `down_blocks.N`, `input_blocks.N`.
    DownBlock,
    /// The stage between: `mid_block`, `middle_block`.
    MidBlock,
    /// A stage of the way up: `up_blocks.N`, `output_blocks.N`.
    UpBlock,
    /// A residual block of two convolutions (`ResnetBlock2D`, LDM's `ResBlock`).
    Resnet,
    /// A block that none of the other names fits: its output is its input plus a branch.
    Block,
    /// A stack of transformer blocks with its projections (`Transformer2DModel`, LDM's `SpatialTransformer`).
    Transformer,
    /// Self-attention, cross-attention, feed-forward (`BasicTransformerBlock`, `JointTransformerBlock`).
    TransformerBlock,
    /// An attention with its projections.
    Attention,
    /// A feed-forward network.
    FeedForward,
    /// Halves height and width.
    Downsampler,
    /// Doubles height and width.
    Upsampler,
    /// A convolution.
    Conv,
    /// A linear layer.
    Linear,
    /// Anything else: norms, activations, embeddings.
    Other,
}

impl fmt::Display for ModuleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "model",
            Self::List => "list",
            Self::DownBlock => "down block",
            Self::MidBlock => "mid block",
            Self::UpBlock => "up block",
            Self::Resnet => "resnet",
            Self::Block => "block",
            Self::Transformer => "transformer",
            Self::TransformerBlock => "transformer block",
            Self::Attention => "attention",
            Self::FeedForward => "feed-forward",
            Self::Downsampler => "downsampler",
            Self::Upsampler => "upsampler",
            Self::Conv => "conv",
            Self::Linear => "linear",
            Self::Other => "other",
        })
    }
}

/// Gives every module but the root its kind. `attentions` are the modules of the attentions that were found.
pub(super) fn assign(graph: &Graph, modules: &mut [Module], attentions: &[ModuleId]) {
    for index in 1..modules.len() {
        modules[index].kind = kind_of(graph, modules, index);
    }
    for id in attentions {
        let unknown =
            |id: ModuleId| matches!(modules[id.0 as usize].kind, ModuleKind::Other | ModuleKind::List);
        if *id == ModuleId(0) || !unknown(*id) {
            continue;
        }
        let around = modules[id.0 as usize].parent.filter(|p| *p != ModuleId(0) && unknown(*p));
        modules[id.0 as usize].kind = ModuleKind::Attention;
        if let Some(around) = around.filter(|p| has_feed_forward(modules, *p)) {
            modules[around.0 as usize].kind = ModuleKind::TransformerBlock;
        }
    }
}

fn has_feed_forward(modules: &[Module], id: ModuleId) -> bool {
    modules[id.0 as usize].children.iter().any(|c| modules[c.0 as usize].kind == ModuleKind::FeedForward)
}

fn kind_of(graph: &Graph, modules: &[Module], index: usize) -> ModuleKind {
    let module = &modules[index];
    let mut segments = module.path.rsplit('.');
    let last = segments.next().unwrap_or_default();
    let before = segments.next().unwrap_or_default();
    let numbered = last.parse::<u32>().is_ok();
    let has_child = |name: &str| {
        module.children.iter().any(|c| modules[c.0 as usize].path.rsplit('.').next() == Some(name))
    };
    match (before, numbered) {
        ("down_blocks" | "input_blocks", true) => return ModuleKind::DownBlock,
        ("up_blocks" | "output_blocks", true) => return ModuleKind::UpBlock,
        ("resnets", true) => return ModuleKind::Resnet,
        ("attentions", true) if has_child("transformer_blocks") => return ModuleKind::Transformer,
        ("attentions", true) => return ModuleKind::Attention,
        ("transformer_blocks" | "single_transformer_blocks" | "joint_transformer_blocks", true) => {
            return ModuleKind::TransformerBlock;
        }
        ("downsamplers", true) => return ModuleKind::Downsampler,
        ("upsamplers", true) => return ModuleKind::Upsampler,
        _ => {}
    }
    if matches!(last, "mid_block" | "middle_block") {
        return ModuleKind::MidBlock;
    }
    if is_numbered_attention(last) {
        return ModuleKind::Attention;
    }
    if is_feed_forward(last) && !module.children.is_empty() {
        return ModuleKind::FeedForward;
    }
    // LDM: `input_blocks.4.1`, `middle_block.0`.
    if has_child("in_layers") && has_child("out_layers") {
        return ModuleKind::Resnet;
    }
    if has_child("transformer_blocks") {
        return ModuleKind::Transformer;
    }
    if numbered && has_child("op") {
        return ModuleKind::Downsampler;
    }
    let ops = |op: &str| module.own_nodes.iter().any(|n| graph.node(*n).is(op));
    if module.children.is_empty() && ops("Conv") {
        return ModuleKind::Conv;
    }
    if module.children.is_empty() && (ops("MatMul") || ops("Gemm")) {
        return ModuleKind::Linear;
    }
    let is_number = |path: &str| path.rsplit('.').next().is_some_and(|name| name.parse::<u32>().is_ok());
    let of_numbers = module.children.iter().all(|c| is_number(&modules[c.0 as usize].path));
    if !module.children.is_empty() && module.own_nodes.is_empty() && !numbered && of_numbers {
        return ModuleKind::List;
    }
    ModuleKind::Other
}

/// Returns whether `name` is `ff`, `ff_context`, `ffn`, `feed_forward` or `mlp`.
fn is_feed_forward(name: &str) -> bool {
    matches!(name, "ff" | "ffn" | "feed_forward" | "mlp") || name.starts_with("ff_")
}

/// Returns whether `name` is `attn`, `attn1`, `attn2` or another number.
fn is_numbered_attention(name: &str) -> bool {
    name.strip_prefix("attn").is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit()))
}

impl ModuleKind {
    /// Returns whether modules of this kind are built around a skip path.
    pub fn is_block(self) -> bool {
        matches!(
            self,
            Self::MidBlock | Self::Resnet | Self::Block | Self::Transformer | Self::TransformerBlock
        ) || self.is_branch()
    }

    /// Returns whether modules of this kind are a branch whose residual Add stands in the module around them.
    pub fn is_branch(self) -> bool {
        matches!(self, Self::Attention | Self::FeedForward)
    }
}
