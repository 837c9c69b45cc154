//! Samplers, random numbers and pipelines.
