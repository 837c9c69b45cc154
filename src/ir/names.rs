//! Values by name, without a second copy of the names.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;

use super::{Value, ValueId};

/// An index of values by the name that it has in the arena. Take a value out before its name changes there.
#[derive(Clone, Debug)]
pub(crate) struct Names(HashTable<ValueId>);

impl Names {
    pub(crate) fn with_capacity(values: usize) -> Self {
        Self(HashTable::with_capacity(values))
    }

    /// Returns the value called `name`.
    pub(crate) fn get(&self, values: &[Value], name: &str) -> Option<ValueId> {
        self.0.find(hash(name), |id| values[id.index()].name == name).copied()
    }

    /// Adds `id` under its name, which no other value must have.
    pub(crate) fn insert(&mut self, values: &[Value], id: ValueId) {
        let name_hash = |id: &ValueId| hash(&values[id.index()].name);
        self.0.insert_unique(name_hash(&id), id, name_hash);
    }

    /// Takes `id` out, if it is the one under its name.
    pub(crate) fn remove(&mut self, values: &[Value], id: ValueId) {
        if let Ok(entry) = self.0.find_entry(hash(&values[id.index()].name), |other| *other == id) {
            entry.remove();
        }
    }
}

fn hash(name: &str) -> u64 {
    FxBuildHasher.hash_one(name)
}
