"""Run a packed directory in Hugging Face: the check that others read what is written here.

    pip install torch transformers==5.23.0 compressed-tensors==0.20.0 safetensors accelerate
    python load_packed.py DIR IDS.safetensors OUT.safetensors [--compare OURS.safetensors]

DIR is a compressed-tensors (pack-quantized) model directory. IDS holds input_ids, integers [b, t]. OUT gets logits,
f32 [b, t, vocab], computed on the CPU in f32. With --compare, OURS holds our logits of the same shape: prints the
largest difference over the largest magnitude and exits 1 beyond 1e-3.

Where config_groups holds several groups, each linear is decoded by the group that names it: transformers 5.23 would take the first
one for all.

Weights are dequantized on loading (dequantize=True). The default way, packed until the first forward, refuses every
asymmetric checkpoint with a size mismatch of weight_zero_point in compressed-tensors 0.18 to 0.20 (0.17 loads them):
they give the empty model unpacked zero points. A dequantized model does not quantize its activations, so a directory
that asks for that is refused.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from transformers.integrations.compressed_tensors import CompressedTensorsDequantize

# The loader computes s * (q - z) in the scale's type, so f16 scales round the weights to f16: 2e-4 on small models.
# With f32 scales only the order of summation differs. A wrong code, scale or zero point moves the logits by far more.
MAX_ERROR = 1e-3


def tensor(path, name):
    tensors = load_file(path)
    if name not in tensors:
        sys.exit(f"{path}: no tensor {name}, found {', '.join(sorted(tensors))}")
    return tensors[name]


def decode_by_group():
    """Has each linear decoded by the group that has it among its targets."""
    convert = CompressedTensorsDequantize.convert

    def by_group(self, input_dict, source_patterns, target_patterns, full_layer_name=None, **kwargs):
        groups = self.hf_quantizer.compressor.quantization_config.config_groups.values()
        name = full_layer_name.removesuffix(".weight")
        self.scheme = next((group for group in groups if name in group.targets), None)
        return convert(self, input_dict, source_patterns, target_patterns, full_layer_name, **kwargs)

    CompressedTensorsDequantize.convert = by_group


def load(folder):
    config = json.loads((Path(folder) / "config.json").read_text())
    method = config.get("quantization_config", {}).get("quant_method")
    if method != "compressed-tensors":
        sys.exit(f"{folder}: quant_method is {method}, needed compressed-tensors")
    groups = config["quantization_config"]["config_groups"]
    if any(group.get("input_activations") for group in groups.values()):
        sys.exit(f"{folder}: quantizes activations, which a dequantized model leaves alone; pack the weights alone")
    if len(groups) > 1:
        decode_by_group()
    model, report = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        device_map="cpu",
        attn_implementation="eager",
        quantization_config=CompressedTensorsConfig(dequantize=True),
        output_loading_info=True,
    )
    # A tensor under a name that the loader does not know is dropped with a warning, and the model then runs on random
    # weights: say so instead.
    wrong = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if wrong:
        sys.exit(f"{folder}: the loader reports {wrong}")
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description="Run a packed directory in transformers on the CPU in f32.")
    parser.add_argument("dir")
    parser.add_argument("ids")
    parser.add_argument("out")
    parser.add_argument("--compare", metavar="OURS")
    args = parser.parse_args()

    ids = tensor(args.ids, "input_ids").long()
    with torch.no_grad():
        logits = load(args.dir)(input_ids=ids, use_cache=False).logits.float().contiguous()
    if not logits.isfinite().all():
        sys.exit(f"{args.dir}: logits are not finite")
    save_file({"logits": logits}, args.out)

    if args.compare:
        ours = tensor(args.compare, "logits").float()
        if ours.shape != logits.shape:
            sys.exit(f"{args.compare}: logits {list(ours.shape)}, needed {list(logits.shape)}")
        error = ((ours - logits).abs().max() / logits.abs().max()).item()
        print(f"max relative error {error:.2e} (limit {MAX_ERROR:.0e})")
        if not error <= MAX_ERROR:
            sys.exit(1)


if __name__ == "__main__":
    main()
