"""Writes the pictures of qvl-dataload's conformance tests, and what the reference makes of them.

    python xtask/python/make_pixel_cases.py crates/qvl-dataload/tests/data

The reference is transformers (Qwen2VLImageProcessorPil, Qwen3VLVideoProcessor, Qwen3VLProcessor) on Pillow 12: Pillow 13
changed the order of the two resize passes for some shapes. Needs numpy, torch, torchvision, Pillow 12, transformers 5.23.

    pixels/*            pictures of many sizes and modes, small enough to commit
    pixels/manifest.json    for each: decoded RGB, and for one or two size settings the grid, the resized RGB and
                            pixel_values, as SHA-256 (of bytes; of little-endian f32)
    jpeg/*.jpg, *.png   JPEG files and what Pillow decodes them to
    video/*             frames and a manifest: grid, pixel_values_videos, timestamps, sampled indices
    sizes.txt           smart_resize of both processors over a few thousand inputs

Everything is computed from fixed seeds with integer arithmetic, so a second run writes the same files.
"""
import argparse
import hashlib
import io
import json
import math
import os
import struct
import zlib

import numpy as np
import PIL
import torch
from PIL import Image
from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor
from transformers import __version__ as transformers_version
from transformers.image_utils import load_image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as image_reference
from transformers.models.qwen3_vl import video_processing_qwen3_vl as video_reference
from transformers.video_utils import VideoMetadata

PUBLISHED = (65_536, 16_777_216)
SMALL = (32 * 32, 128 * 128)
TINY = (32 * 32 * 4, 64 * 96)


def sha(data):
    return hashlib.sha256(data).hexdigest()


# --- pictures ---------------------------------------------------------------------------------------------------------


def noise(seed, shape):
    """Bytes from a counter through an integer mixer: the same with every version of numpy."""
    x = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(seed * 1_000_003 + 1)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) & np.uint64(255)).astype(np.uint8).reshape(shape)


def smooth(seed, w, h, channels=3):
    """Ramps and a few flat rectangles: sharp edges for the filter, cheap for PNG."""
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([(x * (3 + c + seed % 5) // 4 + y * (2 + (c + seed) % 3) // 3 + 40 * c) % 256 for c in range(channels)], -1)
    n = noise(seed, (12, 5 + channels)).astype(int)
    for r in n[:6]:
        x0, y0 = r[0] * w // 256, r[1] * h // 256
        x1, y1 = x0 + 1 + r[2] * w // 512, y0 + 1 + r[3] * h // 512
        a[y0:y1, x0:x1] = r[5:]
    return a.astype(np.uint8)


def grain(seed, w, h, channels=3):
    """The same with noise in one quarter, where every rounding error shows."""
    a = smooth(seed, w, h, channels)
    hh, ww = max(1, h // 2), max(1, w // 2)
    a[:hh, :ww] = noise(seed + 7, (hh, ww, channels))
    return a


def png(path, color, depth, rows, w, h, chunks=(), after=(), interlaced=None):
    """A PNG with exactly this colour type and depth; `rows` are packed bytes, one row each, or 8-bit RGB to interlace."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    if interlaced is not None:
        passes = (
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        )
        rows = [r.tobytes() for y, x, dy, dx in passes for r in interlaced[y::dy, x::dx]]
    raw = b"".join(b"\0" + bytes(r) for r in rows)
    with open(path, "wb") as f:
        f.write(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, color, 0, 0, interlaced is not None))
        )
        for kind, data in chunks:
            f.write(chunk(kind, data))
        f.write(chunk(b"IDAT", zlib.compress(raw, 9)))
        for kind, data in after:
            f.write(chunk(kind, data))
        f.write(chunk(b"IEND", b""))


def packed(values, bits):
    """Rows of small numbers, packed from the high bits on."""
    out = []
    for row in values:
        per = 8 // bits
        row = list(row) + [0] * (-len(row) % per)
        out.append(bytes(sum(int(v) << (8 - bits * (k + 1)) for k, v in enumerate(row[i:i + per])) for i in range(0, len(row), per)))
    return out


def words(values):
    """Rows of 16-bit samples, big-endian."""
    return [np.asarray(r, dtype=">u2").tobytes() for r in values]


def exif_orientation(value, little=True):
    e = "<" if little else ">"
    return (b"II*\0" if little else b"MM\0*") + struct.pack(e + "IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)


def gif(path, screen, frame, indices, palette, transparent=None, background=0, local=False):
    """A GIF of one frame that need not fill the screen; LZW without any compression."""
    (sw, sh), (left, top, w, h) = screen, frame
    bits = max(1, (len(palette) - 1).bit_length())
    table = b"".join(bytes(c) for c in palette) + bytes(3 * ((1 << bits) - len(palette)))
    out = b"GIF89a" + struct.pack("<HHBBB", sw, sh, 0 if local else 0x80 | (bits - 1), background, 0) + (b"" if local else table)
    if transparent is not None:
        out += b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    out += b"\x2c" + struct.pack("<HHHHB", left, top, w, h, 0x80 | (bits - 1) if local else 0) + (table if local else b"")
    minimum = max(2, bits)
    clear, acc, n, data = 1 << minimum, 0, 0, bytearray()
    codes = []
    for i, v in enumerate(indices):
        if i % ((1 << minimum) - 2) == 0:
            codes.append(clear)
        codes.append(int(v))
    for code in codes + [clear + 1]:
        acc |= code << n
        n += minimum + 1
        while n >= 8:
            data.append(acc & 255)
            acc >>= 8
            n -= 8
    if n:
        data.append(acc & 255)
    out += bytes([minimum])
    for i in range(0, len(data), 255):
        out += bytes([len(data[i:i + 255])]) + bytes(data[i:i + 255])
    with open(path, "wb") as f:
        f.write(out + b"\0\x3b")


def bmp(path, w, h, bits, compression, data, masks=(), palette=b""):
    """A BMP with exactly this depth and compression; rows from the bottom up, padded to four bytes."""
    masks = b"".join(struct.pack("<I", m) for m in masks)
    head = (
        struct.pack(
            "<IiiHHIIiiII", 40, w, h, 1, bits, compression, len(data), 2835, 2835, len(palette) // 4, 0
        )
        + masks
        + palette
    )
    with open(path, "wb") as f:
        f.write(b"BM" + struct.pack("<IHHI", 14 + len(head) + len(data), 0, 0, 14 + len(head)) + head + data)


def pictures(d):
    """Writes the pictures; yields (file, what it is there for, size settings)."""
    def save(name, array, what, settings=(SMALL,), **kw):
        Image.fromarray(array).save(os.path.join(d, name), **kw)
        return name, what, settings

    # Sizes.
    yield save("rgb_1x1.png", grain(1, 1, 1), "one pixel", (PUBLISHED, SMALL))
    yield save("rgb_3x5.png", grain(2, 3, 5), "fewer pixels than the filter is wide", (PUBLISHED, SMALL))
    yield save("rgb_17x31.png", grain(3, 17, 31), "below one patch", (SMALL, TINY))
    yield save("rgb_64x64.png", grain(4, 64, 64), "size unchanged", (SMALL, TINY))
    yield save("rgb_80x112.png", grain(5, 80, 112), "sides of 32k + 16: 80 to 64, 112 to 128", (SMALL, PUBLISHED))
    yield save("rgb_144x48.png", grain(6, 144, 48), "sides of 32k + 16: 144 to 128, 48 to 64", (SMALL, (1024, 10**7)))
    yield save("rgb_96x70.png", grain(7, 96, 70), "width unchanged, height shrunk", (((1024, 10**6)), TINY))
    yield save("rgb_70x96.png", grain(8, 70, 96), "height unchanged, width shrunk", (((1024, 10**6)), TINY))
    yield save("rgb_127x33.png", grain(9, 127, 33), "odd sides", (SMALL, TINY))
    yield save("rgb_200x1.png", grain(10, 200, 1), "aspect ratio of 200, the limit", (SMALL,))
    yield save("rgb_1x200.png", grain(11, 1, 200), "aspect ratio of 1/200, the limit", (SMALL,))
    yield save("rgb_1x37.png", grain(12, 1, 37), "one column", (SMALL,))
    yield save("rgb_190x9.png", grain(13, 190, 9), "height rounds to zero patches", (SMALL, PUBLISHED))
    yield save("rgb_1280x720.png", smooth(14, 1280, 720), "720 is 22.5 merged patches: the half goes to 22", (PUBLISHED, TINY))
    yield save("rgb_2000x1500.png", smooth(15, 2000, 1500), "large", (PUBLISHED, SMALL))
    yield save("rgb_1023x769.png", smooth(16, 1023, 769), "large and odd", (PUBLISHED, (1024, 300_000)))
    yield save("rgb_noise_61x47.png", noise(17, (47, 61, 3)), "noise: overshoot clips at both ends", (SMALL, TINY, PUBLISHED))
    black_white = np.kron(np.indices((9, 11)).sum(0) % 2, np.ones((5, 7))).astype(np.uint8)[..., None] * np.full(3, 255, np.uint8)
    yield save("rgb_checkers_77x45.png", black_white, "checkers: ringing clips at both ends", (SMALL, TINY))

    # Modes.
    yield save("l_70x50.png", grain(20, 70, 50, 1)[..., 0], "grey, 8 bits")
    yield save("la_52x41.png", grain(21, 52, 41, 2), "grey with alpha")
    yield save("rgba_66x44.png", grain(22, 66, 44, 4), "alpha is dropped, hidden colours and all", (SMALL, TINY))
    Image.fromarray((grain(23, 75, 43, 1)[..., 0] > 120)).save(os.path.join(d, "1_75x43.png"))
    yield "1_75x43.png", "one bit", (SMALL,)
    for bits in (2, 4):
        v = grain(24 + bits, 45, 39, 1)[..., 0] >> (8 - bits)
        png(os.path.join(d, f"l{bits}_45x39.png"), 0, bits, packed(v, bits), 45, 39)
        yield f"l{bits}_45x39.png", f"grey, {bits} bits", (SMALL,)
    for bits in (1, 2, 4, 8):
        v = grain(30 + bits, 51, 37, 1)[..., 0] >> (8 - bits)
        pal = noise(40 + bits, (1 << bits, 3)).tobytes()
        png(os.path.join(d, f"p{bits}_51x37.png"), 3, bits, packed(v, bits), 51, 37, [(b"PLTE", pal)])
        yield f"p{bits}_51x37.png", f"palette, {bits} bits", (SMALL,)
    v = grain(45, 58, 40, 1)[..., 0] % 200
    png(os.path.join(d, "p_trns_58x40.png"), 3, 8, packed(v, 8), 58, 40, [(b"PLTE", noise(46, (200, 3)).tobytes()), (b"tRNS", noise(47, (120,)).tobytes())])
    yield "p_trns_58x40.png", "palette with transparency, which is dropped", (SMALL,)
    v = grain(48, 40, 33, 1)[..., 0]
    png(os.path.join(d, "l_trns_40x33.png"), 0, 8, packed(v, 8), 40, 33, [(b"tRNS", struct.pack(">H", int(v[0, 0])))])
    yield "l_trns_40x33.png", "grey with a transparent value", (SMALL,)
    v = grain(37, 45, 39, 1)[..., 0] >> 6
    png(os.path.join(d, "l2_trns_45x39.png"), 0, 2, packed(v, 2), 45, 39, [(b"tRNS", b"\0\1")])
    yield "l2_trns_45x39.png", "grey of 2 bits with a transparent value, which Pillow compares unscaled", (SMALL,)
    for value in (0, 1):
        v = grain(38, 45, 39, 1)[..., 0] >> 7
        png(os.path.join(d, f"l1_trns{value}_45x39.png"), 0, 1, packed(v, 1), 45, 39, [(b"tRNS", bytes([0, value]))])
        yield f"l1_trns{value}_45x39.png", f"one bit with {value} transparent", (SMALL,)
    v = grain(45, 58, 40, 1)[..., 0] % 200
    key = int(v[-1, -1])
    png(os.path.join(d, "p_key_58x40.png"), 3, 8, packed(v, 8), 58, 40, [(b"PLTE", noise(46, (200, 3)).tobytes()), (b"tRNS", b"\xff" * key + b"\0\xff")])
    yield "p_key_58x40.png", "palette with one transparent entry, which turns white", (SMALL,)
    v = grain(49, 40, 33)
    png(os.path.join(d, "rgb_trns_40x33.png"), 2, 8, [r.tobytes() for r in v], 40, 33, [(b"tRNS", struct.pack(">HHH", *map(int, v[0, 0])))])
    yield "rgb_trns_40x33.png", "RGB with a transparent value", (SMALL,)
    deep = (grain(50, 48, 36, 1)[..., 0].astype(int) * 5 + noise(51, (36, 48)).astype(int) % 3 * 20_000) % 65_536
    png(os.path.join(d, "i16_48x36.png"), 0, 16, words(deep), 48, 36)
    yield "i16_48x36.png", "grey, 16 bits: clipped at 255", (SMALL,)
    png(os.path.join(d, "i16_trns_48x36.png"), 0, 16, words(deep), 48, 36, [(b"tRNS", struct.pack(">H", int(deep[0, 0])))])
    yield "i16_trns_48x36.png", "grey, 16 bits, with a transparent value", (SMALL,)
    deep[0, :9] = 0
    png(os.path.join(d, "i16_trns0_48x36.png"), 0, 16, words(deep), 48, 36, [(b"tRNS", b"\x01\0")])
    yield "i16_trns0_48x36.png", "the same, with a low byte of zero", (SMALL,)
    v = grain(39, 44, 38).astype(int) * 257
    png(os.path.join(d, "rgb16_trns_44x38.png"), 2, 16, words(v.reshape(38, -1)), 44, 38, [(b"tRNS", struct.pack(">HHH", *map(int, v[-1, -1])))])
    yield "rgb16_trns_44x38.png", "RGB, 16 bits, with a transparent value", (SMALL,)
    for name, color, n, what in (("la16", 4, 2, "grey with alpha"), ("rgb16", 2, 3, "RGB"), ("rgba16", 6, 4, "RGBA")):
        v = (grain(52 + n, 44, 38, n).astype(int) * 257 + noise(60 + n, (38, 44, n)).astype(int) * 3) % 65_536
        png(os.path.join(d, f"{name}_44x38.png"), color, 16, words(v.reshape(38, -1)), 44, 38)
        yield f"{name}_44x38.png", f"{what}, 16 bits: the low byte is dropped", (SMALL,)
    v = grain(70, 57, 46)
    png(os.path.join(d, "rgb_gamma_57x46.png"), 2, 8, [r.tobytes() for r in v], 57, 46, [(b"gAMA", struct.pack(">I", 100_000))])
    yield "rgb_gamma_57x46.png", "gamma, which is ignored", (SMALL,)

    v = grain(72, 53, 45)
    png(os.path.join(d, "rgb_interlaced_53x45.png"), 2, 8, None, 53, 45, interlaced=v)
    yield "rgb_interlaced_53x45.png", "Adam7 interlacing", (SMALL,)
    frames = [Image.fromarray(grain(73 + i, 40, 36, 4)) for i in range(2)]
    frames[0].save(os.path.join(d, "apng_40x36.png"), save_all=True, append_images=frames[1:], duration=50)
    yield "apng_40x36.png", "animated PNG: the first picture", (SMALL,)
    frames[0].save(
        os.path.join(d, "apng_default_40x36.png"),
        save_all=True,
        append_images=frames[1:],
        duration=50,
        default_image=True,
    )
    yield "apng_default_40x36.png", "animated PNG with a picture that is not part of the animation", (SMALL,)
    frames[0].save(
        os.path.join(d, "animated_40x36.webp"),
        save_all=True,
        append_images=frames[1:],
        duration=50,
        lossless=True,
        exact=True,
    )
    yield "animated_40x36.webp", "animated WebP with alpha: the first frame", (SMALL,)
    flat = [f.convert("RGB") for f in frames]
    flat[0].save(
        os.path.join(d, "animated_rgb_40x36.webp"),
        save_all=True,
        append_images=flat[1:],
        duration=50,
        lossless=True,
    )
    yield "animated_rgb_40x36.webp", "animated WebP: the first frame", (SMALL,)
    grey = [Image.fromarray(grain(75 + i, 40, 36, 1)[..., 0]) for i in range(2)]
    grey[0].save(os.path.join(d, "animated_40x36.gif"), save_all=True, append_images=grey[1:], duration=50)
    yield "animated_40x36.gif", "animated GIF: the first frame", (SMALL,)

    # Orientation.
    v = grain(71, 53, 29)
    for o in range(1, 9):
        png(os.path.join(d, f"exif_{o}_53x29.png"), 2, 8, [r.tobytes() for r in v], 53, 29, [(b"eXIf", exif_orientation(o, o % 2 == 0))])
        yield f"exif_{o}_53x29.png", f"EXIF orientation {o}", (SMALL,)
    png(os.path.join(d, "exif_9_53x29.png"), 2, 8, [r.tobytes() for r in v], 53, 29, [(b"eXIf", exif_orientation(9))])
    yield "exif_9_53x29.png", "an orientation that does not exist", (SMALL,)
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    png(os.path.join(d, "xmp_6_53x29.png"), 2, 8, [r.tobytes() for r in v], 53, 29, [(b"iTXt", xmp)])
    yield "xmp_6_53x29.png", "orientation from XMP", (SMALL,)
    png(os.path.join(d, "exif_late_53x29.png"), 2, 8, [r.tobytes() for r in v], 53, 29, after=[(b"eXIf", exif_orientation(6))])
    yield "exif_late_53x29.png", "EXIF after the pixels", (SMALL,)

    # Other formats.
    yield save("rgb_63x45.bmp", grain(80, 63, 45), "BMP, 24 bits")
    yield save("l_63x45.bmp", grain(81, 63, 45, 1)[..., 0], "BMP, grey palette")
    yield save("rgba_31x45.bmp", grain(82, 31, 45, 4), "BMP, 32 bits")
    Image.fromarray((grain(83, 63, 45, 1)[..., 0] > 99)).save(os.path.join(d, "1_63x45.bmp"))
    yield "1_63x45.bmp", "BMP, one bit", (SMALL,)
    v = noise(84, (45, 31)).astype("<u2") * 256 + noise(85, (45, 31))
    rows = b"".join(r.astype("<u2").tobytes() + bytes(2) for r in v)
    bmp(os.path.join(d, "565_31x45.bmp"), 31, 45, 16, 3, rows, (0xF800, 0x07E0, 0x001F))
    yield "565_31x45.bmp", "BMP, 16 bits 5-6-5", (SMALL,)
    bmp(os.path.join(d, "555_31x45.bmp"), 31, 45, 16, 0, rows)
    yield "555_31x45.bmp", "BMP, 16 bits 5-5-5", (SMALL,)
    runs = (
        b"".join(
            b"".join(bytes([1 + x % 2, int(i)]) for x, i in enumerate(r)) + b"\0\0"
            for r in noise(94, (20, 22))
        )
        + b"\0\1"
    )
    bmp(os.path.join(d, "rle8_33x20.bmp"), 33, 20, 8, 1, runs, palette=noise(95, (1024,)).tobytes())
    yield "rle8_33x20.bmp", "BMP, run lengths", (SMALL,)
    yield save("l_57x49.gif", grain(86, 57, 49, 1)[..., 0], "GIF, grey")
    indices = grain(87, 40, 30, 1)[..., 0].ravel() % 61
    pal = noise(88, (61, 3)).tolist()
    gif(os.path.join(d, "p_trns_40x30.gif"), (40, 30), (0, 0, 40, 30), indices, pal, transparent=int(indices[5]))
    yield "p_trns_40x30.gif", "GIF with a transparent index, whose colour shows", (SMALL,)
    gif(os.path.join(d, "p_local_40x30.gif"), (40, 30), (0, 0, 40, 30), indices, pal, local=True)
    yield "p_local_40x30.gif", "GIF with a local palette", (SMALL,)
    gif(os.path.join(d, "p_inset_64x50.gif"), (64, 50), (9, 7, 40, 30), indices, pal, background=3)
    yield "p_inset_64x50.gif", "GIF whose frame does not fill the screen", (SMALL,)
    gif(os.path.join(d, "p_inset_trns_64x50.gif"), (64, 50), (9, 7, 40, 30), indices, pal, transparent=4, background=3)
    yield "p_inset_trns_64x50.gif", "the same with a transparent index", (SMALL,)
    gif(os.path.join(d, "p_outside_45x33.gif"), (20, 33), (5, 2, 40, 30), indices, pal)
    yield "p_outside_45x33.gif", "GIF whose frame sticks out of the screen", (SMALL,)
    yield save("rgb_59x44.webp", grain(90, 59, 44), "WebP, lossless", lossless=True)
    yield save("rgba_59x44.webp", grain(91, 59, 44, 4), "WebP, lossless, alpha dropped with hidden colours", lossless=True, exact=True)
    yield save("exif_6_59x44.webp", grain(92, 59, 44), "WebP with EXIF orientation", lossless=True, exif=b"Exif\0\0" + exif_orientation(6))
    yield save("rgb_lossy_90x62.webp", smooth(93, 90, 62), "WebP, lossy", quality=80)
    yield save("rgba_lossy_91x63.webp", smooth(94, 91, 63, 4), "WebP, lossy with alpha", quality=60)


def still_cases(out):
    d = os.path.join(out, "pixels")
    os.makedirs(d, exist_ok=True)
    entries = []
    for name, what, settings in pictures(d):
        still = load_image(os.path.join(d, name))
        # What the processor starts from: load_image's RGB, with a single transparent colour laid on white.
        start = image_reference.Qwen2VLImageProcessorPil().process_image(still, do_convert_rgb=True)
        entry = dict(file=name, what=what, width=still.width, height=still.height, rgb=sha(np.ascontiguousarray(start.transpose(1, 2, 0)).tobytes()), cases=[])
        for low, high in settings:
            p = image_reference.Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=[.5] * 3, image_std=[.5] * 3, size=dict(shortest_edge=low, longest_edge=high))
            array = p.process_image(still, do_convert_rgb=True)
            resized = p.resize(array, p.size, p.resample, factor=32)
            r = p(images=[still], return_tensors="np")
            values = r["pixel_values"]
            assert values.dtype == np.float32
            entry["cases"].append(dict(min_pixels=low, max_pixels=high, grid=r["image_grid_thw"][0].tolist(),
                resized=sha(np.ascontiguousarray(resized.transpose(1, 2, 0)).tobytes()), pixel_values=sha(values.astype("<f4").tobytes())))
        entries.append(entry)
    # Other constants than mean and deviation of a half, to tell the order of operations.
    odd = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
    still = load_image(os.path.join(d, "rgb_noise_61x47.png"))
    other = []
    for change in (odd, dict(odd, rescale_factor=0.0039), dict(do_normalize=False), dict(odd, do_rescale=False), dict(do_rescale=False, do_normalize=False), dict(odd, patch_size=14), dict(odd, temporal_patch_size=1), dict(merge_size=1), dict(temporal_patch_size=3, merge_size=3)):
        p = image_reference.Qwen2VLImageProcessorPil(**{**dict(patch_size=16, image_mean=[.5] * 3, image_std=[.5] * 3, size=dict(shortest_edge=1024, longest_edge=128 * 128)), **change})
        r = p(images=[still], return_tensors="np")
        other.append(dict(config=json.loads(p.to_json_string()), grid=r["image_grid_thw"][0].tolist(), pixel_values=sha(r["pixel_values"].astype("<f4").tobytes())))
    write(os.path.join(d, "manifest.json"), dict(made_with=versions(), pictures=entries, settings=dict(file="rgb_noise_61x47.png", cases=other)))
    return len(entries)


# --- JPEG -------------------------------------------------------------------------------------------------------------


def photo(seed, w, h):
    """Smooth shading, edges and grain, as a camera gives."""
    y, x = np.mgrid[0:h, 0:w].astype(np.int64)
    a = np.stack([128 + 90 * np.sin(x / (17 + c)) * np.cos(y / (23 - c)) for c in range(3)], -1)
    a += (noise(seed, (h, w, 3)).astype(float) - 128) / 12
    a[h // 4:h // 2, w // 5:w // 2] = noise(seed + 1, (3,))
    a[(x - w * 2 // 3) ** 2 + (y - h * 2 // 3) ** 2 < (min(w, h) // 4) ** 2] = (220, 30, 60)
    return a.clip(0, 255).astype(np.uint8)


def jpeg_cases(out):
    d = os.path.join(out, "jpeg")
    os.makedirs(d, exist_ok=True)
    rgb = Image.fromarray(photo(100, 141, 99))
    ink = Image.fromarray(np.concatenate([photo(101, 93, 61), photo(102, 93, 61)[..., :1]], -1), "CMYK")
    exif = b"Exif\0\0" + exif_orientation(6, False)
    files = {
        "420_141x99": (rgb, dict(quality=85, subsampling="4:2:0")),
        "422_141x99": (rgb, dict(quality=90, subsampling="4:2:2")),
        "444_141x99": (rgb, dict(quality=92, subsampling="4:4:4")),
        "420_low_141x99": (rgb, dict(quality=25, subsampling="4:2:0")),
        "progressive_420_141x99": (rgb, dict(quality=85, progressive=True)),
        "progressive_444_141x99": (rgb, dict(quality=85, progressive=True, subsampling="4:4:4")),
        "restart_420_141x99": (rgb, dict(quality=80, restart_marker_blocks=3)),
        "grey_141x99": (rgb.convert("L"), dict(quality=85)),
        "rgb_141x99": (rgb, dict(quality=85, keep_rgb=True)),
        "cmyk_93x61": (ink, dict(quality=90)),
        "exif6_420_141x99": (rgb, dict(quality=85, exif=exif)),
        "420_1x1": (rgb.crop((70, 50, 71, 51)), dict(quality=85)),
        "420_17x3": (rgb.crop((10, 20, 27, 23)), dict(quality=85)),
    }
    for name, (image, options) in files.items():
        path = os.path.join(d, name + ".jpg")
        image.save(path, **options)
        load_image(path).save(os.path.join(d, name + ".png"), optimize=True)
    return len(files)


# --- video ------------------------------------------------------------------------------------------------------------


def video_cases(out):
    d = os.path.join(out, "video")
    os.makedirs(d, exist_ok=True)
    cases = []
    shapes = [  # name, frames, width, height, fps, area limits over all frames, other settings
        ("exact", 4, 64, 64, 2.0, (4096, 10**6), {}),
        ("odd_count", 5, 75, 52, 24.0, (4096, 10**5), {}),
        ("shrink", 3, 210, 130, 29.97, (4096, 60_000), {}),
        ("enlarge", 2, 41, 57, 10.0, (60_000, 200_000), {}),
        ("thin", 2, 150, 11, 1.0, (4096, 10**5), {}),
        ("capped", 6, 120, 90, 3.0, (4096, 10**5), dict(cap_pixels_per_frame=True, max_video_tokens=6)),
        ("one_direction", 3, 96, 70, 5.0, (4096, 10**6), {}),
        ("odd_constants", 3, 60, 50, 5.0, (4096, 10**6), dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])),
        ("no_normalize", 2, 60, 50, 5.0, (4096, 10**6), dict(do_normalize=False)),
        ("no_rescale", 2, 60, 50, 5.0, (4096, 10**6), dict(do_rescale=False)),
        ("plain_bytes", 2, 60, 50, 5.0, (4096, 10**6), dict(do_rescale=False, do_normalize=False)),
        ("unsized", 3, 64, 96, 5.0, (4096, 10**6), dict(do_resize=False)),
    ]
    stamps = Qwen3VLProcessor._calculate_timestamps
    for number, (name, n, w, h, fps, (low, high), change) in enumerate(shapes):
        frames = [grain(200 + number * 10 + i, w, h) for i in range(n)]
        files = []
        for i, f in enumerate(frames):
            files.append(f"{name}_{i}.png")
            Image.fromarray(f).save(os.path.join(d, files[-1]), optimize=True)
        p = Qwen3VLVideoProcessor(size=dict(shortest_edge=low, longest_edge=high), **change)
        video = np.stack(frames)
        r = p(videos=[video], do_sample_frames=False, return_tensors="pt")
        values = r["pixel_values_videos"].to(torch.float32).numpy()
        source = [3 * i + 1 for i in range(n)]
        resized = video_reference.Qwen3VLVideoProcessor.resize(p, torch.from_numpy(video).permute(0, 3, 1, 2)[None].contiguous(), p.size, p.resample, 32, 2, p.cap_pixels_per_frame)[0] if p.do_resize else torch.from_numpy(video).permute(0, 3, 1, 2)
        pillow = [np.asarray(Image.fromarray(f).resize((resized.shape[-1], resized.shape[-2]), Image.Resampling.BICUBIC)).astype(int) for f in frames]
        gap = np.abs(np.stack(pillow) - resized.permute(0, 2, 3, 1).numpy().astype(int))
        print(f"  video {name}: torchvision to Pillow: largest {gap.max()} levels, mean {gap.mean():.5f}, share {np.mean(gap > 0):.5f}")
        cases.append(dict(name=name, frames=files, fps=fps, source_indices=source, config=json.loads(p.to_json_string()), grid=r["video_grid_thw"][0].tolist(),
            resized=sha(np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy()).tobytes()),
            pixel_values=sha(values.astype("<f4").tobytes()), timestamps=stamps(None, list(source), fps, 2)))
    sampled = []
    p = Qwen3VLVideoProcessor()
    for total in (1, 2, 3, 4, 5, 7, 8, 10, 31, 48, 100, 241, 900, 1801, 5000):
        for fps in (0.5, 1.0, 2.0, 3.0, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94, 60.0):
            indices = p.sample_frames(VideoMetadata(total_num_frames=total, fps=fps)).tolist()
            times = stamps(None, list(indices), fps, 2)
            short = dict(total=total, fps=fps, count=len(indices), indices=sha(",".join(map(str, indices)).encode()), timestamps=sha(np.asarray(times, "<f8").tobytes()))
            if len(indices) <= 8:
                short["indices_are"] = indices
            sampled.append(short)
    write(os.path.join(d, "manifest.json"), dict(made_with=versions(), videos=cases, sampled=sampled))
    return len(cases), len(sampled)


# --- sizes ------------------------------------------------------------------------------------------------------------


def size_cases(out):
    """Lines `i height width factor min max = h w` and `v frames height width temporal factor min max = h w`, or `= -`."""
    def attempt(f, *args):
        try:
            return "%d %d" % f(*args)
        except ValueError:
            return "-"
    sides = [1, 2, 3, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 80, 100, 112, 144, 199, 200, 201, 208, 240, 336, 480, 511, 640, 720, 768, 1040, 1080, 1280, 1920, 2160, 3000, 4000, 6000]
    limits = [PUBLISHED, SMALL, (32 * 32, 10**9), (200_000, 300_000)]
    lines = []
    for k, (h, w) in enumerate((h, w) for h in sides for w in sides):
        low, high = limits[k % 4]
        lines.append(f"i {h} {w} 32 {low} {high} = {attempt(image_reference.smart_resize, h, w, 32, low, high)}")
        low, high = limits[(k // 4 + 1) % 4]
        factor = (28, 32, 16, 48)[k % 7 % 4]
        lines.append(f"i {h} {w} {factor} {low} {high} = {attempt(image_reference.smart_resize, h, w, factor, low, high)}")
        n, temporal = (1, 2, 3, 4, 5, 7, 10, 13, 64, 768)[k % 10], (2, 2, 2, 3)[k % 13 % 4]
        low, high = ((131_072, 786_432), (4096, 25_165_824), (4096, 10**6))[k % 11 % 3]
        lines.append(f"v {n} {h} {w} {temporal} 32 {low} {high} = {attempt(video_reference.smart_resize, n, h, w, temporal, 32, low, high)}")
    with open(os.path.join(out, "sizes.txt"), "w") as f:
        f.write("\n".join(lines) + "\n")
    return len(lines)


def versions():
    return dict(pillow=PIL.__version__, transformers=transformers_version, torch=torch.__version__, cpu_capability=torch.backends.cpu.get_cpu_capability())


def write(path, value):
    """JSON with one picture, video or sampling a line."""
    text = json.dumps(value, indent=None)
    for mark in ('{"file": ', '{"name": ', '{"total": ', '{"config": '):
        text = text.replace(mark, "\n" + mark)
    with open(path, "w") as f:
        f.write(text + "\n")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", help="the folder to write, crates/qvl-dataload/tests/data")
    a = a.parse_args()
    assert PIL.__version__.split(".")[0] == "12", f"Pillow {PIL.__version__}: the expected values are those of Pillow 12"
    print("stills:", still_cases(a.out))
    print("jpeg:", jpeg_cases(a.out))
    print("videos, samplings:", *video_cases(a.out))
    print("sizes:", size_cases(a.out))


if __name__ == "__main__":
    main()
