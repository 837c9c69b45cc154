//! `crdiff-compile MODEL PLAN`

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    crdiff::cli::crdiff_compile(std::env::args_os()).into()
}
