//! The equations of Einsum, as far as attentions have them: two operands, one letter an axis.

use crate::ir::Node;

/// `bij,bjd->bid`, in letters.
pub(super) struct Equation {
    pub operands: [Vec<char>; 2],
    pub result: Vec<char>,
}

impl Equation {
    /// Returns the equation of an Einsum node; `None` for one of another form.
    pub fn of(node: &Node) -> Option<Self> {
        let text: String = node.string("equation")?.chars().filter(|c| !c.is_whitespace()).collect();
        let (operands, result) = text.split_once("->")?;
        let (a, b) = operands.split_once(',')?;
        let letters = |text: &str| -> Option<Vec<char>> {
            text.chars().map(|c| c.is_ascii_alphabetic().then_some(c)).collect()
        };
        Some(Self { operands: [letters(a)?, letters(b)?], result: letters(result)? })
    }

    /// Returns the axis of the result that comes from operand `slot` alone.
    pub fn axis_of(&self, slot: usize) -> Option<usize> {
        let (own, other) = (self.operands.get(slot)?, self.operands.get(1 - slot)?);
        self.result.iter().position(|c| own.contains(c) && !other.contains(c))
    }

    /// Returns the one letter that is summed over.
    pub fn summed(&self) -> Option<char> {
        let [a, b] = &self.operands;
        let mut summed = a.iter().filter(|c| b.contains(c) && !self.result.contains(c));
        summed.next().copied().filter(|_| summed.next().is_none())
    }

    /// Returns whether the result is operand `slot` where the other operand is the identity matrix: the letter that is
    /// summed over stands in `slot` where the result has the other operand's.
    pub fn keeps(&self, slot: usize) -> bool {
        let (Some(own), Some(other)) = (self.operands.get(slot), self.operands.get(1 - slot)) else {
            return false;
        };
        let summed = |c: &char| other.contains(c) && !self.result.contains(c);
        let given = |c: &char| other.contains(c) && !own.contains(c);
        own.len() == self.result.len()
            && own.iter().zip(&self.result).all(|(a, b)| a == b || (summed(a) && given(b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equation(a: &str, b: &str, result: &str) -> Equation {
        let letters = |text: &str| text.chars().collect();
        Equation { operands: [letters(a), letters(b)], result: letters(result) }
    }

    #[test]
    fn probabilities_times_values() {
        assert!(equation("bij", "bjd", "bid").keeps(1));
        assert!(equation("bts", "bcs", "bct").keeps(1));
        assert!(!equation("bij", "bjd", "bdi").keeps(1));
        assert_eq!(equation("bts", "bcs", "bct").axis_of(1), Some(1));
        assert_eq!(equation("bij", "bjd", "bid").axis_of(1), Some(2));
    }
}
