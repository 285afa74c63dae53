"""Writes reference cases: what transformers computes, in float32, for small random Qwen3-VL checkpoints.

    python make_cases.py OUT [--seed 11] [--small]

Needs torch, torchvision, transformers, tokenizers, safetensors and Pillow 12 (see requirements.txt; Pillow 13
changed the order of the two resize passes for some shapes). One folder a case:

    model/                 a checkpoint in the Hugging Face layout
    request.json           {"messages": [...], "max_new_tokens": N}; picture paths are relative to the case
    expected.safetensors   input_ids i64 [L]; position_ids i64 [3, L], absent where transformers leaves them out;
                           for pictures pixel_values f32 [P, 1536], grid_thw i64 [n, 3], vision_embeds f32 [T, H]
                           and deepstack_K f32 [T, H]; logits f32 [L, V]; generated_ids i64 [N], greedy

`--small` makes the set that is committed with the tests: smaller pictures, narrower networks, heads whose width
is no multiple of a vector register. The same seed gives the same set. Weights are bfloat16 values, so that every
storage type holds them exactly.
"""

import argparse
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for item in message.content %}"
    "{%- if item.type == 'image' or 'image' in item %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif item.type == 'video' or 'video' in item %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- elif 'text' in item %}{{- item.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

CORPUS = [
    "Describe the picture in one sentence.",
    "What is written on the sign?",
    "How many people are there?",
    "Compare the two images.",
    "The quick brown fox jumps over the lazy dog.",
    "You are a helpful assistant.",
    "user\n assistant\n system\n",
    "图片里有什么？",
    "naïve café — 12:45 déjà vu",
    "<1.0 seconds>",
    "0123456789 3.14159",
]

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


@dataclass
class Scale:
    """Dimensions of the networks of one set."""

    tokens: int
    text: dict
    vision: dict
    moe: dict
    wide_text: dict


def rope(theta, section):
    return {"rope_theta": theta, "rope_type": "default", "mrope_section": section, "mrope_interleaved": True}


FULL = Scale(
    tokens=400,
    text=dict(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rope_parameters=rope(5000000.0, [6, 5, 5]),
    ),
    vision=dict(
        depth=4,
        hidden_size=48,
        intermediate_size=112,
        num_heads=3,
        num_position_embeddings=144,
        deepstack_visual_indexes=[0, 2],
    ),
    moe=dict(moe_intermediate_size=48, num_experts=8, num_experts_per_tok=3),
    wide_text=dict(
        head_dim=64, num_attention_heads=6, num_key_value_heads=2, rope_parameters=rope(1e6, [12, 10, 10])
    ),
)

SMALL = Scale(
    tokens=300,
    text=dict(
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        rope_parameters=rope(5000000.0, [5, 4, 3]),
    ),
    vision=dict(
        depth=3,
        hidden_size=24,
        intermediate_size=40,
        num_heads=2,
        num_position_embeddings=64,
        deepstack_visual_indexes=[0, 2],
    ),
    moe=dict(moe_intermediate_size=20, num_experts=8, num_experts_per_tok=3),
    wide_text=dict(
        head_dim=40, num_attention_heads=4, num_key_value_heads=2, rope_parameters=rope(1e6, [8, 6, 6])
    ),
)


@dataclass
class Case:
    """One request and the checkpoint it is put to."""

    name: str
    seed: int
    content: list
    images: list = field(default_factory=list)  # (width, height)
    video: tuple | None = None  # (frames, width, height, fps)
    system: str | None = None
    max_new_tokens: int = 12
    moe: bool = False
    tied: bool = True
    wide: bool = False
    min_pixels: int = 64 * 64
    max_pixels: int = 256 * 256
    dtype: torch.dtype = torch.bfloat16
    shard_size: str | None = None
    published_keys: bool = False  # rope_scaling and rope_theta instead of rope_parameters
    published_experts: bool = False  # [E, H, 2I] and [E, I, H] instead of [E, 2I, H] and [E, H, I]


def make_tokenizer(vocab_size):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(CORPUS * 4, trainer)
    inner.add_special_tokens(SPECIALS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>",
            "vision_end_token": "<|vision_end|>",
        },
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_picture(rng, width, height):
    """Slopes in each channel, noise, and a disc of one colour."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [
        (x * rng.uniform(0.2, 3) + 40) % 256,
        (y * rng.uniform(0.2, 3)) % 256,
        ((x + y) * rng.uniform(0.1, 2)) % 256,
    ]
    pixels = np.stack(channels, -1)
    pixels += rng.normal(0, 12, pixels.shape)
    centre_x, centre_y, radius = rng.uniform(0, width), rng.uniform(0, height), min(width, height) / 3
    pixels[(x - centre_x) ** 2 + (y - centre_y) ** 2 < radius * radius] = rng.uniform(0, 255, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_model(case, scale, ids, vocab_size):
    text = dict(
        scale.text,
        vocab_size=vocab_size,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|im_end|>"],
        tie_word_embeddings=case.tied,
    )
    if case.wide:
        text.update(scale.wide_text)
    vision = dict(
        scale.vision,
        patch_size=16,
        temporal_patch_size=2,
        spatial_merge_size=2,
        out_hidden_size=text["hidden_size"],
        hidden_act="gelu_pytorch_tanh",
    )
    common = dict(
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=case.tied,
    )
    if case.moe:
        text.update(scale.moe, decoder_sparse_step=1, norm_topk_prob=True, mlp_only_layers=[])
        config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **common)
        model = Qwen3VLMoeForConditionalGeneration(config)
    else:
        config = Qwen3VLConfig(text_config=text, vision_config=vision, **common)
        model = Qwen3VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                values = centre + 0.1 * noise
            elif "embed" in name:
                values = 0.6 * noise
            else:
                # Stacked experts are [E, in or out, ...]; everything else has its inputs behind the first axis.
                inputs = parameter.shape[1] if parameter.dim() == 3 else parameter[0].numel()
                values = noise * 1.6 / inputs**0.5
            parameter.copy_(values.to(torch.bfloat16).float())
    return model.float().eval()


def make_processor(case, tokenizer):
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size=dict(shortest_edge=case.min_pixels, longest_edge=case.max_pixels),
    )
    video_processor = Qwen3VLVideoProcessor(size=dict(shortest_edge=32 * 32 * 4, longest_edge=128 * 128 * 16))
    return Qwen3VLProcessor(image_processor, tokenizer, video_processor, chat_template=TEMPLATE)


def compute(case, model, encoded, pad_token_id):
    """Every tensor that is compared, and how far apart the two best logits were at each greedy step."""
    expected = {"input_ids": encoded["input_ids"][0]}
    visual_keys = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "mm_token_type_ids")
    inputs = {key: encoded[key] for key in visual_keys if key in encoded}
    inputs.update(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
    caught = {}

    def catch(_module, _args, kwargs):
        caught["position_ids"] = kwargs.get("position_ids")

    with torch.no_grad():
        hook = model.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
        output = model(**inputs)
        hook.remove()
        if caught["position_ids"] is not None:
            expected["position_ids"] = caught["position_ids"][-3:, 0]
        for pixels, grid in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
            if pixels not in encoded:
                continue
            vision = model.model.visual(encoded[pixels].float(), grid_thw=encoded[grid])
            expected["pixel_values"] = encoded[pixels].float()
            expected["grid_thw"] = encoded[grid]
            expected["vision_embeds"] = vision.pooler_output
            for index, features in enumerate(vision.deepstack_features):
                expected[f"deepstack_{index}"] = features
        expected["logits"] = output.logits[0].float()
        generated = model.generate(
            **inputs,
            max_new_tokens=case.max_new_tokens,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=pad_token_id,
            output_scores=True,
            return_dict_in_generate=True,
        )
    expected["generated_ids"] = generated.sequences[0, encoded["input_ids"].shape[1] :]
    gaps = [float(scores[0].topk(2).values.diff().abs()) for scores in generated.scores]
    return expected, gaps


def use_published_keys(path):
    config = json.loads(path.read_text())
    text = config["text_config"]
    scaling = text.pop("rope_parameters")
    text["rope_theta"] = scaling.pop("rope_theta")
    text["rope_scaling"] = scaling
    config["vision_config"].pop("rope_parameters", None)
    path.write_text(json.dumps(config, indent=2))


def use_published_experts(path):
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if ".experts." in name:
            tensors[name] = tensor.transpose(1, 2).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def request_messages(case, messages):
    """The messages with the names of the files in place of the placeholders."""
    result = []
    for message in messages:
        content = message["content"]
        if isinstance(content, list):
            numbers = iter(range(len(case.images)))
            content = [request_item(case, item, numbers) for item in content]
        result.append({"role": message["role"], "content": content})
    return result


def request_item(case, item, numbers):
    if item["type"] == "image":
        return {"type": "image", "image": f"image_{next(numbers)}.png"}
    if item["type"] == "video":
        frames, _, _, fps = case.video
        return {"type": "video", "video": [f"frame_{i:03}.png" for i in range(frames)], "fps": fps}
    return item


def write_case(out, case, scale):
    folder = out / case.name
    model_folder = folder / "model"
    model_folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(case.seed)
    tokenizer = make_tokenizer(scale.tokens)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    model = make_model(case, scale, ids, len(tokenizer))
    processor = make_processor(case, tokenizer)

    messages = [{"role": "user", "content": case.content}]
    if case.system:
        messages.insert(0, {"role": "system", "content": case.system})
    visual = {}
    if case.images:
        visual["images"] = [make_picture(rng, width, height) for width, height in case.images]
        for index, picture in enumerate(visual["images"]):
            picture.save(folder / f"image_{index}.png")
    if case.video:
        count, width, height, fps = case.video
        frames = [make_picture(rng, width, height) for _ in range(count)]
        for index, frame in enumerate(frames):
            frame.save(folder / f"frame_{index:03}.png")
        visual["videos"] = [np.stack([np.asarray(frame) for frame in frames])]
        visual["video_metadata"] = [
            dict(
                fps=fps,
                total_num_frames=count,
                frames_indices=list(range(count)),
                duration=count / fps,
                height=height,
                width=width,
            )
        ]
        visual["do_sample_frames"] = False
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    encoded = processor(text=[text], return_tensors="pt", **visual)
    expected, gaps = compute(case, model, encoded, ids["<|endoftext|>"])

    sharding = {"max_shard_size": case.shard_size} if case.shard_size else {}
    model.to(case.dtype).save_pretrained(model_folder, **sharding)
    processor.save_pretrained(model_folder)
    if case.published_keys:
        use_published_keys(model_folder / "config.json")
    if case.published_experts:
        use_published_experts(model_folder / "model.safetensors")
    request = {"messages": request_messages(case, messages), "max_new_tokens": case.max_new_tokens}
    (folder / "request.json").write_text(json.dumps(request, indent=1, ensure_ascii=False) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")
    shapes = {name: list(tensor.shape) for name, tensor in expected.items()}
    distinct = len(set(expected["generated_ids"].tolist()))
    print(case.name, shapes, f"smallest gap {min(gaps):.3g}, {distinct} distinct tokens", flush=True)


def text(content):
    return {"type": "text", "text": content}


def cases(seed, small):
    """The set. Sizes are drawn in a fixed order, so one seed always gives one set."""
    draw = random.Random(seed).randint

    def size(low, high, small_low, small_high):
        return draw(small_low, small_high) if small else draw(low, high)

    def square(low, high):
        return (size(low, high, 64, 112), size(low, high, 64, 112))

    describe = text("Describe the picture in one sentence.")
    return [
        Case("dense_one_image", seed, [IMAGE, describe], [(size(150, 400, 90, 130), size(120, 300, 64, 100))]),
        Case(
            "dense_three_images",
            seed + 1,
            [IMAGE, IMAGE, text("Compare the two images."), IMAGE, text("图片里有什么？ naïve café")],
            [(draw(9, 30), draw(9, 30)), (size(500, 900, 240, 280), size(60, 120, 24, 44)), square(200, 300)],
            system="You are a helpful assistant.",
        ),
        Case(
            "dense_video",
            seed + 2,
            [VIDEO, text("What is written on the sign?")],
            video=(5 if small else 7, 32 * size(2, 4, 2, 2), 32 * size(2, 3, 2, 3), 2.0),
        ),
        # A side of 32k + 16 pixels: Python rounds half to even.
        Case(
            "dense_half_even_rounding",
            seed + 8,
            [IMAGE, describe],
            [(32 * size(4, 6, 3, 4) + 16, 32 * 2 + 16)],
            min_pixels=32 * 32,
            max_pixels=512 * 512,
        ),
        Case(
            "dense_text_only",
            seed + 3,
            [text("The quick brown fox jumps over the lazy dog. 0123456789")],
            max_new_tokens=24,
        ),
        Case("moe_one_image", seed + 4, [IMAGE, text("How many people are there?")], [square(150, 300)], moe=True),
        Case(
            "moe_published_layout",
            seed + 7,
            [text("Compare the two images."), IMAGE, IMAGE],
            [
                (size(40, 120, 30, 70), size(40, 120, 30, 70)),
                (size(100, 200, 90, 130), size(60, 100, 40, 60)),
            ],
            moe=True,
            published_experts=True,
            published_keys=True,
        ),
        Case(
            "untied_sharded_published_names",
            seed + 5,
            [IMAGE, text("What is written on the sign?")],
            [square(150, 300)],
            tied=False,
            shard_size="120KB" if small else "200KB",
            published_keys=True,
        ),
        Case(
            "float32_wide_heads",
            seed + 6,
            [IMAGE, describe],
            [square(150, 300)],
            wide=True,
            dtype=torch.float32,
        ),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="where the folders are written")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--small", action="store_true", help="the set that is committed with the tests")
    args = parser.parse_args()
    if int(PIL.__version__.split(".")[0]) > 12:
        parser.error(f"Pillow {PIL.__version__} resizes some shapes in another order: use Pillow 12")
    for case in cases(args.seed, args.small):
        write_case(args.out, case, SMALL if args.small else FULL)


if __name__ == "__main__":
    main()
