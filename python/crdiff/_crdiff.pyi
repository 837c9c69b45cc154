"""The library, compiled. `crdiff` has what it offers, with documentation."""

import os
from typing import Any

__version__: str

class Plan:
    """A plan, parsed; give it to several calls."""

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Reads the plan in a file. Raises `PlanError`."""
    @staticmethod
    def parse(name: str, text: str) -> Plan:
        """Parses a plan's text, which errors call `name`. Raises `PlanError`."""
    @property
    def name(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def digest(self) -> str:
        """A SHA-256 of what the plan does, whatever its formatting."""

class Report:
    @property
    def json(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def holds(self) -> bool: ...
    def html(self) -> str | None: ...

def crdiff(arguments: list[str]) -> int: ...
def crdiff_compile(arguments: list[str]) -> int: ...
def look_for_onnxruntime_in(packages: str) -> None: ...
def compile(
    model: Any,
    plan: Plan,
    output: Any,
    *,
    emit: str,
    poa_weight: str,
    weights: str | None,
    at: tuple[int, int] | None,
    dry_run: bool,
    progress: Any,
) -> tuple[Report, bytes | None]: ...
def verify(
    original: Any, compiled: Any, plan: Plan, *, emit: str | None, poa_weight: str, per_row: bool, progress: Any
) -> Report: ...
def inspect(model: Any, *, depth: int | None, filter: str | None, at: tuple[int, int] | None) -> Report: ...
def diff(a: Any, b: Any, *, structure: bool, progress: Any) -> Report: ...
def digest(model: Any, *, progress: Any) -> dict[str, str]: ...
def print(model: Any, *, module: str | None, elements: int) -> str: ...
def one_graph(
    model: Any, plan: Plan, *, runtime_weight: bool, compiled: str, listener: Any
) -> tuple[str, float | None]: ...

class Pipeline:
    @staticmethod
    def open(
        folder: Any, plan: Plan | None, *, engine: dict[str, Any], compiled: str, listener: Any
    ) -> Pipeline: ...
    @property
    def engine(self) -> str: ...
    @property
    def default_size(self) -> tuple[int, int]: ...
    def run(self, asked: dict[str, Any], *, listener: Any) -> dict[str, Any]: ...

class Interleave:
    @staticmethod
    def open(
        model: Any, plan: Plan | None, *, engine: dict[str, Any], compiled: str, listener: Any
    ) -> Interleave: ...
    @property
    def engine(self) -> str: ...
    @property
    def weight(self) -> float | None: ...
    def call(self, fed: dict[str, Any], weight: float) -> tuple[list[int], bytes]: ...
