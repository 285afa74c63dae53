"""Makes the expected values of the block formats: what the package gguf decodes and encodes.

    python make_block_cases.py

Writes to crates/qvl-model/tests/data/blocks: for each format random blocks, `NAME.blocks`, and the values they decode
to, `NAME.f32`; values to encode, `values.f32`, and for the formats that the package encodes what they become,
`NAME.encoded`. Everything is little-endian.
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

FORMATS = ["Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K"]
ENCODED = ["Q8_0", "Q4_0"]
OUT = Path(__file__).resolve().parents[2] / "crates/qvl-model/tests/data/blocks"
# Where the scales of a block are.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_blocks(rng: np.random.Generator, name: str, count: int) -> np.ndarray:
    """All bytes random, but scales finite: any sign, zeros and subnormal numbers among them."""
    _, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for at in SCALES[name]:
        scales = rng.integers(0, 2**16, count, dtype=np.uint16)
        scales[(scales & 0x7C00) == 0x7C00] ^= 0x4000
        scales[:4] = [0x0000, 0x8000, 0x0001, 0x83FF]
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


def values(rng: np.random.Generator) -> np.ndarray:
    """Rows of 256: as weights are, and at the edges."""
    rows = [rng.normal(0, 0.02, 256) for _ in range(8)]
    rows += [rng.standard_t(4, 256) * 0.01 for _ in range(4)]
    rows += [
        np.zeros(256),
        np.full(256, 0.25),
        np.full(256, -0.25),
        np.abs(rng.normal(0, 1, 256)),
        -np.abs(rng.normal(0, 1, 256)),
        np.arange(-128, 128) / 4,
        np.where(np.arange(256) % 32 == 7, -3.0, 0.0),
        rng.normal(0, 1, 256) * 1e-6,
        rng.normal(0, 1, 256) * 1e-30,
        rng.normal(0, 1, 256) * 1e5,
        np.repeat([0.5, -0.5, 1.5, -2.5], 64) * 127,
        np.tile(rng.normal(0, 1, 32), 8),
    ]
    return np.stack(rows).astype(np.float32)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    for name in FORMATS:
        blocks = random_blocks(rng, name, 24 if name in ENCODED else 12)
        blocks.tofile(OUT / f"{name}.blocks")
        quants.dequantize(blocks, GGMLQuantizationType[name]).astype("<f4").tofile(OUT / f"{name}.f32")
    to_encode = values(rng)
    to_encode.astype("<f4").tofile(OUT / "values.f32")
    for name in ENCODED:
        quants.quantize(to_encode, GGMLQuantizationType[name]).tofile(OUT / f"{name}.encoded")


if __name__ == "__main__":
    main()
