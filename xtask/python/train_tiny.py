"""Trains the tiny Qwen3-VL checkpoint that ships with the program: all of the architecture, 1.9 M parameters.

    pip install -r requirements.txt
    python train_tiny.py --out DIR --minutes 66 --seed 1

Written for torch 2.15, transformers 5.23, tokenizers 0.23, scikit-learn 1.9 and pillow 12.

It learns the tasks of `tiny_tasks.py` on a CPU. The learning rate follows the clock and reaches its end
after MINUTES, so a slower machine takes fewer steps. Every few minutes the checkpoint is saved to DIR in
the layout of the published Qwen3-VL checkpoints (bf16 weights, tokenizer, chat template, processor
configs), and the share of held-out pictures answered exactly is printed. Each of the processes takes one
core and its part of every batch: at these sizes that is faster than threads. `--state FILE` also keeps the
float32 weights and the optimizers' state; `--resume FILE --lr 0.2` goes on from there,
and `--average FILE` mixes earlier weights into the last ones.

What the recipe rests on: Muon for the matrices, weights that start at 1/sqrt(fan-in) (the library's 0.02 is
far too small at these widths), one right wording per picture, and short rows of digits first.
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.distributed as distributed
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import linear
from torchvision.transforms.functional import pil_to_tensor
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

import tiny_tasks as tasks

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# How Qwen splits text before the byte pairs are merged.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.content is string -%}
        {{- message.content -}}
    {%- else -%}
        {%- for item in message.content -%}
            {%- if item.type == 'image' or 'image' in item or 'image_url' in item -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif item.type == 'video' or 'video' in item -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif 'text' in item -%}
                {{- item.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

PATCH, MERGE, FRAMES = 16, 2, 2
TASK_MIX = {"digits": 0.5, "describe": 0.32, "count": 0.18}
RESIZED_SHARE = 0.15  # pictures that go through the resize
JPEG_SHARE = 0.05
SYSTEM_SHARE = 0.05  # prompts with a system message
SYSTEM = "You are a helpful assistant."
SHORT_ROWS_UNTIL = 0.2  # rows have at most two digits in this part of the training
BATCH = 48
MATRIX_LR, OTHER_LR, WARMUP_STEPS, RESUMED_WARMUP_STEPS = 0.02, 3e-3, 300, 20
FIRST_SAVE, SAVE_EVERY = 3.0, 4.0  # minutes
IGNORED = -100  # the label that the loss skips


# --- tokenizer and prompts


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 400 tokens, in the form of Qwen's."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(tasks.tokenizer_corpus(), trainer)
    bpe.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


class Prompts:
    """The prompt of a task as token ids, rendered by the chat template; each form is rendered once."""

    def __init__(self, tokenizer):
        self.tokenizer, self.known = tokenizer, {}

    def __call__(self, task: str, image_tokens: int, system: bool) -> list[int]:
        key = task, image_tokens, system
        if key not in self.known:
            content = [{"type": "image"}, {"type": "text", "text": tasks.PROMPTS[task]}]
            messages = [{"role": "system", "content": SYSTEM}] * system + [
                {"role": "user", "content": content}
            ]
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            text = text.replace("<|image_pad|>", "<|image_pad|>" * image_tokens)
            self.known[key] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.known[key]


# --- batches


def patches(image) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """The picture as [rows * columns, 3 * 16 * 16] in merge order (`take_single_frames`), and its grid."""
    pixels = pil_to_tensor(image).float().div(127.5).sub(1)
    rows, columns = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
    blocks = pixels.reshape(3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
    return blocks.permute(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, -1), (1, rows, columns)


def collate(rows, tokenizer) -> dict[str, torch.Tensor]:
    """Joins (prompt ids, answer ids, patches, grid) rows to a batch, padded on the right."""
    length = max(len(prompt) + len(answer) for prompt, answer, _, _ in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), IGNORED)
    mask = torch.zeros_like(ids)
    for i, (prompt, answer, _, _) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
        mask[i, :end] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": torch.cat([row[2] for row in rows]),
        "image_grid_thw": torch.tensor([row[3] for row in rows]),
        "mm_token_type_ids": (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long(),
    }


class Pictures:
    """Draws training and held-out rows."""

    def __init__(self, tokenizer, digits=TASK_MIX["digits"]):
        self.tokenizer, self.prompts = tokenizer, Prompts(tokenizer)
        others = (1 - digits) / (1 - TASK_MIX["digits"])
        self.training_mix = {**{task: share * others for task, share in TASK_MIX.items()}, "digits": digits}

    def row(self, image, task, answer, system=False):
        pixel_values, grid = patches(tasks.resize(image))
        answer_ids = self.tokenizer.encode(answer + "<|im_end|>", add_special_tokens=False)
        return self.prompts(task, len(pixel_values) // MERGE**2, system), answer_ids, pixel_values, grid

    def training_row(self, rng, most_digits):
        task = rng.choices(list(self.training_mix), list(self.training_mix.values()))[0]
        image, answer = tasks.make_picture(rng, task, "train", rng.random() < RESIZED_SHARE, most_digits)
        if rng.random() < JPEG_SHARE:
            image = tasks.through_jpeg(image, rng.randint(85, 95))
        return self.row(image, task, answer, rng.random() < SYSTEM_SHARE)

    def held_out(self, seed, count):
        rng, rows = random.Random(seed), []
        for _ in range(count):
            task = rng.choices(list(TASK_MIX), list(TASK_MIX.values()))[0]
            image, answer = tasks.make_picture(rng, task, "test", rng.random() < RESIZED_SHARE)
            rows.append((task, self.row(image, task, answer)))
        return rows


# --- model and optimizers


def published_config(tokenizer) -> dict:
    """config.json, with the keys of the published checkpoints."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": ids["<|image_pad|>"],
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": ids["<|endoftext|>"],
            "dtype": "bfloat16",
            "eos_token_id": ids["<|im_end|>"],
            "head_dim": 32,
            "hidden_act": "silu",
            "hidden_size": 128,
            "initializer_range": 0.02,
            "intermediate_size": 384,
            "max_position_embeddings": 4096,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"},
            "rope_theta": 10000,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": len(tokenizer),
        },
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0",
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "deepstack_visual_indexes": [0, 2],
            "depth": 4,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 96,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 256,
            "model_type": "qwen3_vl",
            "num_heads": 4,
            "num_position_embeddings": 64,
            "out_hidden_size": 128,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


@torch.no_grad()
def init_weights(model):
    """Normal with a spread of 1/sqrt(fan-in); half of that where a layer writes into the residual stream."""
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        writes = any(part in name for part in ("o_proj", "down_proj", "attn.proj"))
        writes = writes or ("blocks" in name and "linear_fc2" in name)
        spread = 0.2 if "pos_embed" in name else weight[0].numel() ** -0.5 * (0.5 if writes else 1.0)
        weight.normal_(0, spread)


def take_single_frames(model):
    """Lets the patch embedding take one frame: a picture is its own second frame, so half the work does."""
    embed = model.model.visual.patch_embed

    def forward(frame):
        weight = embed.proj.weight  # [width, 3, 2, 16, 16]
        return linear(frame, weight.sum(2).flatten(1), embed.proj.bias)

    embed.forward = forward


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by five Newton-Schulz steps. For matrices only."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.05):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            by_shape = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    mean = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    mean.mul_(momentum).add_(weight.grad)
                    by_shape[weight.shape].append((weight, weight.grad + momentum * mean))
            for (rows, columns), same in by_shape.items():
                updates = orthogonal(torch.stack([update for _, update in same]))
                for (weight, _), update in zip(same, updates):
                    tall = max(1.0, rows / columns) ** 0.5
                    weight.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * tall)


def orthogonal(matrices):
    """Brings the singular values of the matrices [n, rows, columns] close to one."""
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return (x.mT if tall else x).float()


def build_optimizers(model):
    matrices, tensors, vectors = [], [], []
    for name, weight in model.named_parameters():
        matrix = weight.dim() == 2 and "embed" not in name
        (matrices if matrix else tensors if weight.dim() > 1 else vectors).append(weight)
    rest = [{"params": tensors, "weight_decay": 0.02}, {"params": vectors, "weight_decay": 0.0}]
    return [Muon(matrices, MATRIX_LR), torch.optim.AdamW(rest, lr=OTHER_LR, betas=(0.9, 0.95))]


# --- saving and measuring


def write_json(path: Path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def save_checkpoint(model, tokenizer, out: Path):
    """Writes the checkpoint folder in the layout of the published Qwen3-VL checkpoints."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", published_config(tokenizer))
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    tensors.pop("lm_head.weight", None)  # tied to the embedding
    unfinished = out / "model.safetensors.new"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.replace(out / "model.safetensors")
    write_tokenizer(tokenizer, out)
    write_processors(tokenizer, out)


def write_tokenizer(tokenizer, out: Path):
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    decoder = {}
    for token in SPECIAL_TOKENS:
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        decoder[str(tokenizer.convert_tokens_to_ids(token))] = {"content": token, **flags, "special": True}
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Qwen3VLProcessor",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    }
    write_json(out / "tokenizer_config.json", config)


def write_processors(tokenizer, out: Path):
    common = {
        "patch_size": PATCH,
        "temporal_patch_size": FRAMES,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    image = {"size": {"longest_edge": tasks.MAX_PIXELS, "shortest_edge": tasks.MIN_PIXELS}, **common}
    write_json(
        out / "preprocessor_config.json", {**image, "image_processor_type": "Qwen2VLImageProcessorFast"}
    )
    # A video's limits count all its frames.
    video = {"size": {"longest_edge": 16 * tasks.MAX_PIXELS, "shortest_edge": tasks.MIN_PIXELS}, **common}
    write_json(
        out / "video_preprocessor_config.json", {**video, "video_processor_type": "Qwen3VLVideoProcessor"}
    )
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    generation = {"bos_token_id": pad, "do_sample": False, "eos_token_id": [eos, pad], "pad_token_id": pad}
    write_json(out / "generation_config.json", {**generation, "transformers_version": "4.57.0"})


def stored_values(model):
    """A copy whose weights are the bf16 values that are stored."""
    twin = Qwen3VLForConditionalGeneration(model.config)
    twin.load_state_dict(model.state_dict())
    twin = twin.to(torch.bfloat16).float().eval()
    take_single_frames(twin)
    return twin


@torch.no_grad()
def exact_matches(model, tokenizer, rows) -> dict[str, tuple[int, int]]:
    """Per task, how many rows are answered exactly. Greedy decoding is right where every next token is."""
    model = stored_values(model)
    right = {}
    for start in range(0, len(rows), 100):
        part = rows[start : start + 100]
        batch = collate([row for _, row in part], tokenizer)
        labels = batch.pop("labels")[:, 1:]
        best = model(**batch).logits[:, :-1].argmax(-1)
        for (task, _), good in zip(part, ((best == labels) | (labels == IGNORED)).all(1).tolist()):
            done, total = right.get(task, (0, 0))
            right[task] = done + good, total + 1
    return right


# --- training


def shared_gradients(model, extra: list[float]) -> list[float]:
    """Averages the gradients, and the numbers in `extra`, over the processes."""
    weights = list(model.parameters())
    flat = torch.cat([weight.grad.flatten() for weight in weights] + [torch.tensor(extra)])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    *gradients, extra = flat.split([weight.numel() for weight in weights] + [len(extra)])
    for weight, gradient in zip(weights, gradients):
        weight.grad = gradient.view_as(weight)
    return extra.tolist()


def learning_rate(step: int, warmup: int, part_done: float) -> float:
    """A short warm-up, then a cosine that follows the clock."""
    return min(1, (step + 1) / warmup) * (0.5 * (1 + math.cos(math.pi * part_done)) * 0.97 + 0.03)


def train(rank: int, args):
    """One of the processes that train together. Process 0 keeps the clock, saves and reports."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=args.meeting, rank=rank, world_size=args.processes)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**published_config(tokenizer))).float()
    init_weights(model)
    take_single_frames(model)
    optimizers = build_optimizers(model)
    rates = [(MATRIX_LR,), (OTHER_LR, OTHER_LR)]  # of the optimizers' groups
    warmup = RESUMED_WARMUP_STEPS if args.resume else WARMUP_STEPS
    if args.resume:
        state = torch.load(args.resume)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
    pictures = Pictures(tokenizer, args.digits)
    rng = random.Random(f"{args.seed} {rank}")
    step, part_done, mean_loss, next_save, start = 0, 0.0, None, FIRST_SAVE, time.time()
    if rank == 0:
        held_out = pictures.held_out(seed=999, count=400)
        parameters = sum(weight.numel() for weight in model.parameters())
        print(f"{parameters} parameters, {len(tokenizer)} tokens", flush=True)

    while part_done < 1:
        most_digits = 2 if part_done < SHORT_ROWS_UNTIL and not args.resume else 4
        rows = [pictures.training_row(rng, most_digits) for _ in range(BATCH // args.processes)]
        loss = model(**collate(rows, tokenizer)).loss
        loss.backward()
        minutes = (time.time() - start) / 60
        clock = minutes / args.minutes * args.processes if rank == 0 else 0.0
        part_done, loss = shared_gradients(model, [clock, loss.item()])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, group_rates in zip(optimizers, rates):
            for group, rate in zip(optimizer.param_groups, group_rates):
                group["lr"] = rate * args.lr * learning_rate(step, warmup, part_done)
            optimizer.step()
        model.zero_grad(set_to_none=True)
        step += 1
        mean_loss = loss if mean_loss is None else 0.98 * mean_loss + 0.02 * loss
        if rank != 0:
            continue
        if step % 100 == 0:
            print(f"step {step}, {minutes:.1f} min, loss {mean_loss:.4f}", flush=True)
        if minutes >= next_save or part_done >= 1:
            next_save += SAVE_EVERY
            save_checkpoint(model, tokenizer, args.out)
            if args.state:
                state = {
                    "model": model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                }
                torch.save(state, args.state)
            found = sorted(exact_matches(model, tokenizer, held_out).items())
            report = ", ".join(f"{task} {right} of {total}" for task, (right, total) in found)
            print(f"step {step}, {minutes:.1f} min: {report}", flush=True)
    if rank == 0 and args.average:
        earlier = torch.load(args.average)["model"]
        share = args.average_share
        mixed = {name: share * earlier[name] + (1 - share) * weight for name, weight in model.state_dict().items()}
        model.load_state_dict(mixed)
        save_checkpoint(model, tokenizer, args.out)
    distributed.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description="Trains the tiny Qwen3-VL checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint folder to write")
    parser.add_argument("--minutes", type=float, default=66)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--processes", type=int, default=2, help="each takes one core and its part of every batch"
    )
    parser.add_argument("--lr", type=float, default=1.0, help="scales all learning rates")
    parser.add_argument("--digits", type=float, default=TASK_MIX["digits"], help="share of digit rows")
    parser.add_argument("--state", type=Path, help="also save float32 weights and optimizer state here")
    parser.add_argument("--resume", type=Path, help="go on from such a state")
    parser.add_argument("--average", type=Path, help="in the end, mix in the weights of such a state")
    parser.add_argument("--average-share", type=float, default=0.3, help="how much of it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.meeting = f"file://{folder}/meeting"
        torch.multiprocessing.spawn(train, args=(args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
