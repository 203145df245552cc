"""mlx-lm on the CPU. `error` is that in f32, and `as_is` that in the types of the file: with f16 scales, mlx adds up in f16."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

from common import difference, main

mx.set_default_device(mx.cpu)


def logits_of(model, ids):
    """[t, vocab]."""
    return np.array(model(mx.array([ids]))[0].astype(mx.float32))


def compare(job, ids, ours):
    model, _ = load_model(Path(job["path"]))
    as_is = logits_of(model, ids)
    model.set_dtype(mx.float32)
    kernels = {type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj")}
    return {"error": difference(logits_of(model, ids), ours), "as_is": difference(as_is, ours), "path": ", ".join(sorted(kernels))}


if __name__ == "__main__":
    main(compare)
