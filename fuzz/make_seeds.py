"""Writes the seeds of the fuzz targets: small files that their readers accept, and some that they refuse late.

    python3 fuzz/make_seeds.py

Needs the standard library alone; what is written is the same each time.
"""

import json
import math
import struct
import zipfile
from pathlib import Path

FUZZ = Path(__file__).parent
ROOT = FUZZ.parent
FIXTURES = ROOT / "tests/fixtures"
PICKLES = ROOT / "crates/formats/tests/fixtures/pickle"


def save(target, name, content):
    path = FUZZ / "seeds" / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def safetensors(tensors, **header):
    """tensors: name -> (dtype, shape, bytes)."""
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_safetensors():
    floats = struct.pack("<4f", 1.0, -2.5, 0.0, 3e38)
    halves = struct.pack("<3e", 0.5, float("inf"), -1.0)
    save("safetensors", "types", safetensors({
        "a": ("F32", [2, 2], floats), "b": ("F16", [3], halves), "c": ("BF16", [1, 1, 2], b"\x80\x3f\0\0"),
        "d": ("I64", [], bytes(8)), "e": ("BOOL", [0, 7], b""), "f": ("F4", [2], b"\x12"),
    }))
    save("safetensors", "empty", safetensors({}))
    save("safetensors", "metadata", safetensors({"w": ("U8", [5], b"12345")}, __metadata__={"format": "pt"}))
    save("safetensors", "state", (PICKLES / "state.safetensors").read_bytes())


def write_pickles():
    for name in ["state", "module", "nested", "protocol-4", "list", "code", "layers"]:
        path = PICKLES / f"{name}.bin"
        save("pickle", name, path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            pickle = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
            save("state_dict", name, archive.read(pickle))


def write_configs():
    for model in ["tiny-llama", "tiny-opt", "tiny-falcon"]:
        save("config", model, (FIXTURES / model / "config.json").read_bytes())
    weights = lambda bits, **more: {"num_bits": bits, "type": "int", "symmetric": False, "strategy": "group", "group_size": 64} | more
    act = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "token", "dynamic": True}
    group = lambda targets, bits, **more: {"targets": targets, "weights": weights(bits), "format": "pack-quantized"} | more
    def packed(name, *groups, format="pack-quantized"):
        save("config", name, json.dumps({"model_type": "llama", "quantization_config": {
            "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"],
            "config_groups": {f"group_{idx}": group for idx, group in enumerate(groups)}}}))
    packed("packed", group(["Linear"], 4, input_activations=act))
    # Linears of widths of their own, as this program names them and as others do.
    prefix = "model.layers.0."
    packed("groups-by-name", group([prefix + "self_attn.q_proj", prefix + "mlp.down_proj"], 4), group([prefix + "self_attn.o_proj"], 3))
    packed("groups-by-pattern", group(["re:.*(gate|up)_proj$", "Linear"], 4), group([r"re:.*layers\.[0-9]+\.mlp\.down_proj$"], 8))
    packed("groups-clash", group(["Linear", "re:.*_proj"], 4), group(["re:.*_proj"], 2))
    rotated = "pack-quantized-rotated"
    packed("rotated", group(["Linear"], 4, input_activations=act, format=rotated), format=rotated)
    packed("rotated-in-part", group(["re:.*mlp.*"], 4, format=rotated), group(["Linear"], 3), format=rotated)
    save("config", "index", json.dumps({"metadata": {"total_size": 8}, "weight_map": {"w": "a.safetensors"}}))
    save("config", "index-outside", json.dumps({"weight_map": {"w": "../a.safetensors", "v": "b.bin"}}))


def tokenizer(model, normalizer=None, pre=None, post=None, decoder=None, added=()):
    return json.dumps({
        "version": "1.0", "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": None, "added_tokens": [
            {"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": True, "normalized": False, "special": True}
            for id, text in added],
        "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model})


def write_tokenizers():
    words = lambda *tokens: {token: id for id, token in enumerate(tokens)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
           "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}
    save("tokenizer", "bytes", tokenizer(
        bpe | {"vocab": words("<s>", "T", "h", "e", "Th", "The", "\u0120", "1"), "merges": ["T h", "Th e"]},
        None, {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}, template, byte_level, [(0, "<s>")]))
    save("tokenizer", "fallback", tokenizer(
        bpe | {"vocab": words("<unk>", "<0x0A>", "\u2581", "f", "o", "x", "fo", "fox"), "merges": [["f", "o"], ["fo", "x"]],
               "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        None, None, {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
                                                      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}, [(0, "<unk>")]))
    save("tokenizer", "pieces", tokenizer(
        {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 20,
         "vocab": words("[UNK]", "fox", "##es", "the", "1", "##2", "[SEP]", "[CLS]")},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        {"type": "BertPreTokenizer"}, {"type": "BertProcessing", "sep": ["[SEP]", 6], "cls": ["[CLS]", 7]},
        {"type": "WordPiece", "prefix": "##", "cleanup": True}))
    save("tokenizer", "unigram", tokenizer(
        {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": [["<unk>", 0.0], ["\u2581fox", -1.5], ["es", -2.0], ["\u2581", -3.0], ["T", -4.0]]},
        {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Lowercase"}]},
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}, None,
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}))
    save("tokenizer", "words", tokenizer(
        {"type": "WordLevel", "unk_token": "?", "vocab": words("?", "the", "foxes", "12")}, {"type": "NFD"},
        {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}|\\s+(?!\\S)"}, "behavior": "Isolated", "invert": False},
            {"type": "Whitespace"}, {"type": "Punctuation", "behavior": "MergedWithPrevious"}, {"type": "CharDelimiterSplit", "delimiter": "x"}]}))


def write_vocabularies():
    vocab = json.dumps({token: id for id, token in enumerate(["<s>", "l", "o", "w", "lo", "low", "e", "r", "\u0120"])})
    config = json.dumps({"bos_token": {"content": "<s>", "lstrip": True}, "eos_token": "</s>", "add_bos_token": True, "add_prefix_space": True})
    save("vocabulary", "low", f"{vocab}\0#version: 0.2\nl o\nlo w\n\0{config}")
    save("vocabulary", "none", "{}\0\0{}")


def write_recipes():
    save("recipe", "least", 'scheme = "w4a16g128"\n')
    save("recipe", "sections", (
        'scheme = "w4a4"\nmethod = "omniquant"\n[calibration]\ndata = "wikitext2"\nsamples = 128\nseqlen = 2048\nseed = 2\nbatch = 1\n'
        '[learn]\nepochs = 20\nlwc_lr = 1e-2\naug_loss = true\nloss = "mse"\n'
        '[let]\nsites = ["norm", "vo", "qk"]\nshift = false\nlr = 5e-3\nalpha = 0.5\n'))
    save("recipe", "bounds", 'scheme = "w8a8"\ncalibration.seed = 9223372036854775807\nlearn.lwc_lr = 1e-300\nlet.alpha = -0.0\n')
    save("recipe", "when", (
        'share = { samples = 4, epochs = 0.125 }\n[[when]]\nfamily = ["llama"]\nweight_bits = [2, 3]\nact_bits = [16]\nlearn.epochs = 40\n'
        '[[when]]\nscheme = ["w3a16g64"]\npost_norm = false\nmethod = ["omniquant"]\nlet = { sites = ["vo"], alpha = 0.75 }\n'))
    save("recipe", "tune", 'scheme = "w2a16g64"\n[tune]\nepochs = 2\nlr = 1e-3\n[learn]\nstart = "compensate"\nrounding = "learned"\nloss = "relative"\n')
    save("recipe", "rotate", 'scheme = "w4a4"\n[rotate]\nkind = "online"\nseed = 7\n[[when]]\nfamily = ["opt", "falcon"]\nrotate.kind = "merged"\n')
    save("recipe", "bits", 'scheme = "w3a16g64"\n[bits]\naverage = 3.25\nchoices = [2, 3, 4, 8]\n[[when]]\nchat = true\ntune = { epochs = 1 }\n')
    save("recipe", "bits-outside", 'scheme = "w3a16g64"\nbits = { average = 4.5, choices = [3, 4] }\n')
    for preset in ["best", "paper"]:
        save("recipe", preset, (ROOT / f"configs/recipes/{preset}.toml").read_bytes())
    save("recipe", "unknown", 'scheme = "w3a16"\r\n\t[learn]\r\n\tepoch = 1 # "`"\r\n')


def packed_linear(name, bits, group, zeros):
    """The tensors of a linear [3, 32]; a group of None is a whole row."""
    words = lambda codes: (codes * bits + 31) // 32
    rows, cols = 3, 32
    groups = cols // (group or cols)
    tensors = {
        f"{name}.weight_shape": ("I64", [2], struct.pack("<2q", rows, cols)),
        f"{name}.weight_packed": ("I32", [rows, words(cols)], bytes(range(4 * rows * words(cols)))),
        f"{name}.weight_scale": ("F16", [rows, groups], struct.pack("<e", 0.25) * (rows * groups)),
    }
    if zeros:
        tensors[f"{name}.weight_zero_point"] = ("I32", [words(rows), groups], b"\x01\0\0\0" * (words(rows) * groups))
    return tensors


def write_packed():
    norm = {"norm.weight": ("BF16", [2], b"\x80\x3f\x80\x3f")}
    # The choices of `src/packed.rs`.
    alike = [(4, 8, True), (3, None, True), (2, 4, False), (8, None, True), (4, 32, True), (5, None, False)]
    for choice, (bits, group, zeros) in enumerate(alike):
        save("packed", f"{choice}", bytes([choice]) + safetensors(packed_linear("l", bits, group, zeros) | norm))
    mixed = packed_linear("l", 4, 8, True) | packed_linear("m", 3, 8, True) | norm
    save("packed", "by-name", b"\6" + safetensors(mixed))
    save("packed", "no-group", b"\6" + safetensors(mixed | packed_linear("n", 4, 8, True)))
    save("packed", "by-pattern", b"\7" + safetensors(mixed | packed_linear("k.k", 4, 8, True)))
    save("packed", "rotated", b"\x08" + safetensors(packed_linear("l", 4, 8, True) | norm))
    write_packed_by_others(norm)


def write_packed_by_others(norm):
    """A linear [32, 32] in each layout of other programs: the choices of `src/packed.rs` from 9 on."""
    rows = cols = 32
    halves = lambda *shape: ("F16", list(shape), struct.pack("<e", 0.25) * (shape[0] * shape[1]))
    noise = lambda dtype, size, *shape: (dtype, list(shape), bytes(i * 37 % 120 for i in range(size * shape[0] * shape[1])))
    def gptq(bits, groups, name="l"):
        return {f"{name}.qweight": noise("I32", 4, cols * bits // 32, rows), f"{name}.qzeros": noise("I32", 4, groups, rows * bits // 32),
                f"{name}.scales": halves(groups, rows)}
    order = {"l.g_idx": ("I32", [cols], struct.pack("<32i", *(i % 4 for i in range(cols))))}
    mlx = {"l.weight": noise("U32", 4, rows, cols // 8), "l.scales": halves(rows, 4), "l.biases": halves(rows, 4)}
    seeds = {
        "gptq": (9, gptq(4, 4)), "gptq-order": (9, gptq(4, 4) | order), "gptq-3": (10, gptq(3, 1)),
        "awq": (11, {"l.qweight": noise("I32", 4, cols, rows // 8), "l.qzeros": noise("I32", 4, 4, rows // 8), "l.scales": halves(4, rows)}),
        "auto-round": (12, gptq(2, 4) | gptq(8, 4, "m")), "mlx": (13, mlx),
        "fp8": (14, {"l.weight": noise("F8_E4M3", 1, rows, cols), "l.weight_scale_inv": ("F32", [16, 2], struct.pack("<f", 0.5) * 32)}),
        "bytes": (15, {"l.weight": noise("I8", 1, rows, cols), "l.weight_scale": halves(rows, 1)}),
        "nvfp4": (16, {"l.weight_packed": noise("U8", 1, rows, cols // 2), "l.weight_scale": ("F8_E4M3", [rows, 2], b"\x38" * (2 * rows)),
                       "l.weight_global_scale": ("F32", [1], struct.pack("<f", 2.0))}),
        "mlx-mixed-up": (13, gptq(4, 4)),
    }
    for name, (choice, tensors) in seeds.items():
        save("packed", name, bytes([choice]) + safetensors(tensors | norm))


U32, F32, BOOL, STRING, ARRAY, I32, U64 = 4, 6, 7, 8, 9, 5, 10


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def encoded(kind, value):
    if kind == STRING:
        return text(value)
    if kind == ARRAY:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(encoded(inner, item) for item in items)
    return struct.pack({U32: "<I", F32: "<f", BOOL: "<?", I32: "<i", U64: "<Q"}[kind], value)


def gguf(metadata, tensors, alignment=32):
    """metadata: key -> (kind, value); tensors: name -> (type, shape outermost first, bytes)."""
    head, data = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)), b""
    for key, (kind, value) in metadata.items():
        head += text(key) + struct.pack("<I", kind) + encoded(kind, value)
    for name, (kind, shape, content) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, len(data))
        data += content + bytes(-len(content) % alignment)
    return head + bytes(-len(head) % alignment) + data


def described(architecture, hidden, epsilon, tokenizer):
    """The metadata of a model of one block."""
    sizes = {"embedding_length": hidden, "feed_forward_length": hidden, "block_count": 1, "attention.head_count": 2, "attention.head_count_kv": 1,
             "context_length": 16}
    metadata = {"general.architecture": (STRING, architecture)} | {f"{architecture}.{key}": (U32, n) for key, n in sizes.items()}
    return metadata | {f"{architecture}.attention.{epsilon}": (F32, 1e-5), f"{architecture}.rope.freq_base": (F32, 1e4)} | tokenizer


def llama(hidden, kind, content, tokenizer, extra=None):
    """A model of one block and six tokens; `content` makes the bytes of a matrix of a type from its number of values."""
    metadata = described("llama", hidden, "layer_norm_rms_epsilon", tokenizer) | (extra or {})
    matrix = lambda rows: (kind, [rows, hidden], content(rows * hidden))
    norm = (0, [hidden], struct.pack("<f", 1.5) * hidden)
    block = {"attn_norm": norm, "ffn_norm": norm, "attn_q": matrix(hidden), "attn_k": matrix(hidden // 2), "attn_v": matrix(hidden // 2)}
    block |= {name: matrix(hidden) for name in ["attn_output", "ffn_gate", "ffn_up", "ffn_down"]}
    tensors = {"token_embd.weight": matrix(6), "output_norm.weight": norm}
    return gguf(metadata, tensors | {f"blk.0.{name}.weight": tensor for name, tensor in block.items()})


def qwen2(hidden, tokenizer):
    """One block of f32 with biases, rotations stretched by YaRN."""
    scaling = {"rope.scaling.type": (STRING, "yarn"), "rope.scaling.factor": (F32, 4.0), "rope.scaling.original_context_length": (U32, 4)}
    metadata = described("qwen2", hidden, "layer_norm_rms_epsilon", tokenizer) | {f"qwen2.{key}": value for key, value in scaling.items()}
    floats = lambda *shape: (0, list(shape), struct.pack("<f", 0.5) * math.prod(shape))
    rows = {"attn_q": hidden, "attn_k": hidden // 2, "attn_v": hidden // 2, "attn_output": hidden, "ffn_gate": hidden, "ffn_up": hidden, "ffn_down": hidden}
    block = {f"{name}.weight": floats(n, hidden) for name, n in rows.items()} | {f"{name}.weight": floats(hidden) for name in ["attn_norm", "ffn_norm"]}
    block |= {f"{name}.bias": floats(rows[name]) for name in ["attn_q", "attn_k", "attn_v"]}
    tensors = {"token_embd.weight": floats(6, hidden), "output_norm.weight": floats(hidden), "output.weight": floats(6, hidden)}
    return gguf(metadata, tensors | {f"blk.0.{name}": tensor for name, tensor in block.items()})


def falcon(hidden, tokenizer):
    """One block of f16 with two norms and a fused linear."""
    metadata = described("falcon", hidden, "layer_norm_epsilon", tokenizer)
    halves = lambda *shape: (1, list(shape), struct.pack("<e", 0.5) * math.prod(shape))
    block = {"attn_qkv.weight": halves(2 * hidden, hidden)} | {f"{name}.weight": halves(hidden, hidden) for name in ["attn_output", "ffn_up", "ffn_down"]}
    block |= {f"{name}.{part}": halves(hidden) for name in ["attn_norm", "attn_norm_2"] for part in ["weight", "bias"]}
    tensors = {"token_embd.weight": halves(6, hidden), "output_norm.weight": halves(hidden), "output_norm.bias": halves(hidden)}
    return gguf(metadata, tensors | {f"blk.0.{name}": tensor for name, tensor in block.items()})


def write_ggufs():
    tokens = ["<s>", "</s>", "a", "b", "ab", "\u2581"]
    common = {"tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)), "tokenizer.ggml.token_type": (ARRAY, (I32, [3, 3, 1, 1, 1, 1])),
              "tokenizer.ggml.bos_token_id": (U32, 0), "tokenizer.ggml.eos_token_id": (U32, 1)}
    pieces = {"tokenizer.ggml.model": (STRING, "llama"), "tokenizer.ggml.scores": (ARRAY, (F32, [0, 0, -3, -4, -1, -2])), "tokenizer.ggml.add_bos_token": (BOOL, True)}
    merges = {"tokenizer.ggml.model": (STRING, "gpt2"), "tokenizer.ggml.pre": (STRING, "llama-bpe"), "tokenizer.ggml.merges": (ARRAY, (STRING, ["a b"]))}
    scaling = {"llama.rope.scaling.type": (STRING, "linear"), "llama.rope.scaling.factor": (F32, 2.0), "general.alignment": (U32, 32)}
    save("gguf", "pieces", llama(4, 0, lambda n: struct.pack("<f", 0.5) * n, common | pieces, scaling))
    save("gguf", "merges", llama(4, 1, lambda n: struct.pack("<e", 0.5) * n, common | merges))
    save("gguf", "qwen2", qwen2(4, common | merges | {"tokenizer.ggml.pre": (STRING, "qwen2")}))
    save("gguf", "falcon", falcon(4, common | merges | {"tokenizer.ggml.pre": (STRING, "falcon")}))
    sizes = {2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176),
             14: (256, 210), 20: (32, 18), 23: (256, 136), 30: (1, 2), 39: (32, 17)}
    blocks = {f"t{kind}": (kind, [1, values], bytes(range(1, 1 + size))) for kind, (values, size) in sizes.items()}
    nested = {"array": (ARRAY, (ARRAY, [(U32, [1, 2]), (U32, [])])), "long": (U64, 1 << 40), "flags": (ARRAY, (BOOL, [True, False]))}
    save("gguf", "kinds", gguf(nested, blocks))
    save("gguf", "empty", gguf({}, {}))


def write_specs():
    for spec in ["w3a16g64", "W4A4", "w2a16g128sym", "w8a8", "w4a16g18446744073709551615"]:
        save("spec", spec.lower()[:8], spec)


if __name__ == "__main__":
    for write in [write_safetensors, write_pickles, write_configs, write_tokenizers, write_vocabularies, write_recipes, write_packed,
                  write_ggufs, write_specs]:
        write()
