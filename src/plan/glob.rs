//! Globs over dotted module paths.
//!
//! A glob works on whole segments: `*` is one segment or part of one (`res*`), `**` any number of them including
//! none, `{a,b}` either side, dots and all (`net.{0.proj,2}`). So `X.**` matches `X` itself and everything under
//! it, `**.attn1.**` matches `down_blocks.0.attn1.to_q`, and `blocks.1` never matches `blocks.10`.

use miette::SourceSpan;

/// How long a glob may be, in bytes.
const MAX_LENGTH: usize = 4096;
/// How many globs without braces one glob may stand for.
const MAX_ALTERNATIVES: usize = 1024;

/// One glob of a selector.
#[derive(Debug, Clone, PartialEq)]
pub struct Glob {
    text: String,
    span: SourceSpan,
    alternatives: Vec<Vec<Segment>>,
}

/// One segment of a glob without braces.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Segment {
    /// `**`: any number of segments.
    AnyNumber,
    /// One segment, in which `*` stands for any characters.
    One(String),
}

/// Why a text isn't a glob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct BadGlob {
    /// The fault.
    pub reason: String,
    /// The bytes of the text it is wrong at; `None` when it is wrong as a whole.
    pub at: Option<std::ops::Range<usize>>,
    /// The remedy.
    pub help: Option<String>,
}

impl Glob {
    /// Compiles a glob over module paths. `span` is where it stands in the plan.
    ///
    /// # Errors
    /// Empty text or segments, unbalanced braces, `**` beside other characters, characters that no path has, a
    /// text longer than 4096 bytes, or braces that multiply to more than 1024 alternatives.
    pub fn module(text: &str, span: SourceSpan) -> Result<Self, BadGlob> {
        Ok(Self { text: text.to_owned(), span, alternatives: alternatives(text)? })
    }

    /// Compiles a glob over the modules whose `weight` is meant. A trailing `.weight` is allowed and dropped.
    ///
    /// # Errors
    /// As [`Glob::module`], and for a glob that ends in `.bias`, since biases aren't pruned.
    pub fn weight(text: &str, span: SourceSpan) -> Result<Self, BadGlob> {
        let mut glob = Self::module(text, span)?;
        for alternative in &mut glob.alternatives {
            match alternative.last() {
                Some(Segment::One(last)) if last == "bias" => {
                    let at = text.rfind("bias").map(|start| start..start + "bias".len());
                    return Err(BadGlob {
                        reason: format!("`{text}` names a bias; biases aren't pruned"),
                        at,
                        help: Some("name the module: its weight is meant".into()),
                    });
                }
                Some(Segment::One(last)) if last == "weight" && alternative.len() > 1 => {
                    alternative.pop();
                }
                _ => {}
            }
        }
        Ok(glob)
    }

    /// Returns the glob as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns where it stands in the plan.
    pub fn span(&self) -> SourceSpan {
        self.span
    }

    /// Returns whether it matches the module path `path`.
    pub fn matches(&self, path: &str) -> bool {
        let path: Vec<&str> = path.split('.').collect();
        self.alternatives.iter().any(|alternative| {
            matches(
                alternative,
                &path,
                |segment| *segment == Segment::AnyNumber,
                |segment, name| match segment {
                    Segment::AnyNumber => true,
                    Segment::One(pattern) => segment_matches(pattern, name),
                },
            )
        })
    }

    /// Returns whether it has wildcards and may match a module somewhere in the one at `within`.
    pub fn reaches(&self, within: &str) -> bool {
        let within: Vec<&str> = within.split('.').filter(|segment| !segment.is_empty()).collect();
        let is_wild = |segment: &Segment| match segment {
            Segment::AnyNumber => true,
            Segment::One(text) => text.contains('*'),
        };
        self.alternatives.iter().filter(|pattern| pattern.iter().any(is_wild)).any(|pattern| {
            let any = pattern.iter().position(|segment| *segment == Segment::AnyNumber);
            let fixed = any.unwrap_or(pattern.len());
            let begins = pattern[..fixed].iter().zip(&within).all(|(segment, name)| match segment {
                Segment::AnyNumber => true,
                Segment::One(text) => segment_matches(text, name),
            });
            begins && (any.is_some() || within.len() <= pattern.len())
        })
    }

    pub(super) fn alternatives(&self) -> &[Vec<Segment>] {
        &self.alternatives
    }
}

/// Returns whether the pattern `pattern`, in which `*` stands for any characters, matches the one segment `name`.
pub(super) fn segment_matches(pattern: &str, name: &str) -> bool {
    matches(pattern.as_bytes(), name.as_bytes(), |&byte| byte == b'*', |a, b| a == b)
}

/// Matches wildcards in time |pattern| * |items|: on a mismatch only the last star can usefully take one more item.
fn matches<P, T>(
    pattern: &[P],
    items: &[T],
    is_star: impl Fn(&P) -> bool,
    is_match: impl Fn(&P, &T) -> bool,
) -> bool {
    let (mut p, mut i) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(item) = items.get(i) {
        match pattern.get(p) {
            Some(part) if is_star(part) => {
                star = Some((p + 1, i));
                p += 1;
            }
            Some(part) if is_match(part, item) => {
                p += 1;
                i += 1;
            }
            _ => match star {
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    p = after;
                    i = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_some_and(|rest| rest.iter().all(is_star))
}

fn alternatives(text: &str) -> Result<Vec<Vec<Segment>>, BadGlob> {
    let bad = |reason: String, at| BadGlob { reason, at, help: None };
    if text.is_empty() {
        return Err(bad("a glob can't be empty".into(), None));
    }
    if text.len() > MAX_LENGTH {
        return Err(bad(format!("a glob has at most {MAX_LENGTH} bytes"), None));
    }
    check_characters(text)?;
    let mut alternatives = Vec::new();
    for plain in expand(text)? {
        let segments = plain.split('.').map(|segment| match segment {
            "" => Err(bad(format!("`{text}` has an empty segment"), None)),
            "**" => Ok(Segment::AnyNumber),
            _ if segment.contains("**") => Err(BadGlob {
                reason: format!("`**` stands alone between dots, not as in `{segment}`"),
                at: text.find("**").map(|start| start..start + 2),
                help: Some("`*` is part of a segment, `**` any number of whole segments".into()),
            }),
            _ => Ok(Segment::One(segment.to_owned())),
        });
        let segments = segments.collect::<Result<Vec<_>, _>>()?;
        if !alternatives.contains(&segments) {
            alternatives.push(segments);
        }
    }
    Ok(alternatives)
}

fn check_characters(text: &str) -> Result<(), BadGlob> {
    for (start, character) in text.char_indices() {
        let help = match character {
            '/' | '\\' => "module paths are separated by dots",
            '?' | '[' | ']' | '!' | '(' | ')' | '|' => "globs know `*`, `**` and `{a,b}`",
            _ if character.is_whitespace() || character.is_control() => "module paths have no spaces",
            _ => continue,
        };
        return Err(BadGlob {
            reason: format!("`{}` in a glob", character.escape_debug()),
            at: Some(start..start + character.len_utf8()),
            help: Some(help.into()),
        });
    }
    Ok(())
}

/// Multiplies the braces out, innermost first.
fn expand(text: &str) -> Result<Vec<String>, BadGlob> {
    let unbalanced = |what: &str, at: usize| BadGlob {
        reason: format!("{what} in a glob"),
        at: Some(at..at + 1),
        help: Some("alternatives are written `{a,b}`".into()),
    };
    // One level is the alternatives that are complete, those still growing, and where its brace stands.
    let mut levels: Vec<(Vec<String>, Vec<String>, usize)> = vec![(Vec::new(), vec![String::new()], 0)];
    for (at, character) in text.char_indices() {
        let depth = levels.len();
        let Some((done, growing, opened)) = levels.last_mut() else { break };
        match character {
            '{' => levels.push((Vec::new(), vec![String::new()], at)),
            ',' if depth > 1 => done.append(&mut std::mem::replace(growing, vec![String::new()])),
            ',' => {
                return Err(BadGlob {
                    reason: "`,` in a glob".into(),
                    at: Some(at..at + 1),
                    help: Some("a list of globs is written [a, b], alternatives {a,b}".into()),
                });
            }
            '}' if depth == 1 => return Err(unbalanced("`}` without `{`", at)),
            '}' => {
                let mut inner = std::mem::take(done);
                inner.append(growing);
                let opened = *opened;
                levels.pop();
                if let Some((_, growing, _)) = levels.last_mut() {
                    if growing.len().saturating_mul(inner.len()) > MAX_ALTERNATIVES {
                        return Err(BadGlob {
                            reason: format!("the braces stand for more than {MAX_ALTERNATIVES} globs"),
                            at: Some(opened..at + 1),
                            help: None,
                        });
                    }
                    *growing = growing
                        .iter()
                        .flat_map(|start| inner.iter().map(move |end| format!("{start}{end}")))
                        .collect();
                }
            }
            _ => growing.iter_mut().for_each(|alternative| alternative.push(character)),
        }
    }
    match levels.pop() {
        Some((_, _, opened)) if !levels.is_empty() => Err(unbalanced("`{` without `}`", opened)),
        Some((mut done, mut growing, _)) => {
            done.append(&mut growing);
            Ok(done)
        }
        None => Ok(Vec::new()),
    }
}
