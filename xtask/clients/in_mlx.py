"""mlx-lm on the CPU, in the types of the file."""

from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

from common import difference, main

mx.set_default_device(mx.cpu)


def compare(path, ids, ours):
    model, _ = load_model(Path(path))
    logits = np.array(model(mx.array([ids]))[0].astype(mx.float32))
    kernels = {type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj")}
    return {"error": difference(logits, ours), "path": ", ".join(sorted(kernels))}


if __name__ == "__main__":
    main(compare)
