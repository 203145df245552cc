"""mistral.rs on the CPU. It takes text and gives the 20 likeliest tokens after it: their log-probabilities are compared, at a few lengths."""

import os
import tempfile
from pathlib import Path

os.environ["MISTRALRS_CPU_KV_F32"] = "1"

import numpy as np
from mistralrs import ChatCompletionRequest, ModelDType, Runner, Which
from tokenizers import Tokenizer

from common import main

TOP = 20
LENGTHS = (8, 16, 32)


def runner(path):
    """A directory, or a GGUF file that has its tokenizer inside."""
    if path.suffix == ".gguf":
        which = Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
    else:
        which = Which.Plain(model_id=str(path), dtype=ModelDType.F32)
    # Log-probabilities come with chats alone: this template makes a chat of one message the message.
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
        template.write("{{ messages[0]['content'] }}")
        template.flush()
        return Runner(
            which=which, no_paged_attn=True, prefix_cache_n=0, token_source="none", jinja_explicit=template.name
        )


def compare(job, ids, ours):
    """The largest difference of log-probabilities, over the largest of them."""
    tokenizer = Tokenizer.from_file(job["tokenizer"])
    running, errors = runner(Path(job["path"])), []
    for length in LENGTHS:
        text = tokenizer.decode(ids[:length], skip_special_tokens=False)
        if tokenizer.encode(text, add_special_tokens=False).ids != ids[:length]:
            raise ValueError("the ids are not those of their text")
        request = ChatCompletionRequest(
            messages=[{"role": "user", "content": text}],
            model="default",
            logprobs=True,
            top_logprobs=TOP,
            max_tokens=1,
            temperature=0.0,
        )
        answer = running.send_chat_completion_request(request)
        if answer.usage.prompt_tokens != length:
            raise ValueError(f"it read {answer.usage.prompt_tokens} tokens, not {length}")
        row = ours[length - 1].astype(np.float64)
        row -= row.max() + np.log(np.exp(row - row.max()).sum())
        found = {top.token: top.logprob for top in answer.choices[0].logprobs.content[0].top_logprobs}
        if len(found) < TOP:
            raise ValueError(f"it gave {len(found)} tokens")
        errors.append(max(abs(row[token] - logprob) for token, logprob in found.items()) / abs(row).max())
    return {"error": float(max(errors))}


if __name__ == "__main__":
    main(compare)
