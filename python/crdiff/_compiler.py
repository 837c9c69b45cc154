"""The commands that run no model."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from crdiff import _crdiff
from crdiff._engine import array, engine_options
from crdiff._report import CompareReport, CompileReport, DiffReport, ModelReport, VerifyReport

__all__ = ["Plan", "compare", "compile", "diff", "digest", "inspect", "print", "verify"]

log = logging.getLogger("crdiff")

Plan = _crdiff.Plan


class _Bar(Protocol):
    def update(self, n: int) -> Any: ...


class _Callback(Protocol):
    def __call__(self, stage: str, done: int) -> Any: ...


Model = str | os.PathLike[str] | bytes
PlanLike = str | os.PathLike[str] | dict[str, Any] | _crdiff.Plan
Progress = _Bar | _Callback | None
Emit = Literal[
    "pruned", "fused", "amplified", "dense", "cached", "cached-fused", "cached-amplified", "cached-dense"
]
PoaWeight = Literal["baked", "input"]
Weights = Literal["share", "copy", "compact"]
Size = tuple[int, int] | str | None


def as_plan(plan: PlanLike) -> _crdiff.Plan:
    """Returns the plan, given in any of its forms."""
    if isinstance(plan, _crdiff.Plan):
        return plan
    if isinstance(plan, dict):
        return _crdiff.Plan.parse("plan", json.dumps(plan, indent=2, default=_plain))
    if isinstance(plan, str) and ("\n" in plan or plan.lstrip().startswith(("{", "version:"))):
        return _crdiff.Plan.parse("plan", plan)
    return _crdiff.Plan.load(plan)


def _plain(value: Any) -> Any:
    """A number of numpy as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a plan has no place for {type(value).__name__}")


def as_progress(progress: Progress) -> Any:
    """Returns the function that is called with a stage and how much more of it is done."""
    if progress is None or not hasattr(progress, "update"):
        return progress
    described = None

    def advance(stage: str, done: int) -> None:
        nonlocal described
        if stage != described and hasattr(progress, "set_description"):
            described = stage
            progress.set_description(stage)
        progress.update(done)

    return advance


def as_size(at: Size) -> tuple[int, int] | None:
    """Returns height and width."""
    if isinstance(at, str):
        height, _, width = at.partition("x")
        try:
            return int(height), int(width or height)
        except ValueError:
            raise ValueError(f"{at!r} is not a size: write HEIGHTxWIDTH, such as '64x96', or (64, 96)") from None
    return at


def compile(
    model: Model,
    plan: PlanLike,
    output: str | os.PathLike[str] | None = None,
    *,
    emit: Emit = "pruned",
    poa_weight: PoaWeight = "baked",
    weights: Weights | None = None,
    at: Size = None,
    dry_run: bool = False,
    progress: Progress = None,
) -> CompileReport:
    """Compiles a model and a plan into a second model, as `crdiff compile` does.

    Args:
        model: the exported network: its file, or the content of one that has its weights inside. It is never changed.
        plan: a file, a YAML text, or a dict. A `str` is a text if it has a line break or begins with `version:` or `{`.
        output: the file to write. By default it is beside the model: `unet.pruned.onnx`, `.crdiff.onnx` (fused),
            `.amplified.onnx`, `.dense.onnx`. For a model that is content it is content too: `report.onnx`.
        emit: which graph to make. `"pruned"` has the plan's rules applied; `"fused"` has both networks and their mix,
            with the inputs and outputs of the original; `"amplified"` has the mix in its weights; `"dense"` has only what
            `always` changes. `"cached"`, `"cached-fused"` and so on are these as the two graphs that the plan's `cache`
            takes, in `unet.full.onnx` and `unet.shallow.onnx`, named after `output`.
        poa_weight: where a fused graph has its weight w from: `"baked"` is the plan's `amplify.weight`, `"input"` is an
            input called `poa_weight`, a float32 scalar.
        weights: `"share"` points at the model's weights, `"copy"` writes all, `"compact"` has nodes mask them when the
            model is loaded. By default weights are shared in the model's folder and copied elsewhere.
        at: height and width of latents (not pixels) at which multiply-accumulates are counted, for a batch of 1 and 77
            tokens: `(64, 64)` or `"64x64"`.
        dry_run: write nothing, and report what would be done.
        progress: called with the name of a stage and the bytes that it has done since the last call; or a `tqdm`, whose
            `update` and `set_description` are.

    Returns:
        What was done.

    Raises:
        PlanError: the plan is wrong or does not fit the model; `NotLegal` if it asks for what cannot be done.
        ModelError: the model cannot be read, or the output not be written. There is no output then.
    """
    native, onnx = _crdiff.compile(
        model,
        as_plan(plan),
        output,
        emit=emit,
        poa_weight=poa_weight,
        weights=weights,
        at=as_size(at),
        dry_run=dry_run,
        progress=as_progress(progress),
    )
    report = CompileReport(native, onnx)
    for written in report.outputs:
        log.info("%s: wrote %s, %d nodes", report.model, written.path or "content", written.nodes)
    for note in report.notes:
        log.warning("%s", note)
    return report


def verify(
    original: Model,
    compiled: Model,
    plan: PlanLike,
    *,
    emit: Emit | None = None,
    poa_weight: PoaWeight = "baked",
    per_row: bool = False,
    progress: Progress = None,
) -> VerifyReport:
    """Proves that a compiled model is exactly the original plus the plan, without running either.

    Args:
        original: the model that was compiled; its file or its content.
        compiled: what was made of it; its file or its content.
        plan: as in `compile`.
        emit: which graph it must be. By default it may be any that the plan can be compiled to; the report says which.
        poa_weight: where a fused graph must have its weight from, if `emit` is `"fused"`.
        per_row: whether, with `emit`, inputs of one element must have one for each row of the batch.
        progress: as in `compile`.

    Returns:
        The verdict, which is true if it is proven: `if crdiff.verify(...): deploy()`. `findings` are the differences.

    Raises:
        PlanError: the plan is wrong or does not fit the original.
        ModelError: a model cannot be read.
    """
    return VerifyReport(
        _crdiff.verify(
            original,
            compiled,
            as_plan(plan),
            emit=emit,
            poa_weight=poa_weight,
            per_row=per_row,
            progress=as_progress(progress),
        )
    )


def inspect(model: Model, *, depth: int | None = None, filter: str | None = None, at: Size = None) -> ModelReport:
    """Describes a model: the modules that a plan can name, and what can be done to them.

    Args:
        model: its file or its content.
        depth: only modules down to this depth.
        filter: only modules that this glob matches, as in plans: `"mid_block.**"`.
        at: height and width of latents for the page that a notebook shows, as in `compile`.

    Raises:
        ModelError: the model cannot be read.
        ValueError: `filter` is no glob.
    """
    return ModelReport(_crdiff.inspect(model, depth=depth, filter=filter, at=as_size(at)))


def diff(a: Model, b: Model, *, structure: bool = False, progress: Progress = None) -> DiffReport:
    """Finds what is different between two models, up to names and order, by module.

    Args:
        a: the first model; its file or its content.
        b: the second model.
        structure: don't compare weights, only their types and dimensions.
        progress: as in `compile`.

    Returns:
        The differences; the report is true if there are none.

    Raises:
        ModelError: a model cannot be read.
    """
    return DiffReport(_crdiff.diff(a, b, structure=structure, progress=as_progress(progress)))


def digest(model: Model, *, progress: Progress = None) -> dict[str, str]:
    """Returns two SHA-256 digests of a model, in hexadecimal: of its `structure`, and of structure and `weights`.

    Models have the same digests if `diff` finds nothing, whatever their names and the order of their nodes, and wherever
    their weights are.

    Raises:
        ModelError: the model cannot be read.
    """
    return _crdiff.digest(model, progress=as_progress(progress))


def print(model: Model, module: str | None = None, *, elements: int = 16) -> str:
    """Returns a graph, or a part of it, in ONNX's textual syntax.

    Args:
        model: its file or its content.
        module: only the modules that this glob matches, as in plans, and what is in them.
        elements: print the elements of tensors that have at most so many.

    Raises:
        ModelError: the model cannot be read.
        ValueError: `module` is no glob, or matches nothing.
    """
    return _crdiff.print(model, module=module, elements=elements)


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    sizes: Sequence[tuple[int, int] | str] = (),
    batch: int = 1,
    sequence: int = 77,
    seed: int = 0,
    atol: float | None = None,
    rtol: float | None = None,
    engine: str | None = None,
    library: str | os.PathLike[str] | None = None,
) -> CompareReport:
    """Runs two models on the same inputs, and compares their outputs.

    Args:
        a: the model whose outputs are expected.
        b: the model that is judged.
        inputs: arrays by the names of the models' inputs, or an .npz file. By default they are made to fit what the first
            model declares: standard normal numbers from a seed, timesteps between 1 and 999.
        sizes: heights and widths of the latents of made inputs, `(64, 96)` or `"64x96"`, a case for each.
        batch: the batch of made inputs.
        sequence: the text tokens of made inputs.
        seed: the seed of made inputs.
        atol, rtol: an output is close enough if its largest absolute difference is at most `atol + rtol * m`, where m is the
            largest absolute value expected. By default 1e-8, and what fits the models' float type: 1e-5 for float32.
        engine, library: as in `Pipeline`.

    Returns:
        The differences; the report is true if every output is close enough.

    Raises:
        ModelError: a model cannot be read.
        EngineError: the inputs don't fit a model, or it cannot be run.
        ValueError: the .npz file is none, or inputs cannot be made.
    """
    given: Any = inputs
    if isinstance(inputs, Mapping):
        given = [(name, array(value, name)) for name, value in inputs.items()]
    asked = {
        "inputs": given,
        "sizes": [as_size(size) for size in sizes],
        "batch": batch,
        "sequence": sequence,
        "seed": seed,
        "atol": atol,
        "rtol": rtol,
    }
    return CompareReport(_crdiff.compare(a, b, asked, engine=engine_options(engine, library)))
