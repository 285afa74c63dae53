"""What each stage of transformers' image processing makes of picture files, for `cargo xtask certificate`.

    python certificate.py photo.jpg drawing.png [--checkpoint DIR]

One JSON line a picture with the SHA-256 of the RGB bytes after `load_image`, of those after the resize of
`Qwen2VLImageProcessorPil`, and of pixel_values as little-endian f32. Needs torch, torchvision, transformers 5.23 and
Pillow 12.
"""

import argparse
import hashlib
import json

import numpy as np
from transformers.image_utils import SizeDict, load_image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bench_preprocess import processor, versions

PUBLISHED_MAX_PIXELS = 16_777_216


def sha(array, kind) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, dtype=kind).tobytes()).hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", nargs="+", metavar="PICTURE")
    parser.add_argument("--checkpoint", metavar="DIR", help="folder with the settings; as published otherwise")
    args = parser.parse_args()

    process = processor(PUBLISHED_MAX_PIXELS)
    if args.checkpoint:
        process = Qwen2VLImageProcessorPil.from_pretrained(args.checkpoint)
    factor = process.patch_size * process.merge_size
    for path in args.pictures:
        image = load_image(path)
        pixels = np.asarray(image)
        # Channels first, as the processor hands it on.
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        size = process.size if isinstance(process.size, SizeDict) else SizeDict(**process.size)
        resized = process.resize(planes, size, process.resample, factor) if process.do_resize else planes
        result = process(images=image, return_tensors="pt")
        line = {
            "metric": "certificate",
            "picture": path,
            "size": list(image.size),
            "resized": [resized.shape[2], resized.shape[1]],
            "grid": result["image_grid_thw"][0].tolist(),
            "decode": sha(pixels, "u1"),
            "resize": sha(np.asarray(resized).transpose(1, 2, 0), "u1"),
            "patchify": sha(result["pixel_values"].numpy(), "<f4"),
            "versions": versions(),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
