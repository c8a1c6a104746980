"""Turn the GGUF file of SmolLM2-135M-Instruct into a model directory that vLLM serves.

Usage: smollm2.py GGUF DIRECTORY

The package index has this model as a quantised GGUF file only. `transformers` reads its configuration and tokenizer,
but would keep the weights packed. So this program dequantises them, gives them their names in a Llama checkpoint, and
undoes llama.cpp's reordering of the attention rows (convert_hf_to_gguf.py, `permute`).
"""

import re
import sys
from pathlib import Path

import torch
from gguf import GGUFReader, quants
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def llama_name(name: str) -> str:
    """The name in a Llama checkpoint of a tensor of llama.cpp, such as blk.3.attn_q.weight."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if block:
        return f"model.layers.{block[1]}.{NAMES[block[2]]}.weight"
    return f"{NAMES[name.removesuffix('.weight')]}.weight"


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head from llama.cpp's pairs to two halves. Shape: (rows, columns)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def main(gguf: Path, directory: Path) -> None:
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for tensor in GGUFReader(gguf).tensors:
        weight = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for part, count in heads.items():
            if f".{part}." in tensor.name:
                weight = unpermute(weight, count)
        weights[llama_name(tensor.name)] = weight.to(torch.bfloat16).contiguous()
    directory.mkdir(parents=True)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.bfloat16
    config.tie_word_embeddings = True
    config.save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
