//! Redirection: readers of a replaced value read its replacement.

use super::PassError;
use crate::{
    ir::Editor,
    rules::{Change, Skips},
};

/// Redirects the readers of values as `changes` say. What is left unread is removed by `dce`, the dead-code elimination.
pub(super) fn run<'a>(
    changes: impl Iterator<Item = &'a Change>,
    skips: &Skips,
    editor: &mut Editor<'_>,
) -> Result<(), PassError> {
    for redirect in changes.flat_map(Change::redirects) {
        editor.redirect(redirect.from, skips.follow(redirect.from))?;
    }
    Ok(())
}
