//! Compression where it pays for this value: a sample says what each codec would gain, and the link below says what
//! that gain is worth.
//!
//! The decision is pure and made of constants, not of a calibration at run time: how a value is stored then does not
//! depend on what the machine was doing when the first one was put, and a factor of two in a codec's speed moves the
//! decision less than the uncertainty of a link's bandwidth does. Who knows better sets [`Speeds`] and [`Link`].
//!
//! What it comes to, with the constants below: pictures (JPEG, WebP) and random bytes are stored as they are
//! everywhere; bf16 weights, of which zstd takes 22 % off the exponents and lz4 nothing, only where the link is below
//! some 90 MB/s; text, JSON and whatever else has repetitions is compressed on a drive and on a network.

use super::format::Compression;

/// Values with fewer bytes are not compressed: a file takes a block of the drive anyway.
pub const VALUE_BYTES_MIN: usize = 512;

/// Bytes of each of the three pieces of a sample.
pub const PIECE_BYTES: usize = 16 * 1024;

/// A codec that leaves more than this share of the bytes is not used: what it gains is not worth a copy at every read.
pub const RATIO_MAX: f64 = 0.97;

/// The share of the time without compression that a codec must come under. The estimates are not better than this.
pub const TIME_SHARE_MAX: f64 = 0.95;

/// lz4 counts in 32 bits; a block above this is not given to it.
const LZ4_BYTES_MAX: usize = 1 << 30;

/// zstd's level for speed. Level 3 gained 7 % on source text, nothing on weights, and took 1.2 to 5 times as long.
const ZSTD_LEVEL: i32 = 1;

/// What was found of a value's sample: bytes after by bytes before, for each codec.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// With lz4.
    pub lz4: f64,
    /// With zstd, level 1.
    pub zstd: f64,
}

/// Speeds of the codecs, in bytes of the uncompressed value a second, on one core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    /// Compressing with lz4.
    pub lz4_compress: f64,
    /// Decompressing lz4.
    pub lz4_decompress: f64,
    /// Compressing with zstd, level 1.
    pub zstd_compress: f64,
    /// Decompressing zstd.
    pub zstd_decompress: f64,
}

impl Default for Speeds {
    /// Rounded down from source text on one core of a Xeon server, the slowest to compress of text, JSON, weights and
    /// token ids there: 405 and 1,759 MB/s for lz4 (`lz4_flex` without unsafe code), 363 and 1,363 MB/s for zstd.
    /// Decompressing is taken lower by more, so that a laptop is not promised too much.
    fn default() -> Self {
        Self { lz4_compress: 400e6, lz4_decompress: 1.5e9, zstd_compress: 300e6, zstd_decompress: 800e6 }
    }
}

/// What lies below: what a byte less is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bytes a second, reading and writing alike.
    pub bytes_per_second: f64,
    /// How often a value is read for each time it is written.
    pub reads: f64,
    /// What it is worth that a byte less leaves room for another, in transfers of that byte: under a budget, what does
    /// not fit must be fetched from further away. 0 where room is no matter.
    pub room: f64,
}

impl Link {
    /// A drive: 500 MB/s (a SATA drive, or NVMe shared with others), every value read twice, under a budget.
    pub const DRIVE: Self = Self { bytes_per_second: 500e6, reads: 2.0, room: 1.0 };
    /// An object store over a network: 100 MB/s, every value read twice.
    pub const NETWORK: Self = Self { bytes_per_second: 100e6, reads: 2.0, room: 0.0 };
}

/// The codec that costs the least time over the life of a value, or none.
///
/// With a ratio `r`, the time per byte of the value is
///
/// ```text
/// r · (1 + reads + room) / bytes_per_second  +  1 / compress  +  reads / decompress
/// ```
///
/// and without compression the first term with `r = 1`. A codec must gain [`RATIO_MAX`] in bytes and
/// [`TIME_SHARE_MAX`] in time. Figures that are not finite or not positive choose none.
pub fn choose(ratios: Ratios, speeds: Speeds, link: Link) -> Compression {
    let transfers = 1.0 + link.reads + link.room;
    let plain = transfers / link.bytes_per_second;
    let time = |ratio: f64, compress: f64, decompress: f64| {
        ratio * transfers / link.bytes_per_second + 1.0 / compress + link.reads / decompress
    };
    let lz4 = time(ratios.lz4, speeds.lz4_compress, speeds.lz4_decompress);
    let zstd = time(ratios.zstd, speeds.zstd_compress, speeds.zstd_decompress);
    // Comparisons are written so that what is not a number does not pay.
    let pays = |ratio: f64, time: f64| {
        ratio <= RATIO_MAX && time >= 0.0 && plain.is_finite() && time <= plain * TIME_SHARE_MAX
    };
    match (pays(ratios.lz4, lz4), pays(ratios.zstd, zstd)) {
        (true, true) if zstd < lz4 => Compression::Zstd,
        (true, _) => Compression::Lz4,
        (false, true) => Compression::Zstd,
        (false, false) => Compression::None,
    }
}

/// Compresses three pieces of the value, from its start, middle and end, with both codecs.
///
/// Costs 0.1 to 0.3 ms, whatever the value's length.
pub fn sample(value: &[u8]) -> Ratios {
    let joined: Vec<u8>;
    let piece = if value.len() <= 3 * PIECE_BYTES {
        value
    } else {
        let middle = (value.len() - PIECE_BYTES) / 2;
        let pieces =
            [&value[..PIECE_BYTES], &value[middle..][..PIECE_BYTES], &value[value.len() - PIECE_BYTES..]];
        joined = pieces.concat();
        &joined
    };
    let ratio = |compression| {
        let after = compress(compression, piece).map_or(piece.len(), |compressed| compressed.len());
        after as f64 / piece.len().max(1) as f64
    };
    let lz4 = if value.len() > LZ4_BYTES_MAX { 1.0 } else { ratio(Compression::Lz4) };
    Ratios { lz4, zstd: ratio(Compression::Zstd) }
}

/// The value compressed as [`choose`] says for its [`sample`], or `None` if it is better stored as it is.
pub fn compress_if_it_pays(value: &[u8], speeds: Speeds, link: Link) -> Option<(Compression, Vec<u8>)> {
    if value.len() < VALUE_BYTES_MIN {
        return None;
    }
    let compression = choose(sample(value), speeds, link);
    let compressed = compress(compression, value)?;
    // The sample was a guess; the whole value is what counts.
    (compressed.len() as f64 <= value.len() as f64 * RATIO_MAX).then_some((compression, compressed))
}

/// The value compressed, or `None` if it is not to be or cannot be.
pub(crate) fn compress(compression: Compression, value: &[u8]) -> Option<Vec<u8>> {
    match compression {
        Compression::None => None,
        Compression::Lz4 => Some(lz4_flex::block::compress(value)),
        Compression::Zstd => zstd::bulk::compress(value, ZSTD_LEVEL).ok(),
    }
}

/// Decompresses into exactly the bytes given. `false`, and anything in them, if `stored` is not what became of as many.
pub(crate) fn decompress(compression: Compression, stored: &[u8], into: &mut [u8]) -> bool {
    let len = into.len();
    match compression {
        Compression::None => false,
        Compression::Lz4 => lz4_flex::block::decompress_into(stored, into).is_ok_and(|bytes| bytes == len),
        Compression::Zstd => zstd::bulk::decompress_to_buffer(stored, into).is_ok_and(|bytes| bytes == len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random and are the same in every run (Vigna's SplitMix64).
    fn random(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)).to_le_bytes()
        };
        (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
    }

    /// Weights as a network has them: a sum of uniform numbers, near enough to normal, of 0.02, cut to bf16.
    fn bf16_weights(count: usize) -> Vec<u8> {
        let uniform = random(count * 8);
        let weight = |bytes: &[u8]| {
            let sum: i32 = bytes.iter().map(|&byte| i32::from(byte) - 128).sum();
            (sum as f32 / 200.0 * 0.02 + f32::from(bytes[0]) * 1e-6).to_bits() >> 16
        };
        uniform.as_chunks::<8>().0.iter().flat_map(|bytes| (weight(bytes) as u16).to_le_bytes()).collect()
    }

    fn text(len: usize) -> Vec<u8> {
        let line = |i: usize| {
            format!("{{\"picture\": {i}, \"caption\": \"a dog beside a tree, number {}\"}}\n", i * i)
        };
        (0..).flat_map(|i| line(i).into_bytes()).take(len).collect()
    }

    fn kind(value: &[u8], link: Link) -> Compression {
        compress_if_it_pays(value, Speeds::default(), link).map_or(Compression::None, |(kind, _)| kind)
    }

    #[test]
    fn random_bytes_and_weights_stay_as_they_are() {
        for link in [Link::DRIVE, Link::NETWORK] {
            assert_eq!(kind(&random(500_000), link), Compression::None);
            assert_eq!(kind(&bf16_weights(200_000), link), Compression::None);
        }
        let slow = Link { bytes_per_second: 50e6, ..Link::NETWORK };
        assert_eq!(kind(&bf16_weights(200_000), slow), Compression::Zstd);
    }

    #[test]
    fn text_is_compressed_as_the_link_asks_for() {
        assert_eq!(kind(&text(300_000), Link::NETWORK), Compression::Zstd);
        assert_ne!(kind(&text(300_000), Link::DRIVE), Compression::None);
        let memory = Link { bytes_per_second: 20e9, reads: 2.0, room: 0.0 };
        assert_eq!(kind(&text(300_000), memory), Compression::None);
    }

    #[test]
    fn what_gains_less_than_3_percent_stays_as_it_is() {
        let slow = Link { bytes_per_second: 1e3, reads: 1.0, room: 0.0 };
        let speeds = Speeds::default();
        assert_eq!(choose(Ratios { lz4: 0.98, zstd: 0.975 }, speeds, slow), Compression::None);
        assert_eq!(choose(Ratios { lz4: 0.98, zstd: 0.9 }, speeds, slow), Compression::Zstd);
        assert_eq!(choose(Ratios { lz4: 0.9, zstd: 0.9 }, speeds, slow), Compression::Lz4);
        // Its start, middle and end compress, but hardly anything of it does.
        let mut value = random(4_000_000);
        let middle = (value.len() - PIECE_BYTES) / 2;
        for start in [0, middle, value.len() - PIECE_BYTES] {
            value[start..start + PIECE_BYTES].fill(0);
        }
        assert!(sample(&value).zstd < 0.01);
        assert_eq!(compress_if_it_pays(&value, speeds, slow), None);
    }

    #[test]
    fn nonsense_figures_choose_none() {
        let good = Ratios { lz4: 0.1, zstd: 0.1 };
        for bytes_per_second in [f64::NAN, 0.0, -1.0, f64::INFINITY] {
            let link = Link { bytes_per_second, reads: 1.0, room: 0.0 };
            assert_eq!(choose(good, Speeds::default(), link), Compression::None, "{bytes_per_second}");
        }
        let nan = Ratios { lz4: f64::NAN, zstd: f64::NAN };
        assert_eq!(choose(nan, Speeds::default(), Link::NETWORK), Compression::None);
    }

    #[test]
    fn small_values_stay_as_they_are() {
        assert_eq!(kind(&[0; VALUE_BYTES_MIN - 1], Link::NETWORK), Compression::None);
        assert_ne!(kind(&[0; VALUE_BYTES_MIN], Link::NETWORK), Compression::None);
    }

    #[test]
    fn damaged_bytes_do_not_decompress_to_more_than_there_is_room_for_nor_panic() {
        let value = text(5_000);
        for compression in [Compression::Lz4, Compression::Zstd] {
            let stored = compress(compression, &value).unwrap();
            let mut into = vec![0; value.len()];
            assert!(decompress(compression, &stored, &mut into));
            assert_eq!(into, value);
            for len in 0..stored.len() {
                assert!(!decompress(compression, &stored[..len], &mut into), "{compression:?}, {len} bytes");
            }
            for byte in 0..stored.len() {
                let mut other = stored.clone();
                other[byte] ^= 0x55;
                // Some of these decompress, to something else; the checksum is what finds them.
                decompress(compression, &other, &mut into);
            }
        }
    }
}
