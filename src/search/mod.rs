//! Search for plans.
