"""transformers, with what an environment adds to it: compressed-tensors and gguf, or gptqmodel, optimum and auto-round. f32 on the CPU,
but for plain weights beside auto-round, which multiplies packed ones in f16."""

import os
import sys
from pathlib import Path

# gptqmodel compiles some of its products, for half a minute each.
os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1")

import torch
from transformers import AutoModelForCausalLM

from common import difference, main


def compare(job, ids, ours):
    path = Path(job["path"])
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    half = folder.name == "dense" and Path(sys.argv[1]).stem == "auto-round"
    dtype = torch.float16 if half else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager", **where)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    kernels = {type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj")}
    return {"error": difference(logits, ours), "path": ", ".join(sorted(kernels))}


if __name__ == "__main__":
    main(compare)
