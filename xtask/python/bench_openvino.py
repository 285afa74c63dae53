"""Times OpenVINO GenAI on one prompt or one picture, for `cargo xtask bench`.

    python bench_openvino.py --model DIR --threads 2 --prefill 512
    python bench_openvino.py --model DIR --threads 2 --picture photo.jpg
    python bench_openvino.py --model DIR --threads 2 --decode 32

Prints one JSON line: {"metric": "prefill" | "vision" | "decode", "tokens": N, "seconds": S}. A request of
another kind goes first, untimed, since the first one compiles; none repeats an earlier prompt, since the
pipeline keeps the keys and values of what it has seen.

- prefill: from the embeddings of N tokens to the first token of the answer
- vision: decoding the file, image processing and vision tower
- decode: the tokens after the first
"""

import argparse
import io
import json
import random
import time

import numpy as np
import openvino as ov
import openvino_genai as genai
from PIL import Image

# Common enough to be in any vocabulary; drawn at random they never make the same prompt twice.
WORDS = "time year people way day man thing woman life child world school state family hand part".split()


def prompt(tokenizer, tokens: int, seed: int) -> str:
    """A text of so many tokens, as near as whole words allow."""
    draw = random.Random(seed)
    words = [draw.choice(WORDS) for _ in range(tokens)]
    low, high = 1, len(words)
    while low < high:
        middle = (low + high) // 2
        count = tokenizer.encode(" ".join(words[:middle])).input_ids.shape[1]
        low, high = (middle + 1, high) if count < tokens else (low, middle)
    return " ".join(words[:low])


def answer(pipeline, text: str, images=(), tokens: int = 1):
    """The pipeline's own timings of an answer of exactly so many tokens."""
    config = genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.ignore_eos = True
    config.do_sample = False
    given = {"images": list(images)} if images else {}
    return pipeline.generate(text, generation_config=config, **given).perf_metrics


def prefill_seconds(metrics) -> float:
    """Time to the first token without the preparation of the embeddings, pictures among them."""
    return (metrics.get_ttft().mean - metrics.get_prepare_embeddings_duration().mean) / 1e3


def pixels(data: bytes):
    """A picture file as the pipeline takes it, [1, height, width, 3]."""
    return ov.Tensor(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[None])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder that optimum-cli export openvino wrote")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as OpenVINO likes")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prefill", type=int, metavar="TOKENS")
    what.add_argument("--decode", type=int, metavar="TOKENS")
    what.add_argument("--picture", metavar="FILE")
    args = parser.parse_args()

    properties = {"INFERENCE_NUM_THREADS": args.threads} if args.threads else {}
    pipeline = genai.VLMPipeline(args.model, "CPU", **properties)
    tokenizer = pipeline.get_tokenizer()
    if args.prefill:
        # The warm-up has the same length, so that buffers have their size.
        answer(pipeline, prompt(tokenizer, args.prefill, 1))
        metrics = answer(pipeline, prompt(tokenizer, args.prefill, 2))
        tokens, seconds = metrics.get_num_input_tokens(), prefill_seconds(metrics)
        line = {"metric": "prefill", "tokens": tokens, "seconds": seconds}
    elif args.decode:
        answer(pipeline, prompt(tokenizer, 8, 1), tokens=4)
        metrics = answer(pipeline, prompt(tokenizer, 8, 2), tokens=args.decode + 1)
        seconds = metrics.get_tpot().mean * args.decode / 1e3
        line = {"metric": "decode", "tokens": args.decode, "seconds": seconds}
    else:
        with open(args.picture, "rb") as file:
            data = file.read()
        grey = Image.new("RGB", (448, 448), (127, 127, 127))
        answer(pipeline, "Describe the image.", [ov.Tensor(np.asarray(grey)[None])])
        start = time.perf_counter()
        image = pixels(data)
        decoding = time.perf_counter() - start
        metrics = answer(pipeline, "What is this?", [image])
        seconds = decoding + metrics.get_prepare_embeddings_duration().mean / 1e3
        line = {"metric": "vision", "tokens": metrics.get_num_input_tokens(), "seconds": seconds}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
