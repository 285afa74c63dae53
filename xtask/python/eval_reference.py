"""Answers a manifest with transformers (float32, greedy) and counts the right answers.

    python eval_reference.py --model DIR --manifest DIR/manifest.jsonl --out DIR/reference.jsonl

Everything comes from the checkpoint folder: weights (bf16, computed in float32), chat template, tokenizer,
image processor (the Pillow one, which resizes bytes as the program does), generation config. Line i of the
output belongs to line i of the manifest: {"text": "...", "ids": [...]}; `ids` are the generated tokens without
the end token, `text` is what they say. The smallest distance between the two best logits of any
step is printed: where it is tiny, another order of additions may choose the other token.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


def load(folder: Path):
    """The model and its processor, with the Pillow image processor in place of the torchvision one."""
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        Qwen3VLVideoProcessor.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), processor


@torch.no_grad()
def answer(model, processor, images, prompt, max_new_tokens):
    """Generates greedily: (token ids, smallest distance between the two best logits)."""
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=[text], images=images, return_tensors="pt")
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack([logits[0] for logits in output.logits]).topk(2).values
    ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    if ids[-1] in model.generation_config.eos_token_id:
        ids.pop()
    return ids, (best[:, 0] - best[:, 1]).min().item()


def main():
    parser = argparse.ArgumentParser(description="Answers a manifest with transformers.")
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint folder")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="where to write the answers")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, processor = load(args.model)

    right, written, smallest = {}, [], float("inf")
    for entry in map(json.loads, args.manifest.read_text().splitlines()):
        images = [Image.open(args.manifest.parent / name).convert("RGB") for name in entry["images"]]
        ids, distance = answer(model, processor, images, entry["prompt"], args.max_new_tokens)
        text = processor.tokenizer.decode(ids, skip_special_tokens=True)
        right.setdefault(entry["task"], []).append(text == entry["answer"])
        if text != entry["answer"]:
            print(f"wrong: {entry['images'][0]} shows {entry['answer']!r}, read as {text!r} ({distance:.3f})")
        smallest = min(smallest, distance)
        written.append(json.dumps({"text": text, "ids": ids}) + "\n")
    if args.out:
        args.out.write_text("".join(written))
    for task, good in right.items():
        print(f"{task}: {sum(good)} of {len(good)} ({100 * sum(good) / len(good):.1f} %)")
    print(f"smallest distance between the two best logits: {smallest:.4f}")


if __name__ == "__main__":
    main()
