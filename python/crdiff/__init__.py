"""Compiles, verifies and runs plans for diffusion networks exported to ONNX: CR-Diff and other changes that need no training.

    >>> import crdiff
    >>> plan = {"version": 1, "rules": [{"bypass": "mid_block.attentions.0"}]}
    >>> report = crdiff.compile("unet.onnx", plan)
    >>> report.outputs[0].path
    'unet.pruned.onnx'
    >>> crdiff.verify("unet.onnx", "unet.pruned.onnx", plan).proven
    True

Functions take models as files or bytes, and plans as files, YAML text or dicts. They release the GIL, Ctrl-C stops them, and
their results are what the program `crdiff` prints as JSON. Warnings go to the logger `crdiff`.
"""

from crdiff._crdiff import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crdiff._compiler import *
    from crdiff._errors import *
    from crdiff._pipeline import *
    from crdiff._report import *
else:

    def __getattr__(name):
        # The programs need nothing of the library, and a shell waits for them to start.
        names = globals()
        if "__all__" not in names and (name == "__all__" or not name.startswith("_")):
            from crdiff import _compiler, _errors, _pipeline, _report

            names["__all__"] = ["__version__"]
            for module in (_compiler, _errors, _pipeline, _report):
                names["__all__"] += module.__all__
                names.update((each, getattr(module, each)) for each in module.__all__)
            return __getattr__(name)
        try:
            return names[name]
        except KeyError:
            raise AttributeError(f"module 'crdiff' has no attribute {name!r}") from None

    def __dir__():
        __getattr__("__all__")
        return sorted(globals())
