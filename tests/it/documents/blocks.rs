//! The fenced blocks of a document.

use std::fs;

use crate::documents::root;

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// The document, from the root of the repository.
    pub file: String,
    /// The line of its opening fence, from 1.
    pub line: usize,
    /// The word after the opening fence: `sh`, `yaml`.
    pub language: String,
    /// The text between the fences.
    pub text: String,
    /// The reason of a comment `<!-- not run: REASON -->` in the line before it.
    pub not_run: Option<String>,
}

impl Block {
    /// `docs/plan.md:12`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// Its commands, with continued lines joined, without comments.
    pub fn commands(&self) -> Vec<String> {
        let joined = self.text.replace("\\\n", " ");
        let lines = joined.lines().map(|line| line.split(" # ").next().unwrap_or_default());
        lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .filter(|l| !l.is_empty())
            .collect()
    }
}

/// README.md and everything in docs/ and docs/notes/, sorted.
pub fn documents() -> Vec<String> {
    let mut files = vec!["README.md".to_string()];
    for folder in ["docs", "docs/notes"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        files.extend(names.filter(|name| name.ends_with(".md")).map(|name| format!("{folder}/{name}")));
    }
    files.sort();
    files
}

/// The fenced blocks of a document.
pub fn blocks(file: &str) -> Vec<Block> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let mut found: Vec<Block> = Vec::new();
    let mut is_open = false;
    let mut before = "";
    for (index, line) in text.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match (fence, found.last_mut()) {
            (Some(_), Some(_)) if is_open => is_open = false,
            (Some(language), _) => {
                is_open = true;
                let reason = before.strip_prefix("<!-- not run: ").and_then(|rest| rest.strip_suffix(" -->"));
                found.push(Block {
                    file: file.to_string(),
                    line: index + 1,
                    language: language.to_string(),
                    text: String::new(),
                    not_run: reason.map(str::to_string),
                });
            }
            (None, Some(block)) if is_open => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            _ => {}
        }
        if !line.trim().is_empty() {
            before = line;
        }
    }
    assert!(!is_open, "{file}: a block is not closed");
    found
}

/// The blocks of `language` in all documents.
pub fn all(language: &str) -> Vec<Block> {
    documents().iter().flat_map(|file| blocks(file)).filter(|block| block.language == language).collect()
}
