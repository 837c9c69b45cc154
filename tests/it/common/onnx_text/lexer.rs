//! The lexer: text to tokens.

use std::fmt;

use super::{TextError, is_float_name};

/// A token and where it begins, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Token<'a> {
    pub kind: TokenKind<'a>,
    pub at: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TokenKind<'a> {
    /// An identifier or a keyword.
    Name(&'a str),
    /// A quoted string, without its quotes and escapes.
    Text(String),
    /// A number; `inf` and `nan` only with a sign, as they are names without one.
    Number(&'a str),
    /// `=>`
    Arrow,
    /// `...`
    Ellipsis,
    /// Any other character.
    Symbol(char),
    /// Nothing is left.
    End,
}

impl fmt::Display for TokenKind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(text) | Self::Number(text) => write!(f, "`{text}`"),
            Self::Text(text) => write!(f, "the string {text:?}"),
            Self::Arrow => write!(f, "`=>`"),
            Self::Ellipsis => write!(f, "`...`, which stands for contents that were not printed"),
            Self::Symbol(symbol) => write!(f, "`{symbol}`"),
            Self::End => write!(f, "the end of the text"),
        }
    }
}

pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Returns the next token; [`TokenKind::End`] for ever once the text is used up.
    pub fn next(&mut self) -> Result<Token<'a>, TextError> {
        self.skip_blanks();
        let at = self.at;
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(Token { kind: TokenKind::End, at }) };
        let kind = match first {
            '"' => TokenKind::Text(self.quoted()?),
            '_' | 'a'..='z' | 'A'..='Z' => {
                TokenKind::Name(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_'))
            }
            '-' | '0'..='9' => match number_len(rest) {
                0 => TokenKind::Symbol(self.take_char(first)),
                len => TokenKind::Number(self.take(len)),
            },
            '=' if rest.starts_with("=>") => {
                self.take(2);
                TokenKind::Arrow
            }
            '.' if rest.starts_with("...") => {
                self.take(3);
                TokenKind::Ellipsis
            }
            other => TokenKind::Symbol(self.take_char(other)),
        };
        Ok(Token { kind, at })
    }

    /// Returns an error about what begins at byte `at`.
    pub fn error(&self, at: usize, what: impl Into<String>) -> TextError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        TextError { line, column, what: what.into() }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, len: usize) -> &'a str {
        let taken = self.rest().get(..len).unwrap_or_default();
        self.at += taken.len();
        taken
    }

    fn take_char(&mut self, c: char) -> char {
        self.at += c.len_utf8();
        c
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        self.take(rest.find(|c| !belongs(c)).unwrap_or(rest.len()))
    }

    /// Spaces, and comments from `#` to the end of the line.
    fn skip_blanks(&mut self) {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r'));
            if !self.rest().starts_with('#') {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    /// Returns a quoted string. A backslash takes the character after it as it is.
    fn quoted(&mut self) -> Result<String, TextError> {
        let start = self.at;
        let mut chars = self.rest().char_indices().skip(1);
        let mut text = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.at = start + at + 1;
                    return Ok(text);
                }
                '\\' => text.extend(chars.next().map(|(_, escaped)| escaped)),
                _ => text.push(c),
            }
        }
        Err(self.error(start, "this string has no closing quote"))
    }
}

/// Returns the length of the number that `text` begins with: `-? digits (. digits?)? ([eE] [+-]? digits)?` or a sign
/// and a special float. 0 if it is none.
fn number_len(text: &str) -> usize {
    let sign = usize::from(text.starts_with('-'));
    let unsigned = text.get(sign..).unwrap_or_default();
    let letters = run(unsigned, |c| c.is_ascii_alphanumeric() || c == '_');
    if sign == 1 && unsigned.get(..letters).is_some_and(is_float_name) {
        return sign + letters;
    }
    let digits = run(unsigned, |c| c.is_ascii_digit());
    if digits == 0 {
        return 0;
    }
    let mut len = sign + digits;
    let rest = |len: usize| text.get(len..).unwrap_or_default();
    if rest(len).starts_with('.') {
        len += 1 + run(rest(len + 1), |c| c.is_ascii_digit());
    }
    if rest(len).starts_with(['e', 'E']) {
        len += 1;
        len += usize::from(rest(len).starts_with(['+', '-']));
        len += run(rest(len), |c| c.is_ascii_digit());
    }
    len
}

fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}
