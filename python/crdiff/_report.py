"""Results: the JSON of the command line as objects."""

from __future__ import annotations

import json
from typing import Any

from crdiff import _crdiff

__all__ = ["CompareReport", "CompileReport", "DiffReport", "ModelReport", "Record", "VerifyReport"]


def _wrap(value: Any) -> Any:
    if isinstance(value, dict):
        return Record(value)
    if isinstance(value, list):
        return [_wrap(item) for item in value]
    return value


class Record:
    """An object whose attributes are the keys of a JSON object; objects in it are records too."""

    _data: dict[str, Any]

    def __init__(self, data: dict[str, Any]):
        self.__dict__["_data"] = data

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON object that the command line prints, as dicts and lists. Changing it changes nothing here."""
        copy: dict[str, Any] = json.loads(json.dumps(self._data))
        return copy

    def __getattr__(self, name: str) -> Any:
        try:
            return _wrap(self.__dict__["_data"][name])
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(self._data)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("results cannot be changed; `to_dict` makes a copy that can")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._data]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self._data == other._data

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return (Record, (self._data,))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={_short(value)}' for key, value in self._data.items())})"


def _short(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"<{len(value)}>"
    return repr(value)


class _Report(Record):
    """A whole result. `str()` is what the command line prints."""

    _native: _crdiff.Report

    def __init__(self, native: _crdiff.Report):
        super().__init__(json.loads(native.json))
        self.__dict__["_native"] = native

    def __str__(self) -> str:
        return self._native.text

    def to_html(self) -> str | None:
        """Returns the page for a browser that the command line's `--html` writes, or `None` where it has none.

        The models are read once more, so they must still be where they were.
        """
        return self._native.html()

    def _repr_html_(self) -> str:
        import html

        page = None
        try:
            page = self.to_html()
        except Exception:  # The models may be gone. A notebook is shown what is left.
            pass
        if page is None:
            return f"<pre>{html.escape(str(self))}</pre>"
        frame = 'sandbox="allow-scripts" style="border: 0; width: 100%; height: 720px"'
        return f'<iframe {frame} srcdoc="{html.escape(page)}"></iframe>'


class _Verdict(_Report):
    """The result of a check. It is true if what was asked holds.

    Attributes:
        holds: whether it does.
        verdict: the same in words.
        summary: pairs of what was counted and how much of it there is, as texts.
        findings: what was found, each with `message`, `severity`, and where known `module`, `node`, `tensor`, `plan`
            (`file`, `line`, `column`) and `help`.
    """

    holds: bool
    verdict: str
    summary: Any
    findings: list[Any]

    def __bool__(self) -> bool:
        return self._native.holds


class VerifyReport(_Verdict):
    __doc__ = _Verdict.__doc__

    @property
    def proven(self) -> bool:
        """Whether the compiled model is the original plus the plan."""
        return bool(self)


class DiffReport(_Verdict):
    __doc__ = _Verdict.__doc__

    @property
    def same(self) -> bool:
        """Whether the models are the same, up to names and order."""
        return bool(self)


class CompareReport(_Verdict):
    __doc__ = _Verdict.__doc__

    @property
    def within(self) -> bool:
        """Whether every output is within its tolerance."""
        return bool(self)


class CompileReport(_Report):
    """The report of a compilation.

    Attributes:
        model: the model's file.
        emit: which graph was made.
        plan: its `path` and `digest`.
        outputs: the graphs that were written, each with `path`, `emit`, `nodes`, `identical`.
        changes: what was done to modules.
        lora: what was merged, by rule, with `file`, `digest`, `scale`, `tensors`, `weights` and
            `modules`.
        prune: what was masked, by rule, with `threshold`, `zeros` and `per_tensor`.
        weights: where the output's weights are: `policy`, `bytes_written`, `bytes_shared`, `files`.
        graph: `nodes_before`, `nodes_after`, `parameters_before` and so on.
        notes: what else should be known.
        onnx: the compiled model, where the model was given as bytes and no output was named; else `None`.
    """

    model: str
    emit: str
    plan: Any
    outputs: list[Any]
    changes: list[Any]
    lora: list[Any]
    prune: list[Any]
    weights: Any
    graph: Any
    notes: list[str]
    onnx: bytes | None

    def __init__(self, native: _crdiff.Report, onnx: bytes | None):
        super().__init__(native)
        self.__dict__["onnx"] = onnx


class ModelReport(_Report):
    """The modules of a model that a plan can name.

    Attributes:
        model: the model's file.
        layout: whose names its modules have.
        nodes, parameters, opset: counts, and the version of ONNX's operators.
        modules: each with `path`, `depth`, `kind`, `nodes`, `parameters`, `bypassable`, `reason`, `prunable`.
    """

    model: str
    layout: str
    nodes: int
    parameters: int
    opset: int | None
    modules: list[Any]
