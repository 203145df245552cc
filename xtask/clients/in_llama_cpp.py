"""llama.cpp, by the C interface of the libraries that node-llama-cpp brings (their folder is the second argument).

llama.cpp rounds activations to 8 bits before it multiplies them with quantized weights, so its logits are some percent away from those of
the same weights in f32. `error` is therefore that of the file after llama.cpp itself decoded it to f32, and `as_is` that of the file.
"""

import ctypes
import sys
import tempfile
from pathlib import Path

import numpy as np

from common import difference, main

LIBRARIES = Path(sys.argv[2])
F32 = 0  # LLAMA_FTYPE_ALL_F32, and GGML_TYPE_F32


class Parameters(ctypes.Structure):
    """Parameters of any kind, by 32-bit words. Longer than each of llama.cpp's structures: only their beginning is read and written."""

    _fields_ = [("words", ctypes.c_uint32 * 128)]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def log(level, text, _data):
    """Warnings and errors alone."""
    if level in (3, 4):
        said.append(text.decode(errors="replace").strip())


said = []


def library():
    """libllama with the types of what is called, and the CPU's backend."""
    load = lambda pattern: ctypes.CDLL(str(next(LIBRARIES.glob(pattern))), ctypes.RTLD_GLOBAL)
    load("libggml-base.so")
    ggml, llama = load("libggml.v*.so"), load("libllama.v*.so")
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
    for name, result, arguments in [
        ("llama_log_set", None, [pointer, pointer]),
        ("llama_backend_init", None, []),
        ("llama_model_default_params", Parameters, []),
        ("llama_context_default_params", Parameters, []),
        ("llama_model_quantize_default_params", Parameters, []),
        ("llama_model_quantize", ctypes.c_uint32, [text, text, ctypes.POINTER(Parameters)]),
        ("llama_model_load_from_file", pointer, [text, Parameters]),
        ("llama_model_free", None, [pointer]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", number, [pointer]),
        ("llama_init_from_model", pointer, [pointer, Parameters]),
        ("llama_free", None, [pointer]),
        ("llama_batch_init", Batch, [number] * 3),
        ("llama_batch_free", None, [Batch]),
        ("llama_decode", number, [pointer, Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
    ]:
        function = getattr(llama, name)
        function.restype, function.argtypes = result, arguments
    llama.llama_log_set(ctypes.cast(log, pointer), None)
    ggml.ggml_backend_load_all_from_path(str(LIBRARIES).encode())
    llama.llama_backend_init()
    return llama


llama = library()


def there(value, what):
    """The value, unless it is zero: then what llama.cpp said."""
    if not value:
        raise RuntimeError(f"{what}: {said[0] if said else 'no reason given'}")
    return value


def logits_of(path, ids):
    """[t, vocab]."""
    said.clear()
    model = there(llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params()), "not loaded")
    settings = llama.llama_context_default_params()
    # n_ctx, n_batch and n_ubatch; n_threads and n_threads_batch; no flash_attn_type, which sums in f16; type_k and type_v, f16 otherwise.
    settings.words[0] = settings.words[1] = settings.words[2] = max(256, len(ids))
    settings.words[7] = settings.words[8] = 1
    settings.words[13] = 0
    settings.words[26] = settings.words[27] = F32
    context = there(llama.llama_init_from_model(model, settings), "no context")
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids):
        batch.token[at], batch.pos[at], batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = token, at, 1, 0, 1
    there(llama.llama_decode(context, batch) == 0, "not computed")
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    logits = np.ctypeslib.as_array(llama.llama_get_logits(context), (len(ids), vocab)).copy()
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return logits


def decode(path, into):
    """Has llama.cpp write the file's tensors as f32."""
    said.clear()
    settings = llama.llama_model_quantize_default_params()
    settings.words[0], settings.words[1] = 1, F32  # nthread, ftype
    ctypes.cast(ctypes.byref(settings, 16), ctypes.POINTER(ctypes.c_bool))[0] = True  # allow_requantize
    there(llama.llama_model_quantize(str(path).encode(), str(into).encode(), settings) == 0, "not decoded")


def compare(job, ids, ours):
    path = job["path"]
    as_is = difference(logits_of(path, ids), ours)
    with tempfile.TemporaryDirectory() as folder:
        decoded = Path(folder) / "f32.gguf"
        decode(path, decoded)
        return {"error": difference(logits_of(decoded, ids), ours), "as_is": as_is}


if __name__ == "__main__":
    main(compare)
