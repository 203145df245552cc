#!/bin/sh
# Runs all that a GPU does for omniquant, and prints a table to send back: out/device/device.md, with all numbers in device.json.
# Needs Python 3 with pip, and NVIDIA's driver. Options are those of `cargo xtask device`, such as --device cuda:1.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=python3
version() { "$1" -c 'import torch; print(torch.__version__.split("+")[0])' 2>/dev/null || true; }
if [ "$(version python3)" != @TORCH@ ]; then
    python=$here/python/bin/python
    if [ "$(version "$python")" != @TORCH@ ]; then
        echo "installing torch @TORCH@ into $here/python (some 3 GB)" >&2
        python3 -m venv "$here/python"
        "$python" -m pip install --quiet torch==@TORCH@
    fi
fi
torch=$("$python" -c 'import torch; print(torch.__path__[0])')
# Nothing names CUDA's part of libtorch, which registers itself when it is loaded.
export LD_LIBRARY_PATH="$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" LD_PRELOAD="$torch/lib/libtorch_cuda.so"
if [ -e "$torch/../nvidia/cu13/lib/libnvrtc.so.13" ]; then
    export OMNIQUANT_NVRTC="${OMNIQUANT_NVRTC:-$torch/../nvidia/cu13/lib/libnvrtc.so.13}"
fi
export @PREPARED@="$here"
exec "$here/bin/xtask" device "$@"
