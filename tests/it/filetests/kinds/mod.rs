//! Kinds of filetests, one file each.

mod compile;
mod load;
mod parse;

use crate::filetests::case::Case;

/// A kind of test.
pub struct Kind {
    name: &'static str,
    /// The sections that it reads, besides `expect`.
    pub sections: &'static [&'static str],
    /// Returns the text that `expect` should have. An error is a test that makes no sense; an error of the library that
    /// is under test is part of the text.
    pub run: fn(&Case) -> Result<String, String>,
}

const KINDS: [Kind; 3] = [
    Kind { name: "compile", sections: &["plan", "input"], run: compile::run },
    Kind { name: "load", sections: &["input"], run: load::run },
    Kind { name: "parse", sections: &["input"], run: parse::run },
];

pub fn find(name: &str) -> Result<&'static Kind, String> {
    const { &KINDS }.iter().find(|kind| kind.name == name).ok_or_else(|| {
        let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        format!("there is no kind `{name}`, only {}", names.join(", "))
    })
}
