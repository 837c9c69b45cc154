"""Trials of a search space, for other optimisers.

    >>> def objective(trial):
    ...     values = {"down": trial.suggest_float("down", 0.1, 0.8), "w": trial.suggest_float("w", 1, 2)}
    ...     return crdiff.search.trial("sd15-onnx", "space.yaml", values).score
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from crdiff import _crdiff
from crdiff._compiler import _plain
from crdiff._engine import Memory, Provider, engine_options
from crdiff._report import Record

__all__ = ["Trial", "Trials", "trial"]

Space = str | os.PathLike[str] | dict[str, Any]


class Trial(Record):
    """The result of a trial.

    Attributes:
        score: over all images; -2 if one of them failed.
        scores: each image's, if none failed.
        metrics: means of the objective's parts and of the metrics.
        failed: why it failed, or `None`.
        plan: the plan that was tried.
        values: the value of each variable.
    """

    score: float
    plan: Any
    values: Any

    @property
    def scores(self) -> list[float]:
        scores: list[float] = self._data.get("scores", [])
        return scores

    @property
    def metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = self._data.get("metrics", {})
        return metrics

    @property
    def failed(self) -> str | None:
        return self._data.get("failed")


class Trials:
    """A search space on a pipeline, whose networks stay loaded from trial to trial: `Trials("sd15-onnx", "space.yaml")(values)`.

    Args:
        pipeline: the pipeline's folder.
        space: as for `crdiff search`: a file, a YAML text, or a dict. Its strategy, budget and confirmation don't matter
            here. Paths in a text or a dict start from the working folder.
        prompts: draw these instead of the space's prompts.
        device, providers, provider_options, provider_libraries, engine, library, memory, threads: as in `Pipeline`.

    Raises:
        SpaceError: the space is wrong.
        PlanError: the space's plan does not fit the network.
        ModelError: the folder is no pipeline, or a file in it is wrong.
    """

    def __init__(
        self,
        pipeline: str | os.PathLike[str],
        space: Space,
        *,
        prompts: Sequence[str] = (),
        device: str | None = None,
        providers: Sequence[Provider] | None = None,
        provider_options: Mapping[str, Any] | None = None,
        provider_libraries: Mapping[str, str | os.PathLike[str]] | None = None,
        engine: str | None = None,
        library: str | os.PathLike[str] | None = None,
        memory: Memory = "fast",
        threads: int | None = None,
    ):
        self._native = _crdiff.Trials.open(
            pipeline,
            _place(space),
            prompts=list(prompts),
            engine=engine_options(
                engine, library, providers, memory, threads, device, provider_options, provider_libraries
            ),
        )

    def __call__(self, values: Mapping[str, Any]) -> Trial:
        """Draws and scores the space's images with the plan that `values` make. Calls from several threads take turns.

        Args:
            values: a value for each variable: a number, a text, or for modules a list of paths.

        Raises:
            ValueError: a value is missing or outside its variable.
        """
        return Trial(json.loads(self._native.run(json.dumps(dict(values), default=_plain))))


def _place(space: Space) -> Any:
    if isinstance(space, dict):
        return json.dumps(space, default=_plain), os.getcwd()
    if isinstance(space, str) and ("\n" in space or space.lstrip().startswith(("{", "version:"))):
        return space, os.getcwd()
    return space


_open: tuple[str, Trials] | None = None


def trial(pipeline: str | os.PathLike[str], space: Space, values: Mapping[str, Any], **options: Any) -> Trial:
    """Tries one point of a space, as `Trials(pipeline, space, **options)(values)` does.

    The space of the last call stays open, with its networks loaded, for the next call that names the same. A space that was
    changed since then is opened again under another name, or with `Trials`.
    """
    global _open
    key = repr((pipeline, space, sorted(options.items())))
    if _open is None or _open[0] != key:
        _open = None
        _open = (key, Trials(pipeline, space, **options))
    return _open[1](values)
