//! Attributes that the plan gives to nodes.

use super::PassError;
use crate::{ir::Editor, rules::Change};

/// Sets the attributes of nodes as `changes` say.
pub(super) fn run<'a>(
    changes: impl Iterator<Item = &'a Change>,
    editor: &mut Editor<'_>,
) -> Result<(), PassError> {
    for attributes in changes.flat_map(Change::attributes) {
        editor.set_attributes(attributes.node, &attributes.set)?;
    }
    Ok(())
}
