//! Drawn photographs: pictures that decoders, filters and coders find as hard as those of a camera.
//!
//! In photographs every octave of spatial frequency has about the same variance (the amplitude falls as 1/f), there
//! are areas of one colour with sharp borders, and everything lies under the grain of a sensor. Here a few square
//! *fields* are made once: noise at every octave from the whole side down to single pixels, with the finest octaves
//! weaker, as lenses make them. A picture mixes windows of them. The signs of two smooth fields cut it into four kinds of
//! areas, each with its colour and its strength of texture; two rough fields are the texture.
//!
//! Of 200 such files: 0.10 to 0.43 bytes a pixel, 0.21 on the whole; the power of the luminance falls with the
//! frequency to the power of -2.5 (-2.2 to -2.8 of eight in ten), where 2 to 2.5 is said of photographs.
//!
//! A picture follows from the seed and its index alone, in integers and in floats that are only added, multiplied and
//! rounded: the same bytes on every machine and with any number of threads.

use anyhow::Result;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

/// Changes whenever the same seed gives other pictures.
pub(crate) const VERSION: u32 = 1;

/// Width, height, and how many of 25 pictures have them, whichever way they are held. The mean is 3.0 megapixels.
///
/// Messengers send 960 to 2048 pixels of the longer side; cameras of telephones make 5, 8 and 12 megapixels.
const SIZES: [(u32, u32, u32); 9] = [
    (640, 480, 3),
    (1280, 960, 4),
    (1350, 1080, 2),
    (1600, 1200, 5),
    (1920, 1080, 3),
    (2048, 1536, 4),
    (2592, 1944, 1),
    (3264, 2448, 1),
    (4032, 3024, 2),
];
/// From this width on it is a camera's file, which is compressed less than a messenger's.
const CAMERA_WIDTH: u32 = 2592;

/// How a picture's colours are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chroma {
    /// 4:2:0, as nearly all cameras and messengers do.
    Quarter,
    /// 4:4:4.
    Full,
}

impl Chroma {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Quarter => "4:2:0",
            Self::Full => "4:4:4",
        }
    }
}

/// What a picture is, before it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drawing {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// 82 to 95 of a camera, 75 to 87 of a messenger.
    pub(crate) quality: u8,
    /// One in eight is 4:4:4.
    pub(crate) chroma: Chroma,
    seed: u64,
}

impl Drawing {
    /// The picture with this index of those with this seed. A third is upright.
    pub(crate) fn nth(seed: u64, index: u64) -> Self {
        let mut random = Random::new(seed, index.wrapping_add(1));
        let all = SIZES.iter().map(|size| size.2).sum();
        let mut place = random.below(all);
        let (long, short) = SIZES
            .into_iter()
            .find_map(|(long, short, share)| match place.checked_sub(share) {
                None => Some((long, short)),
                Some(rest) => {
                    place = rest;
                    None
                }
            })
            .unwrap_or((SIZES[0].0, SIZES[0].1));
        let (width, height) = if random.below(3) == 0 { (short, long) } else { (long, short) };
        let (lowest, qualities) = if long >= CAMERA_WIDTH { (82, 14) } else { (75, 13) };
        let quality = (lowest + random.below(qualities)) as u8;
        let chroma = if random.below(8) == 0 { Chroma::Full } else { Chroma::Quarter };
        Self { width, height, quality, chroma, seed: random.next() }
    }

    /// A picture of exactly this size, as a camera stores it.
    pub(crate) fn camera(seed: u64, width: u32, height: u32) -> Self {
        let mut random = Random::new(seed, 0);
        Self { width, height, quality: 90, chroma: Chroma::Quarter, seed: random.next() }
    }

    /// The picture's RGB as a JPEG.
    pub(crate) fn jpeg(&self, rgb: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, self.quality);
        encoder.set_sampling_factor(match self.chroma {
            Chroma::Quarter => SamplingFactor::F_2_2,
            Chroma::Full => SamplingFactor::F_1_1,
        });
        encoder.encode(rgb, self.width as u16, self.height as u16, ColorType::Rgb)?;
        Ok(bytes)
    }
}

/// Width and height of a field, a power of two. Windows wrap round its edges.
const SIDE: usize = 4096;
/// Width and height of the coarsest grid a field starts from.
const COARSEST: usize = 4;
/// Standard deviation of a field's values.
const DEVIATION: f32 = 32.0;
/// Grains of the sensor, drawn once and read from another place in every row.
const GRAINS: usize = 1 << 16;

/// What all pictures of a seed are cut from; 64 MiB.
pub(crate) struct Fields {
    rough: [Vec<i8>; 2],
    smooth: [Vec<i8>; 2],
    grain: Vec<i8>,
}

/// What one kind of area looks like.
#[derive(Clone, Copy)]
struct Area {
    colour: [f32; 3],
    /// Levels of a texture of one, by channel.
    texture: [f32; 3],
}

impl Fields {
    /// Takes a second or two, on four threads.
    pub(crate) fn new(seed: u64) -> Self {
        std::thread::scope(|scope| {
            let make = |stream: u64, finest: usize| {
                scope.spawn(move || field(&mut Random::new(seed, u64::MAX - stream), finest))
            };
            let made = [make(1, SIDE), make(2, SIDE), make(3, SMOOTH_CELLS), make(4, SMOOTH_CELLS)];
            let [a, b, u, v] = made.map(|thread| thread.join().unwrap_or_default());
            let mut random = Random::new(seed, u64::MAX);
            // Eight uniform numbers together are near enough to a normal one; -128 to 120.
            let one =
                |bytes: [u8; 8]| bytes.into_iter().map(|byte| i32::from(byte / 8) - 16).sum::<i32>() as i8;
            let grain = (0..GRAINS).map(|_| one(random.bytes())).collect();
            Self { rough: [a, b], smooth: [u, v], grain }
        })
    }

    /// Interleaved RGB.
    pub(crate) fn draw(&self, drawing: &Drawing) -> Vec<u8> {
        let mut random = Random::new(drawing.seed, 0);
        let (width, height) = (drawing.width as usize, drawing.height as usize);
        // A messenger's picture was shrunk from a larger one: more happens between neighbouring pixels.
        let step = if drawing.width.max(drawing.height) >= CAMERA_WIDTH { 1 } else { 2 };
        let mut corner = || (random.below(SIDE as u32) as usize, random.below(SIDE as u32) as usize);
        let corners = [corner(), corner(), corner(), corner()];
        let detail = random.between(0.7, 1.5);
        let areas: [Area; 4] = std::array::from_fn(|_| {
            let light = random.between(60.0, 190.0);
            let strength = detail * random.between(0.1, 1.0);
            let colour = std::array::from_fn(|_| light + random.between(-30.0, 30.0));
            Area { colour, texture: std::array::from_fn(|_| strength * random.between(0.8, 1.1)) }
        });
        let borders = [random.between(-25.0, 25.0) as i8, random.between(-25.0, 25.0) as i8];
        let mix = random.between(0.2, 0.8);
        let grain = random.between(0.03, 0.12) * step as f32;

        let mut rgb = Vec::with_capacity(3 * width * height);
        for y in 0..height {
            let row = |field: usize| {
                let (left, top) = corners[field];
                let values = match field {
                    0 | 1 => &self.rough[field],
                    _ => &self.smooth[field - 2],
                };
                (&values[((top + step * y) % SIDE) * SIDE..][..SIDE], left)
            };
            let [a, b, u, v] = [row(0), row(1), row(2), row(3)];
            let grains = random.below(GRAINS as u32) as usize;
            for x in 0..width {
                let at = |(values, left): (&[i8], usize)| values[(left + step * x) % SIDE];
                let (u, v) = (at(u), at(v));
                let area = &areas[usize::from(u > borders[0]) + 2 * usize::from(v > borders[1])];
                let texture = f32::from(at(a)) * mix + f32::from(at(b)) * (1.0 - mix);
                let grain = f32::from(self.grain[(grains + x) % GRAINS]) * grain;
                let shade = 0.3 * f32::from(u) + grain;
                for channel in 0..3 {
                    let value = area.colour[channel] + area.texture[channel] * texture + shade;
                    rgb.push((value + 0.5) as u8);
                }
            }
        }
        rgb
    }
}

/// Cells along a side beyond which a smooth field has no noise of its own: its borders are lines, not dust.
const SMOOTH_CELLS: usize = 32;

/// Noise at every octave from `COARSEST` cells along a side to `finest`, equally strong but for the last two.
fn field(random: &mut Random, finest: usize) -> Vec<i8> {
    let mut side = COARSEST;
    let mut values = vec![0.0; side * side];
    add_noise(random, &mut values, 1.0);
    while side < SIDE {
        values = doubled(&values, side);
        side *= 2;
        let strength = match SIDE / side {
            _ if side > finest => continue,
            1 => 0.25,
            2 => 0.6,
            _ => 1.0,
        };
        add_noise(random, &mut values, strength);
    }
    // In a fixed order, so that the sum has the same bits everywhere.
    let square: f32 = values.chunks(SIDE).map(|row| row.iter().map(|v| v * v).sum::<f32>()).sum();
    let scale = DEVIATION / (square / values.len() as f32).sqrt();
    values.into_iter().map(|value| (value * scale) as i8).collect()
}

fn add_noise(random: &mut Random, values: &mut [f32], strength: f32) {
    for values in values.chunks_mut(8) {
        for (value, byte) in values.iter_mut().zip(random.bytes()) {
            *value += (f32::from(byte) - 127.5) * strength;
        }
    }
}

/// A square of values that wraps round, with twice as many along each side, blended so that no cells show.
fn doubled(values: &[f32], side: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(4 * side * side);
    let mut blended = vec![0.0; side];
    for y in 0..2 * side {
        let near = &values[y / 2 * side..][..side];
        let far = &values[neighbour(y, side) * side..][..side];
        for ((blended, near), far) in blended.iter_mut().zip(near).zip(far) {
            *blended = 0.75 * near + 0.25 * far;
        }
        out.extend((0..2 * side).map(|x| 0.75 * blended[x / 2] + 0.25 * blended[neighbour(x, side)]));
    }
    out
}

/// The cell on the other side of half a cell.
fn neighbour(half: usize, side: usize) -> usize {
    let step = if half.is_multiple_of(2) { side - 1 } else { 1 };
    (half / 2 + step) % side
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// Numbers of their own for every stream of a seed.
    fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed);
        let mixed = random.next() ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03);
        Self(mixed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self) -> [u8; 8] {
        self.next().to_le_bytes()
    }

    fn below(&mut self, end: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u32
    }

    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * ((self.next() >> 40) as f32 / (1 << 24) as f32)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use qvl_dataload::vision::{DecodeLimits, Still};

    use super::*;

    const SEED: u64 = 7;
    static FIELDS: LazyLock<Fields> = LazyLock::new(|| Fields::new(SEED));

    fn pixels(drawing: &Drawing) -> u64 {
        u64::from(drawing.width) * u64::from(drawing.height)
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let again = Fields::new(SEED);
        assert!(again.rough == FIELDS.rough && again.smooth == FIELDS.smooth && again.grain == FIELDS.grain);
        let small =
            (0..).map(|index| Drawing::nth(SEED, index)).find(|d| d.width == 640).expect("one of eight");
        assert!(FIELDS.draw(&small) == again.draw(&small));
        assert_ne!(Drawing::nth(SEED, 0), Drawing::nth(SEED + 1, 0));
        assert_ne!(Fields::new(SEED + 1).grain, FIELDS.grain);
    }

    #[test]
    fn sizes_qualities_and_colours_are_drawn_as_promised() {
        let drawn: Vec<Drawing> = (0..4000).map(|index| Drawing::nth(SEED, index)).collect();
        let mean = drawn.iter().map(pixels).sum::<u64>() as f64 / 4000.0;
        assert!((2.8e6..3.2e6).contains(&mean), "{mean}");
        let share = |fits: fn(&Drawing) -> bool| drawn.iter().filter(|d| fits(d)).count() as f64 / 4000.0;
        assert!((share(|d| d.chroma == Chroma::Full) - 1.0 / 8.0).abs() < 0.02);
        assert!((share(|d| d.height > d.width) - 1.0 / 3.0).abs() < 0.03);
        assert!((share(|d| pixels(d) == 4032 * 3024) - 2.0 / 25.0).abs() < 0.02);
        assert!(drawn.iter().all(|d| (75..=95).contains(&d.quality)));
    }

    #[test]
    fn files_have_the_size_drawn_and_weigh_what_photographs_do() {
        let (mut bytes, mut area) = (0, 0);
        for drawing in (0..24).map(|index| Drawing::nth(SEED, index)) {
            let jpeg = drawing.jpeg(&FIELDS.draw(&drawing)).expect("encodes");
            let still = Still::decode(&jpeg, "drawn", &DecodeLimits::default()).expect("decodes");
            assert_eq!((still.width(), still.height()), (drawing.width, drawing.height));
            let weight = jpeg.len() as f64 / pixels(&drawing) as f64;
            assert!((0.06..0.7).contains(&weight), "{weight} bytes a pixel: {drawing:?}");
            (bytes, area) = (bytes + jpeg.len(), area + pixels(&drawing));
        }
        let weight = bytes as f64 / area as f64;
        assert!((0.15..0.4).contains(&weight), "{weight} bytes a pixel");
    }
}
