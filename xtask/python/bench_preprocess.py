"""Times transformers' image processor on one picture, for `cargo xtask bench dataload`.

    python bench_preprocess.py --picture photo.jpg --max-pixels 16777216

From the file to pixel_values: `load_image` (Pillow) and `Qwen2VLImageProcessorPil`, on one thread, with the published
settings but for the largest size. One run goes first, untimed. Prints one JSON line with the median of the seconds, the
grid and the SHA-256 of pixel_values. Needs torch, torchvision, transformers 5.23 and Pillow 12: Pillow 13 changed the
order of the two resize passes for some shapes.
"""

import argparse
import hashlib
import json
import statistics
import sys
import time

import PIL
import torch
import transformers
from transformers.image_utils import load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MIN_PIXELS = 65_536


def processor(max_pixels: int):
    """The published settings of Qwen3-VL, but for the largest size."""
    if PIL.__version__.split(".")[0] != "12":
        sys.exit(f"error: Pillow {PIL.__version__}, where 12 is needed: another one makes other bits")
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels},
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def versions() -> dict:
    return {
        "pillow": PIL.__version__,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", required=True, metavar="FILE")
    parser.add_argument("--max-pixels", type=int, required=True, metavar="N")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N")
    args = parser.parse_args()

    torch.set_num_threads(1)
    process = processor(args.max_pixels)
    seconds = []
    for _ in range(args.repetitions + 1):
        start = time.perf_counter()
        result = process(images=load_image(args.picture), return_tensors="pt")
        seconds.append(time.perf_counter() - start)
    values = result["pixel_values"].numpy()
    line = {
        "metric": "preprocess",
        "max_pixels": args.max_pixels,
        "grid": result["image_grid_thw"][0].tolist(),
        "seconds": statistics.median(seconds[1:]),
        "sha256": hashlib.sha256(values.astype("<f4", copy=False).tobytes()).hexdigest(),
        "versions": versions(),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
