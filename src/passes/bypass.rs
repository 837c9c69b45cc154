//! Bypass: everything that reads a bypassed module's output reads its skip instead.

use super::PassError;
use crate::{ir::Editor, plan::ResolvedPlan};

/// Redirects the outputs of all bypassed modules. What is left unread is removed by the sweep.
pub(super) fn run(plan: &ResolvedPlan, editor: &mut Editor<'_>) -> Result<(), PassError> {
    let skips = plan.skips();
    for redirect in plan.bypasses.iter().flat_map(|b| &b.bypass.redirects) {
        editor.redirect(redirect.from, skips.follow(redirect.from))?;
    }
    Ok(())
}
