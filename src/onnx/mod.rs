//! The wire boundary: everything that knows that ONNX is protobuf.
//!
//! A model is opened by mapping it. Its two outer messages, `ModelProto` and `GraphProto`, are split into their
//! fields, and each field keeps the exact bytes it came in, so whatever is not edited goes out as it came:
//! unknown fields, field order, formatting. Weights are never read here, only located.

mod calls;
mod check;
mod error;
mod external;
mod foreign;
mod open;
mod schema;
pub mod tensor;
#[doc(hidden)]
pub mod text;
mod value_info;
pub mod wire;
mod write;

pub use calls::Calls;
pub(crate) use calls::read_through;
pub use check::{Unknown, check};
pub use error::OnnxError;

pub use external::{DataFile, DataFiles};
pub use open::{GraphSource, Source, graph_field, model_field, open, open_bytes};
pub use tensor::{DataType, ExternalRange, Payload, TensorHeader};
pub(crate) use value_info::stated_shape;
pub use value_info::{Dimension, ValueInfo};
pub use write::{
    WeightPolicy, WriteOptions, Written, can_share, external_files, open_with_weights, write, write_all,
};
pub(crate) use write::{
    files::{Pending, Taken, place},
    temporary,
};

/// Messages of the ONNX schema (`proto/onnx.proto`), as prost makes them; byte fields are slices of the map.
/// They are no part of the API.
#[doc(hidden)]
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}
