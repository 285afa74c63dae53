//! Where a key is, why, and what it is worth.

use std::fmt;
use std::time::Duration;

use crate::cache::shared::Shared;
use crate::key::{Key, KeyId, shown};
use crate::transit::Lookup;

/// A place where a value, or a copy of it, is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory.
    Hot,
    /// In memory, on its way to a tier below.
    Transit,
    /// On the drive.
    Warm,
    /// In a cold tier of this name.
    Cold(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hot => f.write_str("hot"),
            Self::Transit => f.write_str("on its way down"),
            Self::Warm => f.write_str("warm"),
            Self::Cold(name) => write!(f, "cold ({name})"),
        }
    }
}

/// What the cache knows of a key; [`Display`](fmt::Display) says it in a line.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// The key, shortened.
    pub key: String,
    /// Everywhere it is, the fastest first; empty if no tier has it.
    pub places: Vec<Place>,
    /// What it takes of the budget of the fastest place, in bytes.
    pub bytes: u64,
    /// What it takes to make it again, where that is known.
    pub cost: Option<Duration>,
    /// How often it was used, as far as the policy of its tier remembers.
    pub uses: u32,
    /// Seconds saved a byte and request by keeping it in the hot tier, as its policy reckons; 0 elsewhere.
    pub worth: f64,
    /// The policy's reason.
    pub why: String,
    /// How often it is pinned.
    pub pins: u32,
    /// Whether a tier below memory has it.
    pub stored: bool,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.places.is_empty() {
            return write!(f, "{}: in no tier", self.key);
        }
        let places = self.places.iter().map(Place::to_string).collect::<Vec<_>>().join(", ");
        write!(f, "{}: {places}; {} bytes", self.key, self.bytes)?;
        if let Some(cost) = self.cost {
            write!(f, ", {cost:.3?} to make again")?;
        }
        if self.pins > 0 {
            write!(f, ", pinned")?;
        }
        if !self.stored {
            write!(f, ", stored nowhere yet")?;
        }
        if self.why.is_empty() { Ok(()) } else { write!(f, "; {}", self.why) }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Shared<K, V> {
    pub(super) fn explain(&self, key: &K) -> Explanation {
        let key_bytes = key.bytes();
        let id = KeyId::of(&key_bytes);
        let mut said = Explanation {
            key: shown(&key_bytes),
            places: Vec::new(),
            bytes: 0,
            cost: None,
            uses: 0,
            worth: 0.0,
            why: String::new(),
            pins: 0,
            stored: false,
        };
        if let Some(hot) = self.hot.explain(key, self.hot.hash(key)) {
            said.places.push(Place::Hot);
            said.bytes = hot.bytes;
            said.uses = hot.uses;
            said.worth = hot.worth;
            said.why = hot.why;
            said.pins = hot.pins;
            said.stored = hot.stored;
        }
        let gone = match self.transit.get(key) {
            Lookup::Here(pending) => {
                said.places.push(Place::Transit);
                said.cost = Duration::try_from_secs_f32(pending.cost).ok();
                if said.bytes == 0 {
                    said.bytes = pending.bytes;
                }
                false
            }
            Lookup::Gone => true,
            Lookup::Unknown => false,
        };
        if let Some(below) = self.warm.as_ref().filter(|_| !gone).and_then(|warm| warm.explain(id)) {
            said.places.push(Place::Warm);
            said.stored = true;
            said.cost = Duration::try_from_secs_f32(below.cost).ok();
            if said.bytes == 0 {
                said.bytes = below.bytes;
                said.uses = below.uses;
                said.why = below.why;
            }
        }
        let staleness = self.staleness(id);
        for tier in self.cold.iter().filter(|tier| !gone && !staleness.hides(&***tier)) {
            if tier.contains(&key_bytes).unwrap_or(false) {
                said.places.push(Place::Cold(tier.name()));
                said.stored = true;
            }
        }
        said
    }
}
