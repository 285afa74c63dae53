"""The three tasks of the tiny checkpoint: their pictures, prompts and answers, and the split of the digits.

    digits     a row of one to four digits by hand    -> "407"
    describe   two drawn shapes, one right wording    -> "a small red circle left of a large blue star"
    count      one to six drawn shapes                -> "3"

The handwritten digits are scikit-learn's copy of the UCI "Optical Recognition of Handwritten Digits" set:
1,797 scans of 8x8. 360 of them are held out here, and only the "test" split draws from those. Training and
measuring both take their pictures from this module, so the split is defined once.
"""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

PROMPTS = {
    "digits": "Read the number.",
    "describe": "Describe the image.",
    "count": "How many shapes are there?",
}
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 40),
    "purple": (140, 60, 180),
    "orange": (240, 140, 30),
    "black": (20, 20, 20),
    "cyan": (40, 200, 210),
}
SHAPES = ["circle", "square", "triangle", "star", "cross"]
SIZES = {"small": (14, 20), "large": (30, 40)}  # side of the drawn shape in pixels, from and to
RELATIONS = ["left of", "above"]

CELL = 32  # a vision token covers 32x32 pixels, and Qwen resizes both sides to multiples of it
MIN_PIXELS = 64 * 64  # smaller pictures are enlarged
MAX_PIXELS = 192 * 192  # larger pictures are shrunk
HELD_OUT_DIGITS = 360


def _split_digits():
    digits = load_digits()
    order = np.random.RandomState(7).permutation(len(digits.images))
    parts = {"test": order[:HELD_OUT_DIGITS], "train": order[HELD_OUT_DIGITS:]}
    by_class = {
        split: [[int(i) for i in part if digits.target[i] == k] for k in range(10)]
        for split, part in parts.items()
    }
    return (digits.images / 16.0).astype(np.float32), by_class


GLYPHS, DIGITS = _split_digits()  # ink 0..1 as [1797, 8, 8]; DIGITS[split][k]: the scans that show a k


@dataclass(frozen=True)
class Layout:
    """How a picture is laid out. The plain one has sides that are multiples of 32: nothing resizes it."""

    any_sides: bool = False
    scale: float = 1.0

    def pixels(self, length: float) -> int:
        return round(length * self.scale)

    def side(self, rng, cells: int) -> int:
        extra = rng.randint(1, CELL - 1) if self.any_sides else 0
        return round(CELL * cells * self.scale) + extra


PLAIN = Layout()


def draw_shape(draw, shape, x, y, size, colour):
    """Draws one shape into the square of side `size` whose upper left corner is (x, y)."""
    half = size / 2
    if shape == "circle":
        draw.ellipse([x, y, x + size, y + size], fill=colour)
    elif shape == "square":
        draw.rectangle([x, y, x + size, y + size], fill=colour)
    elif shape == "triangle":
        draw.polygon([(x + half, y), (x + size, y + size), (x, y + size)], fill=colour)
    elif shape == "star":
        radii = (half, size / 4.5)
        corners = [
            (radii[i % 2] * math.sin(math.pi * i / 5), radii[i % 2] * math.cos(math.pi * i / 5))
            for i in range(10)
        ]
        draw.polygon([(x + half + dx, y + half - dy) for dx, dy in corners], fill=colour)
    elif shape == "cross":
        arm = size / 3
        draw.rectangle([x + arm, y, x + size - arm, y + size], fill=colour)
        draw.rectangle([x, y + arm, x + size, y + size - arm], fill=colour)
    else:
        raise ValueError(f"no such shape: {shape}")


def background(rng):
    grey = rng.randint(225, 255)
    return grey, grey, rng.randint(225, 255)


def digit_ink(rng, glyph, size, distort):
    """One digit as ink 0..1 of [size, size, 1]. `distort` changes angle, size, slant, place and thickness."""
    if not distort:
        ink = Image.fromarray((glyph * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(ink, np.float32)[..., None] / 255
    thickness = math.exp(rng.uniform(-0.4, 0.4))
    padded = Image.fromarray((np.pad(glyph, 1) ** thickness * 255).astype(np.uint8))
    angle, shear = rng.uniform(-0.22, 0.22), rng.uniform(-0.22, 0.22)
    unit = len(glyph) / size  # source pixels per drawn pixel
    zoom_x, zoom_y = unit / rng.uniform(0.82, 1.08), unit / rng.uniform(0.82, 1.08)
    cos, sin = math.cos(angle), math.sin(angle)
    a, b = zoom_x * (cos + shear * sin), zoom_x * (shear * cos - sin)
    d, e = zoom_y * sin, zoom_y * cos
    middle, drawn = padded.width / 2, size / 2
    c = middle - a * drawn - b * drawn + rng.uniform(-0.5, 0.5)
    f = middle - d * drawn - e * drawn + rng.uniform(-0.5, 0.5)
    ink = padded.transform((size, size), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)
    return np.asarray(ink, np.float32)[..., None] / 255


def read_digits(rng, split, layout=PLAIN, most_digits=4):
    """A row of digits, dark on light. Training digits are distorted two times out of three."""
    count, size = rng.randint(1, most_digits), rng.randint(26, 40)
    width = layout.side(rng, rng.randint(max(2, math.ceil((count * size + 8) / CELL)), 6))
    height = layout.side(rng, rng.randint(2, 4))
    size = layout.pixels(size)
    paper = np.asarray(Image.new("RGB", (width, height), background(rng)), np.float32).copy()
    colour = np.array([rng.randint(0, 90) for _ in range(3)], np.float32)
    x, line = rng.randint(2, width - count * size - 2), rng.randint(2, height - size - 2)
    wobble = layout.pixels(3)
    answer = ""
    for _ in range(count):
        digit = rng.randint(0, 9)
        distort = split == "train" and rng.random() < 2 / 3
        ink = digit_ink(rng, GLYPHS[rng.choice(DIGITS[split][digit])], size, distort)
        y = min(max(line + rng.randint(-wobble, wobble), 0), height - size)
        area = paper[y : y + size, x : x + size]
        area[:] = area * (1 - ink) + colour * ink
        x += size
        answer += str(digit)
    return Image.fromarray(paper.clip(0, 255).astype(np.uint8)), answer


def count_shapes(rng, layout=PLAIN):
    """One to six shapes, each in a cell of its own."""
    columns, rows = rng.randint(3, 5), rng.randint(3, 5)
    count = rng.randint(1, 6)
    image = Image.new("RGB", (layout.side(rng, columns), layout.side(rng, rows)), background(rng))
    draw = ImageDraw.Draw(image)
    cell = layout.pixels(CELL)
    cells = [(column, row) for column in range(columns) for row in range(rows)]
    rng.shuffle(cells)
    for column, row in cells[:count]:
        size = layout.pixels(rng.randint(14, 26))
        x, y = column * cell + rng.randint(1, cell - 1 - size), row * cell + rng.randint(1, cell - 1 - size)
        draw_shape(draw, rng.choice(SHAPES), x, y, size, rng.choice(list(COLORS.values())))
    return image, str(count)


def describe_two(rng, layout=PLAIN):
    """Two shapes beside or above each other. The left or the upper one is named first: one right answer."""
    width, height = layout.side(rng, rng.randint(3, 5)), layout.side(rng, rng.randint(3, 5))
    image = Image.new("RGB", (width, height), background(rng))
    draw = ImageDraw.Draw(image)
    relation = rng.choice(RELATIONS)
    along, across = (width, height) if relation == "left of" else (height, width)
    words = []
    for half in range(2):
        size_name, colour, shape = rng.choice(list(SIZES)), rng.choice(list(COLORS)), rng.choice(SHAPES)
        size = layout.pixels(rng.randint(*SIZES[size_name]))
        low, high = (1, along // 2 - size - 2) if half == 0 else (along // 2 + 2, along - size - 2)
        position = rng.randint(low, max(low, high))
        offset = min(max(across // 2 - size // 2 + rng.randint(-8, 8), 1), across - size - 1)
        x, y = (position, offset) if relation == "left of" else (offset, position)
        draw_shape(draw, shape, x, y, size, COLORS[colour])
        words.append(f"a {size_name} {colour} {shape}")
    return image, f"{words[0]} {relation} {words[1]}"


def resized_layout(rng, task):
    """A layout that needs Qwen's resize. `describe` names sizes, so there the scale stays near one."""
    return Layout(
        any_sides=True, scale=rng.uniform(0.95, 1.2) if task == "describe" else rng.uniform(0.9, 1.6)
    )


def make_picture(rng, task, split, resized=False, most_digits=4):
    """Draws one picture: (image, answer). `resized`: its sides are no multiples of 32."""
    layout = resized_layout(rng, task) if resized else PLAIN
    if task == "digits":
        return read_digits(rng, split, layout, most_digits)
    return describe_two(rng, layout) if task == "describe" else count_shapes(rng, layout)


def resized_sides(width: int, height: int) -> tuple[int, int]:
    """The sides after Qwen's resize: multiples of 32, the area between MIN_PIXELS and MAX_PIXELS."""
    new_width, new_height = round(width / CELL) * CELL, round(height / CELL) * CELL
    if new_width * new_height > MAX_PIXELS:
        ratio = math.sqrt(width * height / MAX_PIXELS)
        new_width = max(CELL, math.floor(width / ratio / CELL) * CELL)
        new_height = max(CELL, math.floor(height / ratio / CELL) * CELL)
    elif new_width * new_height < MIN_PIXELS:
        ratio = math.sqrt(MIN_PIXELS / (width * height))
        new_width = math.ceil(width * ratio / CELL) * CELL
        new_height = math.ceil(height * ratio / CELL) * CELL
    return new_width, new_height


def resize(image: Image.Image) -> Image.Image:
    """The image processor's resize: bicubic, on bytes."""
    sides = resized_sides(*image.size)
    return image if sides == image.size else image.resize(sides, Image.Resampling.BICUBIC)


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The picture as it comes back from a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def tokenizer_corpus() -> list[str]:
    """The text from which the vocabulary is learned: every wording of a shape, and the prompts."""
    phrases = [
        f"a {size} {colour} {shape} {relation} a {size} {colour} {shape}"
        for size in SIZES
        for colour in COLORS
        for shape in SHAPES
        for relation in RELATIONS
    ]
    chat = ["user\n", "assistant\n", "system\n", "You are a helpful assistant."]
    return phrases + [*PROMPTS.values(), *chat] * 50
