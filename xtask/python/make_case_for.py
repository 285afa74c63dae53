"""Makes a reference case for any checkpoint folder: what transformers computes for it in float32.

    python make_case_for.py --model DIR --out CASE [--image FILE] [--prompt TEXT] [--new-tokens N]
    cargo xtask parity CASE

Takes four bytes of memory a parameter. Needs transformers 5.23 and Pillow 12, see requirements.txt. Without
--image a picture is drawn. The case links to the checkpoint instead of copying it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL import __version__ as pillow_version
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


def drawn_picture() -> Image.Image:
    """Coloured squares and noise, 270 x 210."""
    rng = np.random.default_rng(5)
    squares = np.kron(rng.random((7, 9, 3)), np.ones((32, 32, 1))) * 255
    noisy = (squares + rng.normal(0, 10, squares.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy[:210, :270])


def load(folder: Path):
    """The model in float32 and its processor, with the Pillow image processor."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(folder),
        tokenizer,
        Qwen3VLVideoProcessor.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval(), processor


@torch.no_grad()
def expected_tensors(model, processor, messages, image, new_tokens) -> dict[str, torch.Tensor]:
    """Everything `qvl parity` compares."""
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    seen = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(position_ids=kwargs["position_ids"]), with_kwargs=True
    )
    logits = model(**inputs).logits[0]
    hook.remove()
    vision = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    generated = model.generate(
        **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, eos_token_id=-1
    )
    return {
        "input_ids": inputs["input_ids"][0],
        "position_ids": seen["position_ids"][-3:, 0],
        "pixel_values": inputs["pixel_values"],
        "grid_thw": inputs["image_grid_thw"],
        "vision_embeds": vision.pooler_output,
        **{f"deepstack_{tap}": features for tap, features in enumerate(vision.deepstack_features)},
        "logits": logits,
        "generated_ids": generated[0, inputs["input_ids"].shape[1] :],
    }


def main():
    parser = argparse.ArgumentParser(description="Makes a reference case for a checkpoint folder.")
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint folder")
    parser.add_argument("--out", type=Path, required=True, help="the case to write")
    parser.add_argument("--image", type=Path, help="a picture without an EXIF orientation, best a PNG")
    parser.add_argument("--prompt", default="What is it?")
    parser.add_argument("--new-tokens", type=int, default=4)
    args = parser.parse_args()
    assert int(pillow_version.split(".")[0]) <= 12, "Pillow 13 resizes some shapes in another order: use Pillow 12"

    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "model").symlink_to(args.model.resolve(), target_is_directory=True)
    image = Image.open(args.image).convert("RGB") if args.image else drawn_picture()
    image.save(args.out / "image_0.png")
    content = [{"type": "image", "image": "image_0.png"}, {"type": "text", "text": args.prompt}]
    messages = [{"role": "user", "content": content}]
    request = {"messages": messages, "max_new_tokens": args.new_tokens}
    (args.out / "request.json").write_text(json.dumps(request, indent=1, ensure_ascii=False))

    model, processor = load(args.model)
    tensors = expected_tensors(model, processor, messages, image, args.new_tokens)
    save_file({name: value.contiguous() for name, value in tensors.items()}, args.out / "expected.safetensors")
    for name, value in tensors.items():
        print(f"{name:<16} {list(value.shape)}")


if __name__ == "__main__":
    main()
