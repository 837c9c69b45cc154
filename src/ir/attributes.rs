//! Setting attributes of nodes.

use prost::Message;

use super::{Attribute, EditError, Editor, NodeId, rename::NODE_ATTRIBUTE};
use crate::onnx::wire::{self, Field};

impl Editor<'_> {
    /// Gives `node` the attributes `set` in place of those of the same names. The others keep their bytes.
    ///
    /// # Errors
    /// [`EditError::Gone`] if the node was removed.
    pub fn set_attributes(&mut self, node: NodeId, set: &[Attribute]) -> Result<(), EditError> {
        let node = self.node_mut(node)?;
        let mut fields = wire::split(&node.raw)?;
        fields.retain(|field| field.number == NODE_ATTRIBUTE);
        let mut attributes = node.attributes.to_vec();
        for attribute in set {
            let field = Field::message(NODE_ATTRIBUTE, &attribute.0.encode_to_vec());
            let mut known = attributes.iter_mut().zip(&mut fields);
            if let Some(known) = known.find(|(known, _)| known.name() == attribute.name()) {
                (*known.0, *known.1) = (attribute.clone(), field);
            } else {
                attributes.push(attribute.clone());
                fields.push(field);
            }
        }
        node.raw = wire::replace_fields(&node.raw, NODE_ATTRIBUTE, &fields)?;
        node.attributes = attributes.into();
        Ok(())
    }
}
