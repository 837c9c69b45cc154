//! The graph as the compiler works on it: dense arenas with typed ids, and explicit uses.
//!
//! A node keeps the bytes it came in; [`Editor`] is the only thing that changes a graph, and edits those bytes
//! surgically, so that what it doesn't touch (attributes, metadata, unknown fields) stays as it was.

mod attribute;
mod attributes;
mod check;
mod digest;
mod edit;
mod graph;
mod interface;
mod load;
mod masked;
mod names;
mod node;
mod rename;
mod stated;
mod symbol;
mod template;
mod weights;

use std::num::NonZeroU32;

pub use attribute::{Attribute, float_attribute, int_attribute, ints_attribute, string_attribute};
pub use check::CheckError;
pub use edit::{EditError, Editor, NodeSpec, Place};
pub(crate) use graph::Item;
pub use graph::{Graph, GraphIo, Initializer, Origin, Use, Value};
pub use masked::{count_masked, for_each_piece};
pub use node::Node;
pub use symbol::Symbol;
pub use template::{Template, TemplateNode, TemplateOperand, TemplateTensor};
pub use weights::{Elements, Masked, NewData, Transform, TransformRun, WeightReader};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(NonZeroU32);

        impl $name {
            /// Returns the id's place in the arena.
            pub fn index(self) -> usize {
                self.0.get() as usize - 1
            }

            pub(crate) fn new(index: usize) -> Self {
                Self(NonZeroU32::MIN.saturating_add(u32::try_from(index).unwrap_or(u32::MAX)))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), self.index())
            }
        }
    };
}

id!(
    /// A node of the top-level graph.
    NodeId
);
id!(
    /// A value of the top-level graph: a graph input, an initializer or a node's output.
    ValueId
);
id!(
    /// An initializer of the top-level graph.
    InitializerId
);
