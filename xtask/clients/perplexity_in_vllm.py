"""vLLM's perplexity, on the CPU in f16, from the log-probabilities that it gives for the tokens of a prompt.

Each job has `path` (an exported directory), `text` (a file), `seqlen` and `windows`. A line has `perplexity`, over the first windows of
`seqlen` tokens, `tokens`, those of the whole text, and `path`, the classes that multiply; or `failed`.
"""

from pathlib import Path

import in_vllm  # sets vLLM's environment, so it comes first
import numpy as np
from tokenizers import Tokenizer
from vllm import SamplingParams

from common import each_job


def perplexity(job):
    tokenizer = Tokenizer.from_file(str(Path(job["path"]) / "tokenizer.json"))
    ids = tokenizer.encode(Path(job["text"]).read_text()).ids
    seqlen = job["seqlen"]
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)

    def use(llm):
        losses = []
        for window in range(job["windows"]):
            prompt = ids[window * seqlen : (window + 1) * seqlen]
            [out] = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
            losses += [-row[token].logprob for row, token in zip(out.prompt_logprobs[1:], prompt[1:], strict=True)]
        return {"perplexity": float(np.exp(np.mean(losses))), "tokens": len(ids), "path": in_vllm.linears(llm)}

    return in_vllm.with_model(job["path"], seqlen, use, logprobs_mode="raw_logprobs")


if __name__ == "__main__":
    each_job(perplexity)
