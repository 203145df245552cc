"""What all scripts of this folder share: a list of jobs in, one line of JSON a job out.

    python SCRIPT.py JOBS.json

Each job has `path` (an exported directory or file), `tokenizer` (its tokenizer.json), `ids` (safetensors with input_ids, integers [1, t])
and `ours` (safetensors with our logits, f32 [1, t, vocab]). A line has `error`, the largest difference over the largest magnitude, or `failed`, what the program said.
"""

import json
import sys
import time
import traceback

import numpy as np
from safetensors.numpy import load_file


# Tokens of the ids that are given to the program: later ones do not change the logits of earlier ones.
TOKENS = 32


def difference(logits, ours):
    """The largest difference over the largest magnitude of ours."""
    if logits.shape != ours.shape:
        raise ValueError(f"logits have the shape {list(logits.shape)}, not {list(ours.shape)}")
    if not np.isfinite(logits).all():
        raise ValueError("logits are not finite")
    return float(np.abs(logits - ours).max() / np.abs(ours).max())


def last_words(error):
    """The message of an exception, on one line and not longer than a table's row can be."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:297] + "..."


def each_job(answer):
    """Calls `answer(job)` for each job, which gives what goes into its line beside the time, and goes on past failures."""
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    # Programs write to the standard output too: lines of results go where it was.
    out, sys.stdout = sys.stdout, sys.stderr
    for job in jobs:
        start = time.time()
        try:
            line = answer(job)
        except Exception as error:  # noqa: BLE001, since a program may fail in any way
            traceback.print_exc()
            line = {"failed": last_words(error)}
        print(json.dumps({"seconds": round(time.time() - start, 1), **line}), file=out, flush=True)


def main(compare):
    """Calls `compare(job, ids, ours)` for each job."""

    def answer(job):
        ids = load_file(job["ids"])["input_ids"][0, :TOKENS].astype(int).tolist()
        return compare(job, ids, load_file(job["ours"])["logits"][0, :TOKENS].astype(np.float32))

    each_job(answer)
