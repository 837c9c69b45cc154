//! `crdiff._crdiff`: the library as Python calls it. Its users see `../crdiff`, which is written in Python on top of this:
//! arguments are checked and named there, and results are JSON here.

mod array;
mod compare;
mod compiler;
mod engine;
mod failure;
mod input;
mod interleave;
mod pipeline;
mod program;
mod report;
mod search;
mod work;

use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[pymodule]
fn _crdiff(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<input::Plan>()?;
    module.add_class::<report::Report>()?;
    pipeline::add(module)?;
    module.add_class::<interleave::Interleave>()?;
    module.add_class::<search::Trials>()?;
    program::add(module)?;
    compare::add(module)?;
    compiler::add(module)
}
