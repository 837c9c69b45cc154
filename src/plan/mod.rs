//! The plan: what to bypass and what to prune.
