"""Times torch's DataLoader over a folder of pictures, for `cargo xtask bench dataload`.

    python bench_torch_loader.py --folder photographs --count 128 --workers 2 --batch-size 4 --max-pixels 1048576

Each item is `load_image` and `Qwen2VLImageProcessorPil` as in bench_preprocess.py, on one thread of its worker; a batch
is a list of items, which are not joined, since ours are not. The files are read once before, and the workers, which stay, make the first batches
once, untimed. Prints one JSON line: items a second, patches, and the SHA-256 of the pixel_values of the first items.
"""

import argparse
import hashlib
import json
import os
import time

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.image_utils import load_image

from bench_preprocess import processor, versions


class Pictures(Dataset):
    def __init__(self, files, max_pixels):
        self.files = files
        self.process = processor(max_pixels)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.process(images=load_image(self.files[index]), return_tensors="pt")["pixel_values"]


class Range(Sampler):
    """The first so many items, in order; how many may change between two epochs of the same workers."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(range(self.count))


def single(_):
    torch.set_num_threads(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, metavar="DIR")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="files, the first by name")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N")
    parser.add_argument("--max-pixels", type=int, required=True, metavar="N")
    parser.add_argument("--warm-up", type=int, default=8, metavar="N", help="items made first, untimed")
    args = parser.parse_args()

    torch.set_num_threads(1)
    names = sorted(name for name in os.listdir(args.folder) if name.endswith(".jpg"))[: args.count]
    files = [os.path.join(args.folder, name) for name in names]
    for path in files:
        with open(path, "rb") as file:
            file.read()
    order = Range(min(args.warm_up, len(files)))
    loader = DataLoader(
        Pictures(files, args.max_pixels),
        batch_size=args.batch_size,
        sampler=order,
        num_workers=args.workers,
        collate_fn=list,
        worker_init_fn=single,
        persistent_workers=True,
    )
    digest = hashlib.sha256()
    for batch in loader:
        for values in batch:
            digest.update(values.numpy().astype("<f4", copy=False).tobytes())
    order.count = len(files)
    patches = 0
    start = time.perf_counter()
    for batch in loader:
        patches += sum(len(values) for values in batch)
    seconds = time.perf_counter() - start
    line = {
        "metric": "loader",
        "items": len(files),
        "patches": patches,
        "seconds": seconds,
        "items_per_second": len(files) / seconds,
        "sha256": digest.hexdigest(),
        "versions": versions(),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
