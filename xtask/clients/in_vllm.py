"""vLLM on the CPU, f16. Logits of a prompt are those that it gives as `prompt_logprobs`."""

import gc
import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_NO_USAGE_STATS="1",
)

import numpy as np
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

from common import difference, main

# vLLM collects garbage nine times for each model, among all that it imported, which takes most of the time. Once is enough.
collect = gc.collect
gc.collect = lambda *_: 0


def logits_of(llm, ids):
    """[t, vocab]: each position of the prompt, the last one being that of the first new token."""
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, logprobs=-1, detokenize=False)
    [out] = llm.generate([{"prompt_token_ids": ids}], sampling, use_tqdm=False)
    rows = [*out.prompt_logprobs[1:], out.outputs[0].logprobs[0]]
    return np.array([[row[token].logprob for token in range(len(row))] for row in rows], np.float32)


def linears(llm):
    """Names of the classes that multiply."""
    model = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model
    names = set()
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            scheme = getattr(module, "scheme", None)
            kernel = getattr(scheme, "kernel", None) or scheme or getattr(module, "quant_method", None)
            names.add(type(kernel).__name__)
    return ", ".join(sorted(names))


def with_model(path, tokens, use, **settings):
    """What `use` makes of the model of a directory, which takes prompts of so many tokens."""
    llm = None
    try:
        llm = LLM(
            path,
            dtype="float16",
            enforce_eager=True,
            max_model_len=tokens + 8,
            skip_tokenizer_init=True,
            disable_log_stats=True,
            num_gpu_blocks_override=64,
            **settings,
        )
        return use(llm)
    finally:
        del llm
        cleanup_dist_env_and_memory()
        collect()


def compare(job, ids, ours):
    def use(llm):
        return {"error": difference(logits_of(llm, ids), ours), "path": linears(llm)}

    return with_model(job["path"], len(ids), use, max_logprobs=-1, logprobs_mode="raw_logits")


if __name__ == "__main__":
    main(compare)
