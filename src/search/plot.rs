//! A picture of a search.
