//! Symbols: texts that many nodes have in common, each in memory once.

use std::{borrow::Borrow, fmt, ops::Deref, sync::Arc};

use rustc_hash::FxHashSet;

/// The name of an operator or of a domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for Symbol {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Symbol {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Symbol {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl PartialEq<str> for Symbol {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<&str> for Symbol {
    fn eq(&self, other: &&str) -> bool {
        *self.0 == **other
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The symbols of one graph.
#[derive(Debug, Default)]
pub(super) struct Symbols(FxHashSet<Symbol>);

impl Symbols {
    /// Returns the symbol of this text.
    pub(super) fn get(&mut self, text: &str) -> Symbol {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let symbol = Symbol::from(text);
        self.0.insert(symbol.clone());
        symbol
    }
}
