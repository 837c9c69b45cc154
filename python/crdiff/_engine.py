"""How engines are asked for, and arrays on their way to them and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from crdiff._onnxruntime import look_for_onnxruntime

Provider = str | tuple[str, Mapping[str, Any]]
Memory = Literal["fast", "low"]
Compiled = Literal["cache", "beside"]


def engine_options(
    engine: str | None,
    library: str | os.PathLike[str] | None,
    providers: Sequence[Provider] | None = None,
    memory: Memory = "fast",
    threads: int | None = None,
    device: str | None = None,
    provider_options: Mapping[str, Any] | None = None,
    provider_libraries: Mapping[str, str | os.PathLike[str]] | None = None,
) -> dict[str, Any]:
    """Returns the arguments that choose an engine."""
    look_for_onnxruntime()
    if memory not in ("fast", "low"):
        raise ValueError(f"memory must be 'fast' or 'low', not {memory!r}")
    if isinstance(providers, str):
        raise TypeError(f"providers is a list: [{providers!r}]")
    named = None
    if providers is not None:
        pairs = [(provider, {}) if isinstance(provider, str) else provider for provider in providers]
        named = [(name, dict(_texts(options))) for name, options in pairs]
    return {
        "engine": engine,
        "library": library,
        "device": device,
        "providers": named,
        "provider_options": _texts(provider_options or {}),
        "provider_libraries": list((provider_libraries or {}).items()),
        "memory": memory,
        "threads": threads,
    }


def _texts(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in options.items()]


def array(value: Any, what: str) -> tuple[list[int], bytes]:
    """Returns the dimensions and the float32 elements of an array of numpy, or of anything that becomes one."""
    import numpy as np

    try:
        if hasattr(value, "__array__") or not hasattr(value, "__dlpack__"):
            found = np.asarray(value)
        else:
            found = np.from_dlpack(value)
        found = np.asarray(found, dtype=np.float32, order="C")
    except (TypeError, ValueError, BufferError) as error:
        raise TypeError(f"{what} must be an array of numbers in the host's memory: {error}") from error
    return list(found.shape), found.tobytes()


def optional_array(value: Any, what: str) -> tuple[list[int], bytes] | None:
    """Does the same, or nothing for `None`."""
    return None if value is None else array(value, what)


def from_native(made: tuple[list[int], bytes]) -> Any:
    """Returns an array of numpy of these dimensions and float32 elements."""
    import numpy as np

    dims, elements = made
    return np.frombuffer(elements, dtype="<f4").reshape(dims).copy()
