"""Times the bicubic resize of Pillow or Pillow-SIMD on raw bytes, for `cargo xtask bench dataload`.

    python bench_resize.py --rgb 12mp.rgb --from 4032x3024 --to 1024x1024 --out resized.rgb

One run goes first, untimed. Writes the result's bytes and prints one JSON line with the median of the seconds. Needs
nothing but one of the two libraries.
"""

import argparse
import json
import statistics
import time

import PIL
from PIL import Image


def size(text: str) -> tuple:
    width, height = text.split("x")
    return int(width), int(height)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rgb", required=True, metavar="FILE", help="interleaved RGB bytes")
    parser.add_argument("--from", dest="from_size", type=size, required=True, metavar="WxH")
    parser.add_argument("--to", dest="to_size", type=size, required=True, metavar="WxH")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--repetitions", type=int, default=9, metavar="N")
    args = parser.parse_args()

    with open(args.rgb, "rb") as file:
        image = Image.frombytes("RGB", args.from_size, file.read())
    seconds = []
    for _ in range(args.repetitions + 1):
        start = time.perf_counter()
        resized = image.resize(args.to_size, Image.Resampling.BICUBIC)
        seconds.append(time.perf_counter() - start)
    with open(args.out, "wb") as file:
        file.write(resized.tobytes())
    line = {"metric": "resize", "seconds": statistics.median(seconds[1:]), "versions": {"pillow": PIL.__version__}}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
