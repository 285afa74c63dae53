//! Traces: what was asked of a cache, in order, without the names; recorded, stored, generated.
//!
//! A trace is what a policy is judged by ([`crate::policy::belady::replay`]). Its file:
//!
//! ```text
//! "qvltrace"                 8 bytes
//! version                    u32 LE, 1
//! count                      varint: requests
//! count times
//!   head                     varint: place × 4 + write × 2 + changed
//!     place 0                an id not seen before; changed is 1
//!     place p > 0            zigzag(p − 1) is the distance from the id after the last one, in order of appearance
//!   id                       varint, zigzag of the distance from the last new id; only at place 0
//!   bytes, cost_micros       varints; only if changed, else as when this id was last asked for
//! checksum                   u64 LE, XXH3-64 of all before
//! ```
//!
//! The bytes of all requests together are less than 2^64. A varint has 7 bits a byte, the low ones first, the high bit set
//! on all but the last (LEB128). Zigzag puts the sign in the lowest bit. A loop takes a byte a request, a Zipf trace two
//! or so.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use hashbrown::HashMap;

use crate::error::{Error, Result};

/// The requests to one tier, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// In the order they were made.
    pub requests: Vec<Request>,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What was asked for: the same number, the same value. It says nothing else.
    pub id: u64,
    /// The size of the value, in bytes; never 0.
    pub bytes: u64,
    /// What it takes to get it from below, in microseconds.
    pub cost_micros: u32,
    /// It was stored, not asked for: it comes in, and is no hit and no miss.
    pub write: bool,
}

/// The largest file read, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 30;

const MAGIC: &[u8; 8] = b"qvltrace";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = MAGIC.len() + 4;
const CHECKSUM_BYTES: usize = 8;

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is no trace, too large, cut or damaged, and
    /// [`Error::Version`] if it is of another version.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |operation| move |source| Error::Io { path: path.to_owned(), operation, source };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(io("open"))?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io("read"))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(malformed(
                path,
                format!("larger than {FILE_BYTES_MAX} bytes, the most a trace may have"),
            ));
        }
        Self::decode(path, &bytes)
    }

    /// Writes a file, in place of one that may be there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        fs::write(path, self.encode()).map_err(|source| Error::Io {
            path: path.to_owned(),
            operation: "write",
            source,
        })
    }

    /// The contents of a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + 2 * self.requests.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        push_varint(&mut out, self.requests.len() as u64);
        let mut known: HashMap<u64, (u64, u64, u32)> = HashMap::new();
        let (mut after, mut last_new) = (0_u64, 0_u64);
        for request in &self.requests {
            let flags = u64::from(request.write) << 1;
            let next = known.len() as u64;
            let size = (request.bytes, request.cost_micros);
            let changed = match known.get_mut(&request.id) {
                Some((place, bytes, cost)) => {
                    let changed = (*bytes, *cost) != size;
                    (*bytes, *cost) = size;
                    // At most 2^61: the places of ids that fit into memory.
                    push_varint(
                        &mut out,
                        (zigzag(place.wrapping_sub(after)) + 1) << 2 | flags | u64::from(changed),
                    );
                    after = *place + 1;
                    changed
                }
                None => {
                    push_varint(&mut out, flags | 1);
                    push_varint(&mut out, zigzag(request.id.wrapping_sub(last_new)));
                    known.insert(request.id, (next, request.bytes, request.cost_micros));
                    (after, last_new) = (next + 1, request.id);
                    true
                }
            };
            if changed {
                push_varint(&mut out, request.bytes);
                push_varint(&mut out, u64::from(request.cost_micros));
            }
        }
        let checksum = twox_hash::XxHash3_64::oneshot(&out);
        out.extend_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads the contents of a file; `path` is for the errors.
    ///
    /// # Errors
    /// [`Error::Malformed`] and [`Error::Version`], as [`read`](Self::read).
    pub fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bad = |what: String| malformed(path, what);
        let Some(version) = bytes.strip_prefix(MAGIC).and_then(|rest| rest.first_chunk::<4>()) else {
            return Err(bad("does not begin with \"qvltrace\" and a version: no trace".to_owned()));
        };
        let found = u32::from_le_bytes(*version);
        if found != VERSION {
            return Err(Error::Version { path: path.to_owned(), found, expected: VERSION });
        }
        let Some((body, checksum)) =
            bytes.split_last_chunk::<CHECKSUM_BYTES>().filter(|(b, _)| b.len() > HEAD_BYTES)
        else {
            return Err(bad(format!("cut: {} bytes", bytes.len())));
        };
        let (expected, actual) = (u64::from_le_bytes(*checksum), twox_hash::XxHash3_64::oneshot(body));
        if expected != actual {
            return Err(bad(format!("checksum {actual:016x}, expected {expected:016x}: cut or damaged")));
        }
        // From here on a file that is wrong was made so; it is still read with every check.
        let mut rest = &body[HEAD_BYTES..];
        let count = varint(&mut rest).ok_or_else(|| bad("has no count of requests".to_owned()))?;
        if count > rest.len() as u64 {
            return Err(bad(format!("{count} requests in {} bytes; each takes one or more", rest.len())));
        }
        let mut requests = Vec::with_capacity(count as usize);
        let mut known: Vec<(u64, u64, u32)> = Vec::new();
        let (mut after, mut last_new) = (0_u64, 0_u64);
        let mut total = 0_u64;
        for index in 0..count {
            let request = decode_request(&mut rest, &mut known, &mut after, &mut last_new)
                .map_err(|what| bad(format!("request {index} of {count}: {what}")))?;
            // So no sum over a trace that was read can overflow.
            total = total.checked_add(request.bytes).ok_or_else(|| {
                bad(format!("request {index} of {count}: all bytes so far are more than 2^64"))
            })?;
            requests.push(request);
        }
        if !rest.is_empty() {
            return Err(bad(format!("{} bytes after the last of {count} requests", rest.len())));
        }
        Ok(Self { requests })
    }

    /// The bytes of all different values: each id at its largest.
    pub fn footprint_bytes(&self) -> u64 {
        let mut sizes: HashMap<u64, u64> = HashMap::new();
        for request in &self.requests {
            let size = sizes.entry(request.id).or_default();
            *size = request.bytes.max(*size);
        }
        sizes.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Whether all values have one size and one cost, so that a hit is a hit.
    pub fn is_uniform(&self) -> bool {
        self.requests
            .windows(2)
            .all(|pair| (pair[0].bytes, pair[0].cost_micros) == (pair[1].bytes, pair[1].cost_micros))
    }
}

fn decode_request(
    rest: &mut &[u8],
    known: &mut Vec<(u64, u64, u32)>,
    after: &mut u64,
    last_new: &mut u64,
) -> Result<Request, String> {
    let mut next = |what: &str| varint(rest).ok_or_else(|| format!("{what} is cut or longer than 64 bits"));
    let head = next("its head")?;
    let (place, write, changed) = (head >> 2, head & 2 != 0, head & 1 != 0);
    let index = if place == 0 {
        let id = last_new.wrapping_add(unzigzag(next("its id")?));
        *last_new = id;
        known.push((id, 0, 0));
        known.len() as u64 - 1
    } else {
        after.wrapping_add(unzigzag(place - 1))
    };
    let count = known.len();
    let row = usize::try_from(index).ok().and_then(|index| known.get_mut(index));
    let row = row.ok_or_else(|| format!("refers to id {index} of {count}"))?;
    if changed {
        row.1 = next("its size")?;
        let cost = next("its cost")?;
        row.2 = u32::try_from(cost).map_err(|_| format!("costs {cost} µs, more than {}", u32::MAX))?;
    }
    if row.1 == 0 {
        return Err("has 0 bytes".to_owned());
    }
    *after = index + 1;
    Ok(Request { id: row.0, bytes: row.1, cost_micros: row.2, write })
}

fn malformed(path: &Path, what: String) -> Error {
    Error::Malformed { path: path.to_owned(), what }
}

/// A difference modulo 2^64 with its sign in the lowest bit.
const fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ (((difference as i64) >> 63) as u64)
}

const fn unzigzag(value: u64) -> u64 {
    (value >> 1) ^ (value & 1).wrapping_neg()
}

fn push_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// `None` if it is cut, or longer than 64 bits.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        let low = u64::from(byte & 0x7f);
        if shift == 63 && low > 1 {
            return None;
        }
        value |= low << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A small generator of random numbers: SplitMix64 (G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number
/// Generators", OOPSLA 2014). One seed gives one sequence on every machine, which is all that a trace needs.
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    /// From a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 if that is 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }

    /// A number from 0 to below 1.
    pub const fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The bytes of a value in generated traces, where nothing else is said.
pub const GENERATED_BYTES: u64 = 1 << 20;
/// The cost of a value in generated traces, in microseconds: 1 MiB at 2 GiB/s.
pub const GENERATED_COST_MICROS: u32 = 500;

/// Traces made by rule. All values have [`GENERATED_BYTES`] and [`GENERATED_COST_MICROS`].
impl Trace {
    /// Requests for these ids.
    pub fn of_ids(ids: impl IntoIterator<Item = u64>) -> Self {
        let request =
            |id| Request { id, bytes: GENERATED_BYTES, cost_micros: GENERATED_COST_MICROS, write: false };
        Self { requests: ids.into_iter().map(request).collect() }
    }

    /// Independent requests: the id of rank `r` of `ids` comes with probability ∝ 1 ÷ r^`exponent`.
    pub fn zipf(seed: u64, ids: u64, exponent: f64, requests: usize) -> Self {
        let (zipf, mut random) = (Zipf::new(ids, exponent), SplitMix::new(seed));
        Self::of_ids((0..requests).map(|_| zipf.draw(&mut random)))
    }

    /// `ids` in turn, again and again.
    pub fn cycle(ids: u64, requests: usize) -> Self {
        Self::of_ids((0..requests as u64).map(|at| at % ids.max(1)))
    }

    /// A Zipf trace in which after every `every` requests come `length` others that never come again.
    pub fn scans_in_zipf(
        seed: u64,
        ids: u64,
        exponent: f64,
        requests: usize,
        every: usize,
        length: u64,
    ) -> Self {
        let (zipf, mut random) = (Zipf::new(ids, exponent), SplitMix::new(seed));
        let (mut made, mut fresh) = (Vec::with_capacity(requests), ids);
        while made.len() < requests {
            made.extend((0..every.max(1)).map(|_| zipf.draw(&mut random)));
            made.extend(fresh..fresh + length);
            fresh += length;
        }
        made.truncate(requests);
        Self::of_ids(made)
    }

    /// A Zipf trace whose ids change their ranks after each of `phases` equal parts.
    pub fn phases(seed: u64, ids: u64, exponent: f64, requests: usize, phases: u64) -> Self {
        let (zipf, mut random) = (Zipf::new(ids, exponent), SplitMix::new(seed));
        let length = (requests as u64).div_ceil(phases.max(1));
        // A multiplier without a common factor with `ids` spreads the ranks; ids that are hot in one phase are not in
        // the next.
        Self::of_ids((0..requests as u64).map(|at| {
            let (phase, rank) = (at / length, zipf.draw(&mut random));
            (rank + phase * (ids / phases.max(1) + 1)) % ids
        }))
    }

    /// Requests for what was used lately: the id at depth `d` of the stack of `ids`, most recent first, comes with
    /// probability ∝ 1 ÷ d^`exponent`. Here nothing does better than least recently used.
    pub fn recency(seed: u64, ids: u64, exponent: f64, requests: usize) -> Self {
        let (zipf, mut random) = (Zipf::new(ids, exponent), SplitMix::new(seed));
        let mut stack: Vec<u64> = (0..ids).collect();
        Self::of_ids((0..requests).map(|_| {
            let depth = zipf.draw(&mut random) as usize;
            stack[..=depth].rotate_right(1);
            stack[0]
        }))
    }

    /// What a transformer asks for that keeps its weights on a drive: for each answer the embedding of one of `images`
    /// (a Zipf law of exponent 0.9, small), then for each token each of `layers` in turn (large).
    pub fn streamed_weights(seed: u64, layers: u64, tokens: u64, images: u64, requests: usize) -> Self {
        const LAYER: Request = Request { id: 0, bytes: 48 << 20, cost_micros: 24_000, write: false };
        // An embedding is a fifth of a layer here, and takes the vision tower half a second.
        const IMAGE: Request = Request { id: 0, bytes: 8 << 20, cost_micros: 500_000, write: false };
        let (zipf, mut random) = (Zipf::new(images, 0.9), SplitMix::new(seed));
        let mut made = Vec::with_capacity(requests);
        while made.len() < requests {
            made.push(Request { id: layers + zipf.draw(&mut random), ..IMAGE });
            let tokens = 1 + random.below(2 * tokens);
            made.extend((0..tokens).flat_map(|_| 0..layers).map(|id| Request { id, ..LAYER }));
        }
        made.truncate(requests);
        Self { requests: made }
    }

    /// The same requests with a size and a cost for each id: sizes spread evenly over their logarithm from 1 KiB to
    /// 16 MiB, costs a seek of 0.1 ms and 1 GiB/s.
    pub fn with_sizes(mut self, seed: u64) -> Self {
        for request in &mut self.requests {
            let mut random = SplitMix::new(seed ^ request.id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            request.bytes = (1024.0 * 2_f64.powf(14.0 * random.unit())) as u64;
            request.cost_micros = 100 + (request.bytes / 1074) as u32;
        }
        self
    }
}

/// Draws ranks, the lowest most often.
struct Zipf {
    /// Sums of the weights.
    sums: Vec<f64>,
}

impl Zipf {
    fn new(ids: u64, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=ids.max(1)).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        Self { sums: sums.collect() }
    }

    fn draw(&self, random: &mut SplitMix) -> u64 {
        let at = random.unit() * self.sums.last().copied().unwrap_or(1.0);
        self.sums.partition_point(|sum| *sum <= at).min(self.sums.len() - 1) as u64
    }
}
