//! Text encoding: prompts to tokens, then the text encoders' hidden states.

mod tokenizer;

use std::path::Path;

use serde_json::Value;

use super::{PipelineError, error::read_json};
use crate::engine::{HostTensor, Session, TensorInfo};
pub use tokenizer::{ClipTokenizer, Tokens};

/// Which hidden state of an encoder conditions the UNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HiddenState {
    /// The last hidden state, normalized: Stable Diffusion 1 and 2.
    Last,
    /// A layer's output before the last norm; 1 is the last layer's, 2 the one before: SDXL's default.
    FromEnd(usize),
}

/// The output of a text encoder for a batch of prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// `[batch, tokens, width]`.
    pub hidden: HostTensor,
    /// `[batch, projection]`, of encoders that project (`text_embeds`).
    pub pooled: Option<HostTensor>,
}

/// The tokenizer of one text encoder.
#[derive(Debug)]
pub struct Prompter(ClipTokenizer);

impl Prompter {
    /// Opens the tokenizer in `tokenizer`; `encoder` is the folder of the encoder, whose `config.json` is read if there
    /// is one.
    ///
    /// # Errors
    /// As [`ClipTokenizer::open`]; if the config is broken or asks for an attention mask; if the tokenizer makes more
    /// tokens than the encoder has positions.
    pub fn open(tokenizer: &Path, encoder: &Path) -> Result<Self, PipelineError> {
        let folder = tokenizer;
        let tokenizer = ClipTokenizer::open(folder)?;
        let path = encoder.join("config.json");
        let config = if path.exists() { read_json(&path)? } else { Value::Null };
        if config.get("use_attention_mask").and_then(Value::as_bool) == Some(true) {
            return Err(PipelineError::file(&path, "`use_attention_mask: true` is not supported"));
        }
        let positions = config.get("max_position_embeddings").and_then(Value::as_u64);
        if let Some(most) = positions.filter(|most| *most < tokenizer.length() as u64) {
            let what = format!(
                "`model_max_length` is {}, but the encoder has {most} positions (`max_position_embeddings`)",
                tokenizer.length()
            );
            return Err(PipelineError::file(&folder.join("tokenizer_config.json"), what));
        }
        Ok(Self(tokenizer))
    }

    /// Returns how many tokens a prompt always has.
    pub fn length(&self) -> usize {
        self.0.length()
    }

    /// Returns the tokens of a prompt.
    ///
    /// # Errors
    /// As [`ClipTokenizer::encode`].
    pub fn tokens(&self, prompt: &str) -> Result<Tokens, PipelineError> {
        self.0.encode(prompt)
    }
}

/// Runs a text encoder on a batch of one prompt's tokens.
///
/// The outputs are those that Optimum and `torch.onnx.export` name: `last_hidden_state`, `hidden_states.N` (N counted
/// from the embeddings, 0), `text_embeds`, `pooler_output`.
///
/// # Errors
/// [`PipelineError::Graph`] if the encoder's inputs or outputs are others; [`PipelineError::Engine`] if it fails.
pub fn encode(
    session: &mut dyn Session,
    model: &Path,
    tokens: &[i64],
    state: HiddenState,
) -> Result<Encoded, PipelineError> {
    let graph = |what: String| PipelineError::Graph { model: model.display().to_string(), what };
    let listed = |of: &[TensorInfo]| of.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let [input] = session.inputs() else {
        let inputs = listed(session.inputs());
        return Err(graph(format!("a text encoder has one input, `input_ids`; this has {inputs}")));
    };
    let ids = HostTensor::new([1, tokens.len()], tokens.to_vec())?.cast(input.data_type)?;
    let input = input.name.clone();
    let hidden = hidden_name(session.outputs(), state).map_err(graph)?;
    let pooled = session.outputs().iter().find(|o| o.name == "text_embeds").map(|o| o.name.clone());
    let mut wanted: Vec<&str> = vec![&hidden];
    wanted.extend(pooled.as_deref());
    let mut results = session.run(&[(&input, &ids)], Some(&wanted))?.into_iter().map(|(_, tensor)| tensor);
    let hidden = results.next().ok_or_else(|| graph(format!("it gave no `{hidden}`")))?;
    let pooled = results.next();
    if let [1, length, _] = hidden.dims()
        && *length == tokens.len()
    {
        return Ok(Encoded { hidden, pooled });
    }
    Err(graph(format!("hidden states should be [1, {}, width]; they are {:?}", tokens.len(), hidden.dims())))
}

/// Returns the name of the output that holds a hidden state.
fn hidden_name(outputs: &[TensorInfo], state: HiddenState) -> Result<String, String> {
    let has = |name: &str| outputs.iter().any(|o| o.name == name);
    let listed = || outputs.iter().map(|o| format!("`{}`", o.name)).collect::<Vec<_>>().join(", ");
    match state {
        HiddenState::Last => {
            let name = "last_hidden_state";
            has(name)
                .then(|| name.to_string())
                .ok_or_else(|| format!("no output `{name}`; it has {}", listed()))
        }
        HiddenState::FromEnd(from_end) => {
            let layers = outputs
                .iter()
                .filter_map(|o| o.name.strip_prefix("hidden_states.")?.parse::<usize>().ok())
                .max()
                .ok_or_else(|| {
                    format!("no outputs `hidden_states.N`; it has {}: export it with hidden states", listed())
                })?;
            let index = (layers + 1).checked_sub(from_end).filter(|_| from_end > 0);
            let index = index
                .ok_or_else(|| format!("it has {layers} layers; there is no {from_end}th from the end"))?;
            let name = format!("hidden_states.{index}");
            has(&name).then(|| name.clone()).ok_or_else(|| format!("no output `{name}`; it has {}", listed()))
        }
    }
}
