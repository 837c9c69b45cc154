//! `crdiff-compile MODEL PLAN`

use std::process::ExitCode;

fn main() -> ExitCode {
    crdiff::cli::crdiff_compile()
}
