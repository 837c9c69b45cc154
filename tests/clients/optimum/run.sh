#!/usr/bin/env bash
# Optimum's own pipelines, unchanged, with fused UNets in place of their unet/model.onnx, against torch.
#
#   tests/clients/optimum/run.sh                    in a virtual environment under target/, made where there is none
#   PYTHON=venv/bin/python tests/clients/optimum/run.sh   in an environment that has the pins of requirements.txt
#
# It needs the Rust toolchain and Python 3.11 with venv; the environment is torch with its CUDA wheels, several GB. That
# is why CI does not run this.
set -euo pipefail
cd "$(dirname "$0")/../../.."
here=tests/clients/optimum

if [ -z "${PYTHON:-}" ]; then
    venv=target/optimum_venv
    PYTHON=$venv/bin/python
    if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
        python3.11 -m venv --clear "$venv"
        "$PYTHON" -m pip install --quiet -r "$here/requirements.txt"
        cp "$here/requirements.txt" "$venv/installed.txt"
    fi
fi
if [ -z "${CRDIFF_COMPILE:-}" ]; then
    cargo build --release --locked --no-default-features --bin crdiff-compile
    CRDIFF_COMPILE=target/release/crdiff-compile
fi
exec "$PYTHON" "$here/check.py" "$CRDIFF_COMPILE"
