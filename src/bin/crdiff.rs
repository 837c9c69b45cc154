//! `crdiff SUBCOMMAND`

use std::process::ExitCode;

fn main() -> ExitCode {
    crdiff::cli::crdiff()
}
