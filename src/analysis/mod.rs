//! Read-only facts about a graph: shapes, modules, skip paths, weights.
