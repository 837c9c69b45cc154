//! Outputs of commands and of networks, and how far the latter are apart.

use std::process::Command;

/// Returns the output of a command, which must succeed.
pub fn printed(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    output.stdout
}

/// The largest difference, as a part of the range of what is expected; infinite where a value is not a number.
pub fn of_range(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let least = expected.iter().copied().fold(f32::INFINITY, f32::min);
    let most = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let off = |(a, b): (&f32, &f32)| match (a - b).abs() {
        difference if difference.is_nan() => f32::INFINITY,
        difference => difference,
    };
    found.iter().zip(expected).map(off).fold(0.0, f32::max) / (most - least)
}
