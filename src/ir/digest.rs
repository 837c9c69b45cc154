//! A digest that names a model without reading its weights.

use sha2::{Digest, Sha256};

use super::Graph;
use crate::hex::hex;

impl Graph {
    /// Returns the SHA-256, in hex, of the graph's structure as the file has it: nodes, inputs, outputs, and name, type
    /// and dimensions of every initializer, but no weights. It identifies the model that a graph was compiled from; it
    /// does not tell two trainings of one architecture apart.
    pub fn structure_digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (_, node) in self.nodes() {
            add(&node.raw);
        }
        for io in self.inputs().chain(self.outputs()) {
            add(&io.raw);
        }
        for (_, initializer) in self.initializers() {
            let header = &initializer.header;
            add(header.name.as_bytes());
            add(&header.data_type.0.to_le_bytes());
            add(&header.dims.iter().flat_map(|d| d.to_le_bytes()).collect::<Vec<u8>>());
        }
        hex(&hash.finalize())
    }
}
