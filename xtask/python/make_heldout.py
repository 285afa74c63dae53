"""Writes the held-out pictures on which the tiny checkpoint is measured, and the samples for trying it out.

    python make_heldout.py --out DIR --seed 2024 --count 400
    python make_heldout.py --samples DIR --seed 6

DIR gets small PNG files and `manifest.jsonl`, one line a picture: {"images": ["000.png"], "prompt": "...",
"answer": "...", "task": "digits|describe|count"}, the paths relative to the manifest. Of ten pictures four
are digits (only of scans that training never saw), four describe, two count; every fifth has sides that are
no multiples of 32. The samples are eight such pictures with `samples.jsonl`; one of them is a JPEG.
"""

import argparse
import json
import random
from pathlib import Path

import tiny_tasks as tasks

TASK_OF = ["digits", "describe", "count", "describe", "digits"]  # of picture number i: TASK_OF[i % 5]
# Name, task, whether it needs the resize, and the fewest things it shows.
SAMPLES = [
    ("digits-1.png", "digits", False, 4),
    ("digits-2.jpg", "digits", False, 3),
    ("digits-3.png", "digits", True, 4),
    ("shapes-1.png", "describe", False, 0),
    ("shapes-2.png", "describe", False, 0),
    ("shapes-3.png", "describe", True, 0),
    ("count-1.png", "count", False, 3),
    ("count-2.png", "count", True, 5),
]


def line(name, task, answer):
    return {"images": [name], "prompt": tasks.PROMPTS[task], "answer": answer, "task": task}


def write_lines(path: Path, lines):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))


def write_heldout(out: Path, seed: int, count: int):
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    lines = []
    for i in range(count):
        task = TASK_OF[i % len(TASK_OF)]
        resized = (i // len(TASK_OF)) % 5 == i % 5
        image, answer = tasks.make_picture(rng, task, "test", resized)
        name = f"{i:03}.png"
        image.save(out / name, optimize=True)
        lines.append(line(name, task, answer))
    write_lines(out / "manifest.jsonl", lines)


def shown(task, answer):
    """How many things a picture shows, as far as the samples care."""
    return len(answer) if task == "digits" else int(answer) if task == "count" else 2


def write_samples(out: Path, seed: int):
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"samples {seed}")
    lines = []
    for name, task, resized, fewest in SAMPLES:
        image, answer = tasks.make_picture(rng, task, "test", resized)
        while shown(task, answer) < fewest:
            image, answer = tasks.make_picture(rng, task, "test", resized)
        image.save(out / name, **(dict(quality=95) if name.endswith(".jpg") else dict(optimize=True)))
        lines.append(line(name, task, answer))
    write_lines(out / "samples.jsonl", lines)


def main():
    parser = argparse.ArgumentParser(
        description="Writes held-out pictures and samples for the tiny checkpoint."
    )
    parser.add_argument("--out", type=Path, help="the folder for the held-out set")
    parser.add_argument("--samples", type=Path, help="the folder for the samples")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--count", type=int, default=400, help="how many held-out pictures")
    args = parser.parse_args()
    if not args.out and not args.samples:
        parser.error("give --out, --samples or both")
    if args.out:
        write_heldout(args.out, args.seed, args.count)
    if args.samples:
        write_samples(args.samples, args.seed)


if __name__ == "__main__":
    main()
