"""The options that ONNX Runtime's CUDA and TensorRT providers take, found by asking them, without a GPU.

    pip install --no-deps --target FOLDER onnxruntime-gpu==1.31.1      # 250 MB
    python3 tests/engine/provider_options.py FOLDER > tests/engine/provider_options.json

Needs cc, nm and readelf. NVIDIA's libraries, which the providers are linked to, are stubs made here, whose functions all fail:
names of options need no more.
"""

import ctypes
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = 22
# Places in OrtApi, to which later versions only add.
GET_ERROR_MESSAGE, CREATE_ENV, GET_ALLOCATOR = 2, 3, 78
CREATE = {"cuda": 205, "tensorrt": 171}
UPDATE, AS_STRING = 1, 2  # counted from CREATE


def printed(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def stub(name):
    """A function that says that it failed, or what failed."""
    return f'char *{name}() {{ return "{name}"; }}\n' if name.endswith("String") else f"int {name}() {{ return 999; }}\n"


def stubs(libraries, folder):
    """Loads what `libraries` need of NVIDIA's, made of the names that they import."""
    needed, imported = set(), set()
    for library in libraries:
        needed.update(re.findall(r"NEEDED.*\[(lib(?:cu|nv)\S*)\]", printed("readelf", "-d", library)))
        imported.update(re.findall(r" U (\S+)", printed("nm", "-D", "--undefined-only", library)))
    # Versions of symbols are called as their libraries. Those of CUDA's driver and of TensorRT have none.
    plain = {name for name in imported if re.fullmatch(r"cu[A-Z]\w+|\w+_INTERNAL|getInferLibVersion|getPluginRegistry", name)}
    for library in needed:
        names = {name.partition("@")[0] for name in imported if name.endswith(f"@{library}")}
        source, script, made = folder / "stub.c", folder / "stub.map", folder / library
        source.write_text("".join(map(stub, sorted(names or plain))))
        versioned = "".join(f"{name}; " for name in sorted(names))
        script.write_text(f"{library} {{ global: {versioned} }};\n")
        command = ["cc", "-w", "-fno-builtin", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", made, source]
        subprocess.run(command + ([f"-Wl,--version-script,{script}"] if names else []), check=True)
        ctypes.CDLL(str(made), ctypes.RTLD_GLOBAL)


class Api:
    """ONNX Runtime's C interface."""

    def __init__(self, library):
        class Base(ctypes.Structure):
            _fields_ = [("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32))]

        self.library = ctypes.CDLL(str(library))
        self.library.OrtGetApiBase.restype = ctypes.POINTER(Base)
        base = self.library.OrtGetApiBase().contents
        self.table = ctypes.cast(base.get_api(VERSION), ctypes.POINTER(ctypes.c_void_p))

    def error(self, index, *arguments):
        status = ctypes.CFUNCTYPE(ctypes.c_void_p)(self.table[index])(*arguments)
        message = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(self.table[GET_ERROR_MESSAGE])
        return message(status).decode() if status else None

    def made(self, index, *arguments):
        found = ctypes.c_void_p()
        error = self.error(index, *arguments, ctypes.byref(found))
        return found if error is None else sys.exit(error)

    def takes(self, create, name):
        """Whether an option is known; its value may be wrong."""
        options = self.made(create)
        pair = [ctypes.byref(ctypes.c_char_p(text)) for text in (name.encode(), b"0")]
        error = self.error(create + UPDATE, options, *pair, ctypes.c_size_t(1))
        return error is None or "Unknown provider option" not in error


def main(packages):
    capi = packages / "onnxruntime/capi"
    [library] = capi.glob("libonnxruntime.so.*")
    api = Api(library)
    api.made(CREATE_ENV, 3, b"options")
    allocator = api.made(GET_ALLOCATOR)
    found = {"onnxruntime": library.name.removeprefix("libonnxruntime.so.")}
    with tempfile.TemporaryDirectory() as folder:
        stubs([capi / f"libonnxruntime_providers_{provider}.so" for provider in CREATE], Path(folder))
        for provider, create in CREATE.items():
            text = ctypes.c_char_p(api.made(create + AS_STRING, api.made(create), allocator).value).value.decode()
            listed = {pair.partition("=")[0] for pair in text.split(";")}
            # They don't list all that they know. Whatever may be a name in the library is tried.
            inside = (capi / f"libonnxruntime_providers_{provider}.so").read_bytes()
            names = {name.decode() for name in re.findall(rb"[a-z][a-z0-9]*_[a-z0-9_]+(?=\0)", inside)}
            assert not api.takes(create, "no_option")
            found[provider] = sorted(name for name in listed | names if api.takes(create, name))
            assert listed <= set(found[provider]), provider
    print(json.dumps(found, indent=1))


main(Path(sys.argv[1]))
