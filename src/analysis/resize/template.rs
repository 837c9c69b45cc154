//! Templates that resize images.

use super::Filter;
use crate::{
    analysis::{
        Analysis,
        shapes::{Dim, bind_sizes},
        skip::Illegal,
    },
    ir::{
        Template, TemplateOperand, ValueId, float_attribute, int_attribute, ints_attribute, string_attribute,
    },
};

/// The operator set from which on the operands of a Resize can be left out.
const RESIZE_WITHOUT_SCALES: i64 = 13;

/// A new height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSize {
    /// `(size * multiply + add) / divide`, rounded down.
    Part {
        /// The factor.
        multiply: i64,
        /// The summand.
        add: i64,
        /// The divisor.
        divide: i64,
    },
    /// The one that latents of this size lead to.
    Latents {
        /// Rows.
        height: i64,
        /// Columns.
        width: i64,
    },
}

/// Adds what makes `value` an image of these sizes, each a vector of one integer.
pub(super) fn resized(
    template: &mut Template,
    value: ValueId,
    [height, width]: [TemplateOperand; 2],
    filter: Filter,
) {
    let shape = template.add("Shape", [TemplateOperand::Value(value)], Vec::new());
    let [from, to] = [0, 2].map(|at| TemplateOperand::ints(&[at]));
    let lead = template.add("Slice", [shape, from, to], Vec::new());
    let sizes = template.add("Concat", [lead, height, width], vec![int_attribute("axis", 0)]);
    let (mode, place) = match filter {
        Filter::Nearest => ("nearest", "asymmetric"),
        Filter::Linear => ("linear", "half_pixel"),
        Filter::Cubic | Filter::Average => ("cubic", "half_pixel"),
    };
    let mut attributes =
        vec![string_attribute("coordinate_transformation_mode", place), string_attribute("mode", mode)];
    match filter {
        Filter::Nearest => attributes.push(string_attribute("nearest_mode", "floor")),
        Filter::Linear => {}
        Filter::Cubic | Filter::Average => attributes.push(float_attribute("cubic_coeff_a", -0.75)),
    }
    let operands = [TemplateOperand::Value(value), TemplateOperand::Absent, TemplateOperand::Absent, sizes];
    template.add("Resize", operands, attributes);
}

impl Analysis<'_> {
    /// Returns what makes `value` an image of the size `new`.
    pub(super) fn entered(&self, value: ValueId, new: NewSize, filter: Filter) -> Result<Template, Illegal> {
        self.knows_resize()?;
        let name = &self.graph.value(value).name;
        let no_image = || Illegal::new(format!("`{name}` has no height and width"));
        let dims = &self.shapes.of(value).filter(|_| self.is_image(value)).ok_or_else(no_image)?.dims;
        let mut template = Template::default();
        let sizes = match new {
            NewSize::Part { multiply: 1, divide, .. } if filter == Filter::Average => {
                let kernel = vec![divide; 2];
                let attributes = vec![
                    int_attribute("ceil_mode", 1),
                    ints_attribute("kernel_shape", kernel.clone()),
                    ints_attribute("strides", kernel),
                ];
                template.add("AveragePool", [TemplateOperand::Value(value)], attributes);
                return Ok(template);
            }
            NewSize::Part { multiply, add, divide } => [2, 3].map(|axis| {
                let mut size = template.sizes(value, axis);
                for (op, number, neutral) in [("Mul", multiply, 1), ("Add", add, 0), ("Div", divide, 1)] {
                    if number != neutral {
                        size = template.add(op, [size, TemplateOperand::ints(&[number])], Vec::new());
                    }
                }
                size
            }),
            NewSize::Latents { height, width } => {
                let bound = bind_sizes(self.graph, 1, height, width, 1);
                let lookup = |name: &str| bound.iter().find(|(of, _)| of == name).map(|(_, size)| *size);
                let mut sizes = Vec::new();
                for dim in dims.get(2..).unwrap_or_default() {
                    if dim.constant().is_some() {
                        return Err(Illegal::new("the graph is of one size alone: give it a `by`"));
                    }
                    let size = dim.evaluate(&lookup).filter(|size| *size > 0);
                    let size = size.ok_or_else(|| {
                        Illegal::new(format!("`{name}` has a size that no size of the latents tells: {dim}"))
                    })?;
                    sizes.push(TemplateOperand::ints(&[size]));
                }
                <[TemplateOperand; 2]>::try_from(sizes).map_err(|_| no_image())?
            }
        };
        resized(&mut template, value, sizes, filter);
        Ok(template)
    }

    /// Returns what gives `value` these sizes, by the inputs of the graph.
    pub(super) fn left(&self, value: ValueId, sizes: &[Dim], filter: Filter) -> Option<Template> {
        let [height, width] = sizes else { return None };
        let mut template = Template::default();
        let [height, width] = [height, width].map(|size| size.expressed(self.graph, &mut template));
        resized(&mut template, value, [height?, width?], filter);
        Some(template)
    }

    fn knows_resize(&self) -> Result<(), Illegal> {
        match self.graph.opset("") {
            Some(opset) if opset >= RESIZE_WITHOUT_SCALES => Ok(()),
            _ => Err(Illegal::new(format!(
                "a Resize to given sizes needs operator set {RESIZE_WITHOUT_SCALES} or later"
            ))),
        }
    }
}
