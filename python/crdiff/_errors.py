"""The exceptions of the package."""

from __future__ import annotations

from typing import Any

__all__ = ["EngineError", "Error", "ModelError", "NotLegal", "PlanError", "SpaceError"]


class Error(Exception):
    """The base of this package's errors. `str()` says what is wrong, where, and what would be right, as `crdiff` does.

    Attributes:
        path: the file that it is about, or `None`.
    """

    path: str | None

    def __init__(self, message: str, *, path: str | None = None):
        super().__init__(message)
        self.path = path


class EngineError(Error, RuntimeError):
    """An engine that is not there, or a network that it cannot load or run."""


class ModelError(Error, ValueError):
    """A model that cannot be read, or an output that cannot be written."""


class PlanError(Error, ValueError):
    """A plan that is wrong, or does not fit the model.

    `str()` shows every problem on the lines of the plan that it comes from. The attributes are of the first one.

    Attributes:
        path: the plan's file; the name that it was given for a plan from text or a dict.
        line: the line, from 1, or `None` for a problem of the whole file. The lines of a dict are those of its JSON.
        column: the column, from 1, in characters.
        code: which kind of problem it is, such as `plan::no_match`.
        help: what would be right, or `None`.
        problems: all of them, as dicts with `code`, `message`, `line`, `column` and `help`.
    """

    line: int | None
    column: int | None
    code: str | None
    help: str | None
    problems: list[dict[str, Any]]

    def __init__(self, message: str, *, path: str | None = None, problems: list[dict[str, Any]] | None = None):
        super().__init__(message, path=path)
        self.problems = problems or []
        first = self.problems[0] if self.problems else {}
        self.line, self.column = first.get("line"), first.get("column")
        self.code, self.help = first.get("code"), first.get("help")


class NotLegal(PlanError):
    """A plan that asks for something that cannot be done to this model, such as a bypass that would change a shape."""


class SpaceError(Error, ValueError):
    """A search space that is wrong, or does not fit the model. `str()` shows the lines."""
