//! Symbolic shapes of every value.
use crate::ir::ValueId;
/// placeholder until the branch lands
#[derive(Debug)]
pub struct Shapes;
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Agreement { Equal, EqualWhenDivisible { note: String }, Different { dim: usize }, Unknown }
#[allow(missing_docs)]
impl Shapes { pub fn of(&self, _: ValueId) -> Option<&String> { None } pub fn compare(&self, _: ValueId, _: ValueId) -> Agreement { Agreement::Equal } }
