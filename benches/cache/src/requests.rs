//! What is asked for, and what the values are: the same for all sides.

use anyhow::{Result, ensure};
use bytes::Bytes;

/// Values of the mixed trace have 4 KiB to 4 MiB.
pub(crate) const VALUE_BYTES_MIN: usize = 4 << 10;
pub(crate) const VALUE_BYTES_MAX: usize = 4 << 20;
/// Room for the key, the length and a word.
#[cfg(feature = "qvl")]
const RECORDED_BYTES_MIN: usize = 24;
/// How steep the popularity of keys falls: the n-th is asked for n^-0.9 times as often as the first.
const ZIPF_EXPONENT: f64 = 0.9;
/// One request in five is an insert.
const INSERT_SHARE: f64 = 0.2;

/// Random numbers that are the same everywhere.
#[derive(Clone)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// In [0, 1).
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The value of a key: its key, its length, then words that depend on the key and the place. This is what the origin
/// does on a miss, for every side.
pub(crate) fn make(key: u64, bytes: usize) -> Bytes {
    let mut value = Vec::with_capacity(bytes);
    value.extend_from_slice(&key.to_le_bytes());
    value.extend_from_slice(&(bytes as u64).to_le_bytes());
    let words = (bytes.saturating_sub(value.len()) / 8) as u64;
    for index in 0..words {
        value.extend_from_slice(&word(key, index).to_le_bytes());
    }
    value.resize(bytes, 0);
    Bytes::from(value)
}

fn word(key: u64, index: u64) -> u64 {
    mix((key ^ index.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Whether a value is that of the key, looking at the key, the length and three words.
pub(crate) fn check(key: u64, bytes: usize, value: &[u8]) -> Result<()> {
    ensure!(value.len() == bytes, "the value of {key} has {} bytes, not {bytes}", value.len());
    let at = |place: usize| value.get(place..)?.first_chunk().copied().map(u64::from_le_bytes);
    let words = bytes.saturating_sub(16) / 8;
    let expected = [(0, key), (8, bytes as u64)];
    let drawn =
        [0, words / 2, words.saturating_sub(1)].map(|index| (16 + 8 * index, word(key, index as u64)));
    for (place, expected) in expected.into_iter().chain(drawn.into_iter().filter(|_| words > 0)) {
        ensure!(at(place) == Some(expected), "the value of {key} is wrong at byte {place}");
    }
    Ok(())
}

/// Draws keys by rank: 0 is the most popular.
pub(crate) struct Zipf {
    /// Sums of the weights up to each rank.
    sums: Vec<f64>,
}

impl Zipf {
    pub(crate) fn new(keys: usize) -> Self {
        let mut sum = 0.0;
        let sums = (1..=keys).map(|rank| {
            sum += (rank as f64).powf(-ZIPF_EXPONENT);
            sum
        });
        Self { sums: sums.collect() }
    }

    pub(crate) fn draw(&self, random: &mut SplitMix) -> u64 {
        let all = self.sums.last().copied().unwrap_or_default();
        let drawn = random.share() * all;
        self.sums.partition_point(|&sum| sum <= drawn).min(self.sums.len() - 1) as u64
    }
}

/// A request of a client.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) key: u64,
    /// Of the key's value.
    pub(crate) bytes: usize,
    /// Whether a fresh value is put in, else the value is asked for.
    pub(crate) insert: bool,
}

/// Keys and the requests for them.
pub(crate) struct Trace {
    /// Bytes of each key's value, by key.
    pub(crate) sizes: Vec<usize>,
    /// Brings a cache into its usual state.
    pub(crate) warm_up: Vec<Request>,
    pub(crate) measured: Vec<Request>,
}

impl Trace {
    /// As many keys as have `data_bytes` of values, asked for by popularity.
    pub(crate) fn zipf(data_bytes: u64, requests: usize) -> Self {
        let mut sizes = Vec::new();
        let mut all = 0;
        while all < data_bytes {
            let ratio = (VALUE_BYTES_MAX / VALUE_BYTES_MIN) as f64;
            let bytes = VALUE_BYTES_MIN as f64 * ratio.powf(SplitMix(sizes.len() as u64).share());
            let bytes = bytes as usize / 8 * 8;
            sizes.push(bytes);
            all += bytes as u64;
        }
        let zipf = Zipf::new(sizes.len());
        let mut random = SplitMix(0x71_76_6c);
        let mut draw = |count: usize| -> Vec<Request> {
            let request = |_| {
                let key = zipf.draw(&mut random);
                let insert = random.share() < INSERT_SHARE;
                Request { key, bytes: sizes[key as usize], insert }
            };
            (0..count).map(request).collect()
        };
        let (warm_up, measured) = (draw(requests / 2), draw(requests));
        Self { sizes, warm_up, measured }
    }

    /// A recorded trace, once to warm up and once to be measured, with the recorded sizes. As everywhere here one request in five is an insert; recorded writes are too.
    #[cfg(feature = "qvl")]
    pub(crate) fn recorded(path: &std::path::Path) -> Result<Self> {
        let trace = qvl_cache::trace::Trace::read(path)?;
        let mut keys = std::collections::HashMap::new();
        let mut sizes: Vec<usize> = Vec::new();
        for request in &trace.requests {
            let bytes = usize::try_from(request.bytes)?.max(RECORDED_BYTES_MIN);
            let key = *keys.entry(request.id).or_insert(sizes.len());
            match sizes.get_mut(key) {
                Some(size) => *size = bytes.max(*size),
                None => sizes.push(bytes),
            }
        }
        let mut random = SplitMix(0x71_76_6c);
        let measured = trace.requests.iter().map(|request| {
            let key = keys[&request.id];
            let insert = request.write | (random.share() < INSERT_SHARE);
            Request { key: key as u64, bytes: sizes[key], insert }
        });
        let measured: Vec<Request> = measured.collect();
        Ok(Self { sizes, warm_up: measured.clone(), measured })
    }

    /// Every key once, in an order that has nothing to do with popularity.
    pub(crate) fn every_key(&self) -> Vec<Request> {
        let mut keys: Vec<u64> = (0..self.sizes.len() as u64).collect();
        keys.sort_by_key(|&key| mix(key));
        keys.into_iter().map(|key| Request { key, bytes: self.sizes[key as usize], insert: false }).collect()
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        self.sizes.iter().map(|&bytes| bytes as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_that_of_its_key_and_length_only() {
        for bytes in [16, 24, 4096, 100_003] {
            let value = make(7, bytes);
            assert!(check(7, bytes, &value).is_ok(), "{bytes}");
            assert!(check(8, bytes, &value).is_err() && check(7, bytes + 8, &value).is_err(), "{bytes}");
        }
        let mut damaged = make(7, 4096).to_vec();
        damaged[16] ^= 1;
        assert!(check(7, 4096, &damaged).is_err());
    }

    #[test]
    fn popular_keys_are_drawn_more_often() {
        let (zipf, mut random) = (Zipf::new(1000), SplitMix(1));
        let mut counts = vec![0; 1000];
        for _ in 0..200_000 {
            counts[zipf.draw(&mut random) as usize] += 1;
        }
        // The second is asked for 2^-0.9 = 0.536 times as often.
        let ratio = f64::from(counts[1]) / f64::from(counts[0]);
        assert!((0.5..0.58).contains(&ratio), "{ratio}");
        assert!(counts[999] > 0);
    }

    #[test]
    fn a_trace_has_the_bytes_and_the_inserts_it_should() {
        let trace = Trace::zipf(100 << 20, 10_000);
        let all = trace.data_bytes();
        assert!((100 << 20..(104 << 20) + 1).contains(&all), "{all}");
        let inserts = trace.measured.iter().filter(|request| request.insert).count();
        assert!((1900..2100).contains(&inserts), "{inserts}");
        assert!(trace.sizes.iter().all(|bytes| (VALUE_BYTES_MIN..=VALUE_BYTES_MAX).contains(bytes)));
        let mut keys: Vec<u64> = trace.every_key().iter().map(|request| request.key).collect();
        keys.sort_unstable();
        assert!(keys.iter().copied().eq(0..trace.sizes.len() as u64));
    }
}
