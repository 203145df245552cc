"""Starts omniquant, on the libraries of the torch that is installed."""

import importlib.util
import os
import sys

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "omniquant")


def main():
    # Looked for, not imported: that would take seconds.
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        sys.exit("omniquant: torch is not installed for this Python; install the one that `pip show omniquant` requires")
    libraries = [os.path.join(os.path.dirname(torch.origin), "lib"), os.environ.get("LD_LIBRARY_PATH")]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    # A part of torch for CUDA, which only the CUDA kernels need.
    compiler = os.path.join(os.path.dirname(torch.origin), "..", "nvidia", "cu13", "lib", "libnvrtc.so.13")
    if os.path.exists(compiler):
        os.environ.setdefault("OMNIQUANT_NVRTC", compiler)
    os.execv(PROGRAM, ["omniquant", *sys.argv[1:]])
