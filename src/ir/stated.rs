//! Types that a model states for its values (`value_info`).

use rustc_hash::FxHashSet;

use super::{Editor, Item, ValueId};
use crate::onnx::{graph_field, wire::Field};

impl Editor<'_> {
    /// Forgets the types that the model states for `values` (`value_info`).
    pub fn forget_types(&mut self, values: &[ValueId]) {
        let stated = values.iter().copied().filter(|value| self.graph.value_info.remove(value).is_some());
        let values: FxHashSet<ValueId> = stated.collect();
        if values.is_empty() {
            return;
        }
        let is_about = |about: &Field| about.number == graph_field::VALUE_INFO;
        self.graph.layout.retain(
            |item| !matches!(item, Item::About(Some(value), about) if is_about(about) && values.contains(value)),
        );
        self.graph.edits += 1;
    }
}
