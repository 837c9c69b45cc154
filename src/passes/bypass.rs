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
    let mut skips: FxHashMap<ValueId, ValueId> = FxHashMap::default();
    for redirect in &redirects {
        // A block and the last branch in it end in the same value. The block comes first, and takes the branch with it.
        skips.entry(redirect.from).or_insert(redirect.to);
    }
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
