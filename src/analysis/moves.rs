//! Operators that only move elements, and chains of them that leave every element where it was.

use super::shapes::{Shape, Shapes};
use crate::ir::{Graph, Node, ValueId};

/// An operator that moves elements.
#[derive(Clone, Debug)]
pub(super) enum Move {
    /// A Transpose.
    Permute(Vec<i64>),
    /// From one shape to another; row-major order stays.
    Reshape(Shape, Shape),
}

/// Returns the move that `node` makes, from its operand 0 to its result. `None` if it is no such operator, or its
/// shapes are not known.
pub(super) fn of(shapes: &Shapes, node: &Node) -> Option<Move> {
    let (operand, result) = (node.input(0)?, node.output(0)?);
    if node.is("Transpose") {
        let rank = shapes.of(operand)?.dims.len() as i64;
        return Some(Move::Permute(
            node.ints("perm").map_or_else(|| (0..rank).rev().collect(), <[i64]>::to_vec),
        ));
    }
    let reshapes = ["Reshape", "Squeeze", "Unsqueeze", "Flatten"].iter().any(|op| node.is(op));
    reshapes.then(|| Some(Move::Reshape(shapes.of(operand)?.clone(), shapes.of(result)?.clone())))?
}

/// Returns whether `node` yields its operand 0 as it is.
pub(super) fn changes_nothing(shapes: &Shapes, node: &Node) -> bool {
    let same_type = || {
        let types = (node.input(0), node.output(0));
        let (Some(from), Some(to)) = types else { return false };
        shapes.data_type(from).is_some() && shapes.data_type(from) == shapes.data_type(to)
    };
    node.is("Identity") || (node.is("Cast") && same_type())
}

/// Returns the value that `value` is before operators that only move elements, back to `from` at most, and those
/// operators in the order of the graph. `None` if the shape of one of them is not known.
pub(super) fn before(
    graph: &Graph,
    shapes: &Shapes,
    mut value: ValueId,
    from: Option<ValueId>,
) -> Option<(ValueId, Vec<Move>)> {
    let mut moves = Vec::new();
    while Some(value) != from
        && let Some(node) = graph.producer(value).map(|p| graph.node(p))
        && let Some(operand) = node.input(0)
    {
        if !changes_nothing(shapes, node) {
            let moving = ["Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"];
            if !moving.iter().any(|op| node.is(op)) {
                break;
            }
            moves.push(of(shapes, node)?);
        }
        value = operand;
    }
    moves.reverse();
    Some((value, moves))
}

/// Returns whether `moves`, one after another, leave every element where it was.
pub(super) fn cancel(moves: impl IntoIterator<Item = Move>) -> bool {
    let mut left: Vec<Move> = Vec::new();
    for next in moves {
        let merged = match (left.pop(), next) {
            (Some(Move::Permute(a)), Move::Permute(b)) => {
                let through = |i: &i64| a.get(usize::try_from(*i).ok()?).copied();
                let Some(both) = b.iter().map(through).collect() else { return false };
                Move::Permute(both)
            }
            (Some(Move::Reshape(from, _)), Move::Reshape(_, to)) => Move::Reshape(from, to),
            (Some(other), next) => {
                left.push(other);
                next
            }
            (None, next) => next,
        };
        let nothing = match &merged {
            Move::Permute(perm) => perm.iter().enumerate().all(|(i, p)| *p == i as i64),
            Move::Reshape(from, to) => from.dims == to.dims,
        };
        if !nothing {
            left.push(merged);
        }
    }
    left.is_empty()
}
