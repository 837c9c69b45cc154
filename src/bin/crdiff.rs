//! `crdiff SUBCOMMAND`

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    crdiff::cli::crdiff(std::env::args_os()).into()
}
