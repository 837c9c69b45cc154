//! Types that a model states for its values (`value_info`).

use rustc_hash::FxHashSet;

use super::{Editor, Item, ValueId};

impl Editor<'_> {
    /// Forgets the types that the model states for `values` (`value_info`).
    pub fn forget_types(&mut self, values: &[ValueId]) {
        let stated = values.iter().copied().filter(|value| self.graph.value_info.remove(value).is_some());
        let values: FxHashSet<ValueId> = stated.collect();
        if values.is_empty() {
            return;
        }
        for item in &mut self.graph.layout {
            if matches!(item, Item::ValueInfo(Some(value)) if values.contains(value)) {
                *item = Item::Forgotten;
            }
        }
        self.graph.edits += 1;
    }
}
