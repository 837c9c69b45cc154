"""The programs `crdiff` and `crdiff-compile`; `python -m crdiff ...` is `crdiff ...`."""

import signal
import sys

from crdiff import _crdiff
from crdiff._onnxruntime import look_for_onnxruntime


def crdiff() -> None:
    # As in a program of its own: Ctrl-C ends what doesn't handle it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    look_for_onnxruntime()
    sys.exit(_crdiff.crdiff(["crdiff", *sys.argv[1:]]))


def crdiff_compile() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_crdiff.crdiff_compile(["crdiff-compile", *sys.argv[1:]]))


if __name__ == "__main__":
    crdiff()
