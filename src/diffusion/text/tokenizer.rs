//! CLIP's tokenizer from the files of a pipeline's `tokenizer` folder.

use std::path::Path;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::super::{
    PipelineError,
    error::{read_json, read_text},
};

/// What CLIP was trained with; for tokenizers that don't say.
const DEFAULT_LENGTH: usize = 77;
/// `model_max_length` of tokenizers without a limit is about 1e30.
const LONGEST: u64 = 1 << 16;

/// Turns prompts into tokens as `CLIPTokenizer` of transformers 5 does: Unicode NFC, runs of white space as one
/// space, lower case, byte-level BPE with `</w>`.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    length: usize,
    begin: i64,
    end: i64,
    pad: i64,
}

/// A prompt as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Start, the prompt's, end, padding: [`ClipTokenizer::length`] of them.
    pub ids: Vec<i64>,
    /// The end of the prompt that didn't fit; empty if all did.
    pub cut: String,
}

impl Tokens {
    /// A message about what was cut, if anything was.
    pub fn cut_warning(&self) -> Option<String> {
        let what = format!(
            "a prompt is longer than {} tokens; this part has no effect: {:?}",
            self.ids.len(),
            self.cut
        );
        (!self.cut.is_empty()).then_some(what)
    }
}

impl ClipTokenizer {
    /// Reads `vocab.json` and `merges.txt` (or, without them, `tokenizer.json`), and from `tokenizer_config.json` and
    /// `special_tokens_map.json` the special tokens and the length, where these files exist.
    ///
    /// # Errors
    /// [`PipelineError`] if files are missing or broken, or a special token is not in the vocabulary.
    pub fn open(folder: &Path) -> Result<Self, PipelineError> {
        let config = optional_json(&folder.join("tokenizer_config.json"))?;
        let map = optional_json(&folder.join("special_tokens_map.json"))?;
        let special = |name: &str, default: &str| -> SpecialToken {
            let given = [&config, &map].into_iter().find_map(|file| SpecialToken::of(file.get(name)?));
            given.unwrap_or_else(|| SpecialToken { content: default.to_string(), normalized: false })
        };
        let begin = special("bos_token", "<|startoftext|>");
        let end = special("eos_token", "<|endoftext|>");
        let unknown = special("unk_token", "<|endoftext|>");
        let pad = special("pad_token", "<|endoftext|>");
        let length = config.get("model_max_length").and_then(Value::as_u64);
        let length = length.filter(|n| (3..=LONGEST).contains(n)).and_then(|n| usize::try_from(n).ok());

        let vocabulary = folder.join("vocab.json");
        let (path, description) = if vocabulary.exists() {
            let specials = [&begin, &end, &unknown, &pad];
            (vocabulary.clone(), description(folder, &vocabulary, &config, &specials)?)
        } else {
            let path = folder.join("tokenizer.json");
            if !path.exists() {
                return Err(PipelineError::file(
                    folder,
                    "there is no vocab.json and no tokenizer.json in it",
                ));
            }
            let description = read_json(&path)?;
            (path, description)
        };
        let mut tokenizer: Tokenizer = serde_json::from_value(description)
            .map_err(|e| PipelineError::file(&path, format!("it is no CLIP tokenizer: {e}")))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| PipelineError::file(&path, e.to_string()))?;
        let id = |token: &SpecialToken| {
            tokenizer.token_to_id(&token.content).map(i64::from).ok_or_else(|| {
                PipelineError::file(&path, format!("the special token `{}` is not in it", token.content))
            })
        };
        let (begin, end, pad) = (id(&begin)?, id(&end)?, id(&pad)?);
        Ok(Self { tokenizer, length: length.unwrap_or(DEFAULT_LENGTH), begin, end, pad })
    }

    /// How many tokens a prompt is made into.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The tokens of a prompt, cut or padded to [`ClipTokenizer::length`].
    ///
    /// # Errors
    /// [`PipelineError::Request`] if the tokenizer refuses the text.
    pub fn encode(&self, prompt: &str) -> Result<Tokens, PipelineError> {
        let encoding = self
            .tokenizer
            .encode(prompt, false)
            .map_err(|e| PipelineError::Request(format!("the prompt cannot be made into tokens: {e}")))?;
        let room = self.length.saturating_sub(2);
        let all = encoding.get_ids();
        let kept = all.get(..room).unwrap_or(all);
        let mut ids = Vec::with_capacity(self.length);
        ids.push(self.begin);
        ids.extend(kept.iter().map(|id| i64::from(*id)));
        ids.push(self.end);
        ids.resize(self.length, self.pad);
        let cut = encoding.get_offsets().get(room).and_then(|at| prompt.get(at.0..)).unwrap_or_default();
        Ok(Tokens { ids, cut: cut.trim().to_string() })
    }
}

/// A special token, as a string or as an object.
struct SpecialToken {
    content: String,
    /// Whether it is looked for in the normalized text.
    normalized: bool,
}

impl SpecialToken {
    fn of(value: &Value) -> Option<Self> {
        if let Some(content) = value.as_str() {
            return Some(Self { content: content.to_string(), normalized: false });
        }
        let content = value.get("content")?.as_str()?.to_string();
        let normalized = value.get("normalized").and_then(Value::as_bool).unwrap_or(false);
        Some(Self { content, normalized })
    }
}

/// The `tokenizer.json` that transformers would make of the files.
fn description(
    folder: &Path,
    vocabulary: &Path,
    config: &Value,
    specials: &[&SpecialToken],
) -> Result<Value, PipelineError> {
    let vocab = read_json(vocabulary)?;
    let Some(known) = vocab.as_object() else {
        return Err(PipelineError::file(vocabulary, "it is no mapping from tokens to numbers"));
    };
    let merges = merges(&folder.join("merges.txt"), known)?;
    let unknown = specials.get(2).map(|token| token.content.as_str());
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(config, known, specials),
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            {
                "type": "Split",
                "pattern": { "Regex":
                    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+" },
                "behavior": "Removed",
                "invert": true,
            },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        ] },
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>",
            "fuse_unk": false,
            "vocab": vocab,
            "merges": merges,
        },
    }))
}

/// The merges of a `merges.txt`, its version line left out.
fn merges(path: &Path, vocabulary: &Map<String, Value>) -> Result<Vec<[String; 2]>, PipelineError> {
    let text = read_text(path)?;
    let mut merges = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || (number == 0 && line.starts_with("#version")) {
            continue;
        }
        let line_error = |what: String| PipelineError::file(path, format!("line {}: {what}", number + 1));
        let (first, second) =
            line.split_once(' ').ok_or_else(|| line_error(format!("`{line}` is not two tokens")))?;
        let merge = [first.to_string(), second.trim_end().to_string()];
        for token in merge.iter().chain([&merge.concat()]) {
            if !vocabulary.contains_key(token) {
                return Err(line_error(format!("the token `{token}` is not in vocab.json")));
            }
        }
        merges.push(merge);
    }
    Ok(merges)
}

/// The tokens that are found in a text before it is split: those that `tokenizer_config.json` lists, and the special
/// ones that it doesn't.
fn added_tokens(config: &Value, vocabulary: &Map<String, Value>, specials: &[&SpecialToken]) -> Vec<Value> {
    let mut tokens: Vec<Value> = Vec::new();
    let has = |tokens: &[Value], content: &str| tokens.iter().any(|t| t["content"] == content);
    for (id, token) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
        if let (Ok(id), Some(content)) = (id.parse::<u32>(), token.get("content").and_then(Value::as_str))
            && !has(&tokens, content)
        {
            tokens.push(json!({
                "id": id, "content": content, "single_word": flag("single_word"), "lstrip": flag("lstrip"),
                "rstrip": flag("rstrip"), "normalized": flag("normalized"), "special": flag("special"),
            }));
        }
    }
    for token in specials {
        if let Some(id) = vocabulary.get(&token.content)
            && !has(&tokens, &token.content)
        {
            tokens.push(json!({
                "id": id, "content": token.content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": token.normalized, "special": true,
            }));
        }
    }
    tokens.sort_by_key(|token| token["id"].as_u64());
    tokens
}

fn optional_json(path: &Path) -> Result<Value, PipelineError> {
    if path.exists() { read_json(path) } else { Ok(Value::Null) }
}
