//! Sizes of latents as plans say them: `64x64`.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};

use crate::plan::{
    Located, Problem,
    read::wrong_type_help,
    yaml::{Node, Value},
};

/// A size of latents, not of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl Size {
    /// Reads `HxW`.
    pub(super) fn read(
        node: &Node,
        what: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Located<Self>> {
        let Value::Text(text) = &node.value else {
            let help = "write it as height x width in latents, such as 64x64";
            problems.push(wrong_type_help(node, what, "a size", help));
            return None;
        };
        let number = |text: &str| text.parse::<u32>().ok().filter(|size| *size > 0);
        let size = text
            .split_once('x')
            .and_then(|(height, width)| Some(Self { height: number(height)?, width: number(width)? }));
        if size.is_none() {
            let expected = "height x width in latents, such as 64x64".to_owned();
            let found = format!("`{text}`");
            problems.push(Problem::OutOfRange { what, expected, found, at: node.span });
        }
        size.map(|value| Located { value, span: node.span })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Size {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[1-9][0-9]*x[1-9][0-9]*$" })
    }
}
