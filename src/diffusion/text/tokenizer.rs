//! CLIP's tokenizer from the files of a pipeline's `tokenizer` folder.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use super::super::{
    PipelineError,
    error::{read_json, read_text},
};

/// The number of tokens that CLIP was trained with; for tokenizers that don't say.
const DEFAULT_LENGTH: usize = 77;
/// `model_max_length` of tokenizers without a limit is about 1e30.
const LONGEST: u64 = 1 << 16;

/// A tokenizer that turns prompts into tokens as `CLIPTokenizer` of transformers 5 does: Unicode NFC, runs of white
/// space as one space, lower case, byte-level BPE with `</w>`.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    /// Placeholders of several vectors, and what stands for them: the tokens of all vectors.
    placeholders: Vec<(String, String)>,
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
    /// Returns a message about what was cut, if anything was.
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
    /// Reads a tokenizer's folder as transformers does: the vocabulary from `tokenizer.json` or else `vocab.json` and
    /// `merges.txt`; added tokens from `tokenizer_config.json`, or where it lists none from `added_tokens.json` and
    /// `tokenizer.json`; special tokens and the length from `tokenizer_config.json`, and there too, before it, from
    /// `special_tokens_map.json`.
    ///
    /// # Errors
    /// [`PipelineError`] if files are missing or broken, or a special token is not in the vocabulary.
    pub fn open(folder: &Path) -> Result<Self, PipelineError> {
        let config = optional_json(&folder.join("tokenizer_config.json"))?;
        let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
        let map = match decoder {
            Some(_) => Value::Null,
            None => optional_json(&folder.join("special_tokens_map.json"))?,
        };
        let special = |name: &str, default: &str| -> SpecialToken {
            let given = [&map, &config].into_iter().find_map(|file| SpecialToken::of(file.get(name)?));
            given.unwrap_or_else(|| SpecialToken { content: default.to_string(), normalized: false })
        };
        let begin = special("bos_token", "<|startoftext|>");
        let end = special("eos_token", "<|endoftext|>");
        let unknown = special("unk_token", "<|endoftext|>");
        let pad = special("pad_token", "<|endoftext|>");
        let length = config.get("model_max_length").and_then(Value::as_u64);
        let length = length.filter(|n| (3..=LONGEST).contains(n)).and_then(|n| usize::try_from(n).ok());

        let serialized_path = folder.join("tokenizer.json");
        let serialized = optional_json(&serialized_path)?;
        let (path, vocabulary) = match &serialized {
            Value::Null => (folder.join("vocab.json"), Vocabulary::of_files(folder)?),
            _ => (serialized_path.clone(), Vocabulary::of_serialized(&serialized, &serialized_path)?),
        };
        let added = match decoder {
            Some(decoder) => {
                decoder.iter().filter_map(|(id, token)| listed(id.parse().ok()?, token)).collect()
            }
            None => {
                let encoder = optional_json(&folder.join("added_tokens.json"))?;
                let named = [&begin, &end, &unknown, &pad].map(|token| token.content.as_str());
                older_added_tokens(&encoder, &serialized, &named)
            }
        };
        let extra = ["extra_special_tokens", "additional_special_tokens"].into_iter();
        let extra = extra.flat_map(|key| [&config, &map].map(|file| file.get(key)));
        let extra = extra.flatten().filter_map(Value::as_array).flatten().filter_map(SpecialToken::of);
        let specials = [&begin, &end, &unknown, &pad].map(Clone::clone).into_iter();
        let specials = specials.filter(|token| vocabulary.words.contains_key(&token.content)).chain(extra);
        let added = with_specials(added, specials);
        let placeholders = placeholders(&added);
        let description = vocabulary.description(&added, &unknown.content);
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
        Ok(Self { tokenizer, placeholders, length: length.unwrap_or(DEFAULT_LENGTH), begin, end, pad })
    }

    /// Returns how many tokens a prompt is made into.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Returns the tokens of a prompt, cut or padded to [`ClipTokenizer::length`]. A placeholder of several vectors
    /// stands for all of them, as in diffusers (`maybe_convert_prompt`).
    ///
    /// # Errors
    /// [`PipelineError::Request`] if the tokenizer refuses the text.
    pub fn encode(&self, prompt: &str) -> Result<Tokens, PipelineError> {
        let encoded = |text: &str| {
            let encoded = self.tokenizer.encode(text, false);
            encoded.map_err(|e| PipelineError::Request(format!("the prompt cannot be made into tokens: {e}")))
        };
        let mut encoding = encoded(prompt)?;
        let mut prompt = Cow::Borrowed(prompt);
        for (placeholder, all) in &self.placeholders {
            if encoding.get_tokens().contains(placeholder) {
                prompt = prompt.replace(placeholder, all).into();
            }
        }
        if let Cow::Owned(prompt) = &prompt {
            encoding = encoded(prompt)?;
        }
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
#[derive(Clone)]
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

/// The words of a tokenizer and how they are merged.
struct Vocabulary {
    words: Map<String, Value>,
    merges: Value,
}

impl Vocabulary {
    /// Reads `vocab.json` and `merges.txt`.
    fn of_files(folder: &Path) -> Result<Self, PipelineError> {
        let path = folder.join("vocab.json");
        if !path.exists() {
            return Err(PipelineError::file(folder, "there is no vocab.json and no tokenizer.json in it"));
        }
        let Value::Object(words) = read_json(&path)? else {
            return Err(PipelineError::file(&path, "it is no mapping from tokens to numbers"));
        };
        let merges = json!(merges(&folder.join("merges.txt"), &words)?);
        Ok(Self { words, merges })
    }

    /// Reads the model of a `tokenizer.json`. The rest of it is CLIP's, whatever it says.
    fn of_serialized(serialized: &Value, path: &Path) -> Result<Self, PipelineError> {
        let model =
            serialized.get("model").filter(|model| model.get("type").is_none_or(|kind| kind == "BPE"));
        let words = model.and_then(|model| model.get("vocab")?.as_object());
        let (Some(model), Some(words)) = (model, words) else {
            return Err(PipelineError::file(path, "it is no CLIP tokenizer: its model is not BPE"));
        };
        let merges = model.get("merges").cloned().unwrap_or_else(|| json!([]));
        Ok(Self { words: words.clone(), merges })
    }

    /// Returns the `tokenizer.json` that transformers would make.
    fn description(self, added: &[Value], unknown: &str) -> Value {
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
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
                "vocab": self.words,
                "merges": self.merges,
            },
        })
    }
}

/// Returns the merges of a `merges.txt`, its version line left out.
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

/// Returns the added token `token` of a file as a `tokenizer.json` has it.
fn listed(id: u64, token: &Value) -> Option<Value> {
    let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
    Some(json!({
        "id": id, "content": token.get("content")?.as_str()?, "single_word": flag("single_word"),
        "lstrip": flag("lstrip"), "rstrip": flag("rstrip"), "normalized": flag("normalized"), "special": flag("special"),
    }))
}

/// Returns the tokens of an `added_tokens.json` and of a `tokenizer.json`, which has the last word.
fn older_added_tokens(encoder: &Value, serialized: &Value, specials: &[&str]) -> Vec<Value> {
    let mut tokens = BTreeMap::new();
    for (content, id) in encoder.as_object().into_iter().flatten() {
        let Some(id) = id.as_u64() else { continue };
        let special = specials.contains(&content.as_str());
        tokens.insert(
            id,
            listed(id, &json!({ "content": content, "normalized": !special, "special": special })),
        );
    }
    for token in serialized.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let Some(id) = token.get("id").and_then(Value::as_u64) else { continue };
        tokens.insert(id, listed(id, token));
    }
    tokens.into_values().flatten().collect()
}

/// Returns the tokens that are found in a text before it is split: `added`, in the order of their numbers, and special
/// ones that are not among them. Those that are no words get the numbers behind the vocabulary, one after the other.
fn with_specials(mut added: Vec<Value>, specials: impl Iterator<Item = SpecialToken>) -> Vec<Value> {
    added.sort_by_key(|token| token["id"].as_u64());
    let mut seen = BTreeSet::new();
    added.retain(|token| seen.insert(token["content"].to_string()));
    for SpecialToken { content, normalized } in specials {
        if seen.insert(json!(content).to_string()) {
            added.push(json!({
                "id": 0, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": normalized, "special": true,
            }));
        }
    }
    added
}

/// Returns each placeholder of several vectors among the added tokens, `<cat>` with `<cat>_1` and so on, and all its
/// tokens.
fn placeholders(added: &[Value]) -> Vec<(String, String)> {
    let known: BTreeSet<&str> = added.iter().filter_map(|token| token["content"].as_str()).collect();
    let several = known.iter().filter_map(|token| {
        let parts = (1..).map(|i| format!("{token}_{i}")).take_while(|part| known.contains(part.as_str()));
        let all = parts.fold((*token).to_string(), |all, part| format!("{all} {part}"));
        (all != **token).then(|| ((*token).to_string(), all))
    });
    several.collect()
}

fn optional_json(path: &Path) -> Result<Value, PipelineError> {
    if path.exists() { read_json(path) } else { Ok(Value::Null) }
}
