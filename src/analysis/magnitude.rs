//! Thresholds: the k-th smallest magnitude of a pool of weights.
