"""Writes a checkpoint folder as a pair of GGUF files: the language model and its mmproj.

    python make_gguf.py --model DIR --out DIR [--type bf16] [--mmproj-type bf16]

The layout, names and keys are those of llama.cpp's convert_hf_to_gguf.py, dense and mixture of experts alike, for
checkpoints of up to some billions of parameters: all values pass through memory. Types: f32, f16, bf16, q8_0, q4_0, q4_k,
q5_k, q6_k, and q4_k_m, llama.cpp's mixture: q4_k, with q6_k for the head and the more sensitive matrices. Rows that are no
whole blocks fall back to q8_0 and then to f16. Encoding to the formats that end in _k takes `cargo`: the package gguf only
decodes them.

Two keys go beyond the converter, so that pictures are cut as the folder's processor cuts them:
clip.vision.image_min_pixels and image_max_pixels. Settings for videos have no place in the format.
"""

import argparse
import json
import subprocess
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
ENCODER = ["cargo", "run", "--quiet", "--release", "-p", "qvl-model", "--example", "encode_blocks", "--"]
TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
    "q4_k": LlamaFileType.MOSTLY_Q4_K_S,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q5_k": LlamaFileType.MOSTLY_Q5_K_S,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
}
DECODER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
VISION = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_out",
    "mlp.linear_fc1": "ffn_up",
    "mlp.linear_fc2": "ffn_down",
}
DEEPSTACK = {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}
SINGLE = {
    "model.language_model.embed_tokens": "token_embd",
    "model.language_model.norm": "output_norm",
    "lm_head": "output",
    "model.visual.patch_embed.proj": "v.patch_embd",
    "model.visual.pos_embed": "v.position_embd",
    "model.visual.merger.norm": "v.post_ln",
    "model.visual.merger.linear_fc1": "mm.0",
    "model.visual.merger.linear_fc2": "mm.2",
}


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_tensors(folder: Path):
    """Names and values in float32, one after the other."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                yield name, tensors.get_tensor(name).float().numpy()


def renamed(name: str, values: np.ndarray, config: dict, out_in: bool):
    """What becomes of a tensor: names and values."""
    if name == "model.visual.patch_embed.proj.weight":
        for frame, suffix in enumerate(["", ".1"]):
            yield f"v.patch_embd.weight{suffix}", np.ascontiguousarray(values[:, :, frame])
        return
    if name.startswith("model.language_model.layers."):
        layer, rest = name.removeprefix("model.language_model.layers.").split(".", 1)
        if rest.startswith("mlp.experts."):
            stacks = values if out_in else np.ascontiguousarray(values.swapaxes(1, 2))
            if rest == "mlp.experts.down_proj":
                yield f"blk.{layer}.ffn_down_exps.weight", stacks
            else:
                gate, up = np.split(stacks, 2, axis=1)
                yield f"blk.{layer}.ffn_gate_exps.weight", np.ascontiguousarray(gate)
                yield f"blk.{layer}.ffn_up_exps.weight", np.ascontiguousarray(up)
            return
        stem, suffix = rest.rsplit(".", 1)
        yield f"blk.{layer}.{DECODER[stem]}.{suffix}", values
        return
    stem, suffix = name.rsplit(".", 1)
    if stem.startswith("model.visual.blocks."):
        block, rest = stem.removeprefix("model.visual.blocks.").split(".", 1)
        yield f"v.blk.{block}.{VISION[rest]}.{suffix}", values
    elif stem.startswith("model.visual.deepstack_merger_list."):
        index, rest = stem.removeprefix("model.visual.deepstack_merger_list.").split(".", 1)
        block = config["vision_config"]["deepstack_visual_indexes"][int(index)]
        yield f"v.deepstack.{block}.{DEEPSTACK[rest]}.{suffix}", values
    else:
        yield f"{SINGLE[stem]}.{suffix}", values


def is_sensitive(name: str, layers: int) -> bool:
    """The matrices to which llama.cpp's Q4_K_M gives six bits."""
    if name in ("output.weight", "token_embd.weight"):
        return True
    parts = name.split(".")
    if parts[0] != "blk" or parts[2] not in ("attn_v", "ffn_down", "ffn_down_exps"):
        return False
    layer, eighth = int(parts[1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def stored_type(name: str, values: np.ndarray, wanted: str, config: dict) -> GGMLQuantizationType:
    """The type a tensor is stored in."""
    if "patch_embd.weight" in name:
        return GGMLQuantizationType.F16 if wanted == "f16" else GGMLQuantizationType.F32
    small = values.ndim <= 1 or name.endswith("_norm.weight") or not name.endswith(".weight")
    if small or name == "v.position_embd.weight" or ".ffn_gate_inp." in name:
        return GGMLQuantizationType.F32
    if wanted == "q4_k_m":
        wanted = "q6_k" if is_sensitive(name, config["text_config"]["num_hidden_layers"]) else "q4_k"
    for kind in (GGMLQuantizationType[wanted.upper()], GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16):
        if values.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0:
            return kind
    raise AssertionError("f16 holds any row")


def encoded(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    try:
        return quants.quantize(values, kind)
    except NotImplementedError:
        blocks = subprocess.run(
            [*ENCODER, kind.name], cwd=ROOT, input=values.astype("<f4").tobytes(), stdout=subprocess.PIPE, check=True
        )
        shape = quants.quant_shape_to_byte_shape(values.shape, kind)
        return np.frombuffer(blocks.stdout, dtype=np.uint8).reshape(shape)


class Writer(gguf.GGUFWriter):
    """Writes empty lists too: a vocabulary without merges says so, where the converter says nothing."""

    def _pack_val(self, val, vtype, add_vtype, sub_type=None):
        if vtype != gguf.GGUFValueType.ARRAY or len(val) > 0:
            return super()._pack_val(val, vtype, add_vtype, sub_type=sub_type)
        head = self._pack("I", vtype) if add_vtype else b""
        return head + self._pack("I", sub_type) + self._pack("Q", 0)


def language_model(path: Path, folder: Path, config: dict, file_type: str) -> gguf.GGUFWriter:
    text = config["text_config"]
    is_moe = config["model_type"] == "qwen3_vl_moe"
    writer = Writer(path, "qwen3vlmoe" if is_moe else "qwen3vl")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(folder.name)
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text.get("num_key_value_heads", text["num_attention_heads"]))
    rope = text.get("rope_parameters") or text["rope_scaling"]
    writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
    writer.add_rope_freq_base(rope.get("rope_theta") or text["rope_theta"])
    writer.add_layer_norm_rms_eps(text.get("rms_norm_eps", 1e-6))
    if is_moe:
        writer.add_expert_count(text.get("num_experts") or text["num_local_experts"])
        writer.add_expert_used_count(text["num_experts_per_tok"])
    writer.add_key_length(text.get("head_dim", 128))
    writer.add_value_length(text.get("head_dim", 128))
    writer.add_file_type(TYPES[file_type])
    if is_moe:
        writer.add_expert_feed_forward_length(text["moe_intermediate_size"])
    writer.add_num_deepstack_layers(len(config["vision_config"]["deepstack_visual_indexes"]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    vocabulary(writer, folder, text["vocab_size"])
    return writer


def vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    tokenizer = read_json(folder / "tokenizer.json")
    tokens = [f"[PAD{token}]" for token in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        token, index = added["content"], added["id"]
        special = added["special"] or (token.startswith("<|") and token.endswith("|>"))
        tokens[index] = token
        types[index] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True)
    if not special.merges:
        kinds = gguf.GGUFValueType
        writer.add_key_value(gguf.Keys.Tokenizer.MERGES, [], kinds.ARRAY, sub_type=kinds.STRING)
        special.load_merges = False
    special.add_to_gguf(writer, quiet=True)


def vision_tower(path: Path, folder: Path, config: dict, file_type: str) -> gguf.GGUFWriter:
    vision = config["vision_config"]
    processor = read_json(folder / "preprocessor_config.json")
    processor |= read_json(folder / "processor_config.json").get("image_processor", {})
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name(folder.name)
    writer.add_file_type(TYPES[file_type])
    writer.add_clip_has_vision_encoder(True)
    writer.add_vision_projection_dim(config["text_config"]["hidden_size"])
    writer.add_vision_image_size(int(vision["num_position_embeddings"] ** 0.5 * vision["patch_size"]))
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_block_count(vision["depth"])
    writer.add_vision_head_count(vision["num_heads"])
    writer.add_vision_image_mean(processor.get("image_mean", [0.5] * 3))
    writer.add_vision_image_std(processor.get("image_std", [0.5] * 3))
    if size := processor.get("size"):
        writer.add_uint32("clip.vision.image_min_pixels", size["shortest_edge"])
        writer.add_uint32("clip.vision.image_max_pixels", size["longest_edge"])
    writer.add_clip_projector_type(gguf.VisionProjectorType.QWEN3VL)
    writer.add_vision_use_gelu(True)
    writer.add_vision_spatial_merge_size(vision["spatial_merge_size"])
    writer.add_vision_attention_layernorm_eps(config["text_config"].get("rms_norm_eps", 1e-6))
    tapped = vision["deepstack_visual_indexes"]
    writer.add_vision_is_deepstack_layers([block in tapped for block in range(vision["depth"])])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return writer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--type", choices=TYPES, default="bf16", help="matrices of the language model")
    parser.add_argument("--mmproj-type", choices=TYPES, default="bf16", help="matrices of the vision tower")
    args = parser.parse_args()

    folder = args.model.resolve()
    config = read_json(folder / "config.json")
    args.out.mkdir(parents=True, exist_ok=True)
    paths = (
        args.out / f"{folder.name}-{args.type}.gguf",
        args.out / f"mmproj-{folder.name}-{args.mmproj_type}.gguf",
    )
    model = language_model(paths[0], folder, config, args.type)
    mmproj = vision_tower(paths[1], folder, config, args.mmproj_type)
    # The stack that is never square says how all are stored.
    width = config["text_config"]["hidden_size"]
    shapes = [values.shape for name, values in read_tensors(folder) if name.endswith("mlp.experts.down_proj")]
    out_in = bool(shapes) and shapes[0][1] == width
    for name, values in read_tensors(folder):
        for stored, part in renamed(name, values, config, out_in):
            is_vision = stored.startswith(("v.", "mm."))
            writer, wanted = (mmproj, args.mmproj_type) if is_vision else (model, args.type)
            kind = stored_type(stored, part, wanted, config)
            writer.add_tensor(stored, encoded(part, kind), raw_dtype=kind)
    for writer, path in zip((model, mmproj), paths):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        print(path)


if __name__ == "__main__":
    main()
