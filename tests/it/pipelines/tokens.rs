//! Tokens against transformers'.

use crdiff::diffusion::text::ClipTokenizer;
use serde_json::Value;

use crate::pipelines::support::{Golden, pipelines};

#[test]
fn tokens_are_those_of_transformers() {
    let index = Golden::open("sdxl").index;
    let texts = index["tokens"].as_array().unwrap();
    assert!(texts.len() > 15);
    for (folder, key) in [("tokenizer", "ids"), ("tokenizer_2", "ids_2")] {
        let tokenizer = ClipTokenizer::open(&pipelines().join("sdxl").join(folder)).unwrap();
        assert_eq!(tokenizer.length(), 77);
        for text in texts {
            let expected: Vec<i64> = text[key].as_array().unwrap().iter().filter_map(Value::as_i64).collect();
            let prompt = text["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(prompt).unwrap().ids, expected, "{folder}: {prompt:?}");
        }
    }
}

/// Folders as several releases and training scripts leave them (fixtures/tokenizer_goldens.py).
#[test]
fn added_tokens_and_placeholders_are_read_as_transformers_and_diffusers_do() {
    let fixtures = pipelines().parent().unwrap().to_path_buf();
    let cases = std::fs::read_to_string(fixtures.join("tokenizers/cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&cases).unwrap();
    let mut wrong = Vec::new();
    for case in cases.as_array().unwrap() {
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(pipelines().join("sd15/tokenizer")).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        for (name, content) in case["files"].as_object().unwrap() {
            let path = folder.path().join(name);
            match content {
                Value::Null => std::fs::remove_file(path).unwrap(),
                content => std::fs::write(path, content.to_string()).unwrap(),
            }
        }
        let tokenizer =
            ClipTokenizer::open(folder.path()).unwrap_or_else(|e| panic!("{}: {e}", case["name"]));
        for prompt in case["prompts"].as_array().unwrap() {
            let expected: Vec<i64> =
                prompt["ids"].as_array().unwrap().iter().filter_map(Value::as_i64).collect();
            let text = prompt["text"].as_str().unwrap();
            if tokenizer.encode(text).unwrap().ids != expected {
                wrong.push(format!("{}: {text:.40}", case["name"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_second_tokenizer_pads_with_an_exclamation_mark() {
    let pads = |folder: &str| {
        let ids =
            ClipTokenizer::open(&pipelines().join("sdxl").join(folder)).unwrap().encode("cat").unwrap().ids;
        (ids[2], ids[3], ids[76])
    };
    let (end, pad, last) = pads("tokenizer");
    assert_eq!((pad, last), (end, end));
    let (_, pad, last) = pads("tokenizer_2");
    assert_eq!((pad, last), (0, 0));
}

#[test]
fn a_prompt_that_is_cut_says_what_was_lost() {
    let tokenizer = ClipTokenizer::open(&pipelines().join("sd15/tokenizer")).unwrap();
    let tokens = tokenizer.encode(&format!("{}dog", "the ".repeat(75))).unwrap();
    assert_eq!(tokens.ids.len(), 77);
    assert_eq!(tokens.cut, "dog");
    let whole = tokenizer.encode(&"the ".repeat(75)).unwrap();
    assert_eq!((whole.cut.as_str(), whole.cut_warning()), ("", None));
}

#[test]
fn broken_files_are_errors_that_name_them() {
    let folder = tempfile::tempdir().unwrap();
    let source = pipelines().join("sd15/tokenizer");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let error = || ClipTokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(error().contains("tokenizer.json"), "{}", error());
    std::fs::copy(source.join("vocab.json"), folder.path().join("vocab.json")).unwrap();
    assert!(error().contains("merges.txt"), "{}", error());
    write("merges.txt", "#version: 0.2\na n\nq qq\n");
    assert!(error().contains("line 3: the token `qq`"), "{}", error());
    write("merges.txt", "#version: 0.2\nan\n");
    assert!(error().contains("line 2: `an` is not two tokens"), "{}", error());
    write("merges.txt", "#version: 0.2\na n\n");
    assert!(ClipTokenizer::open(folder.path()).is_ok());
    write("special_tokens_map.json", r#"{"pad_token": "<pad>"}"#);
    assert!(error().contains("`<pad>` is not in it"), "{}", error());
    write("vocab.json", "[1]");
    assert!(error().contains("vocab.json"), "{}", error());
}
