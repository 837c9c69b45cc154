//! Bypass: everything that reads a bypassed module's output reads its skip instead.

use rustc_hash::FxHashMap;

use super::PassError;
use crate::{
    ir::{Editor, ValueId},
    plan::ResolvedPlan,
};

/// Redirects the outputs of all bypassed modules. What is left unread is removed by the sweep.
pub(super) fn run(plan: &ResolvedPlan, editor: &mut Editor<'_>) -> Result<(), PassError> {
    let redirects: Vec<_> = plan.bypasses.iter().flat_map(|b| &b.bypass.redirects).collect();
    let skips: FxHashMap<ValueId, ValueId> = redirects.iter().map(|r| (r.from, r.to)).collect();
    for redirect in redirects {
        // The skip of one bypassed module may be the output of another: follow to a value that stays.
        let mut to = redirect.to;
        while let Some(next) = skips.get(&to) {
            to = *next;
        }
        editor.redirect(redirect.from, to)?;
    }
    Ok(())
}
