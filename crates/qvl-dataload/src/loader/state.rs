//! Where a run is, as a value that can be stored and gone on from.

use serde::{Deserialize, Serialize};

use crate::sampler::Shuffle;
use crate::{Error, Result};

/// A place in a run: after the last batch that was handed out. Serialise it with any serde format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Of this type's form, so that a later release can read what an earlier one wrote.
    version: u32,
    identity: Identity,
    epoch: u64,
    place: u64,
}

/// What must be the same in the run that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) samples: u64,
    pub(crate) fingerprint: u64,
    pub(crate) shuffle: Shuffle,
    pub(crate) rank: u64,
    pub(crate) world: u64,
    pub(crate) drop_last: bool,
}

const VERSION: u32 = 1;

impl State {
    pub(crate) fn new(identity: Identity, epoch: u64, place: u64) -> Self {
        Self { version: VERSION, identity, epoch, place }
    }

    /// The epoch, from 0.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Samples of that epoch that have been delivered or left out.
    pub fn place(&self) -> u64 {
        self.place
    }

    /// Epoch and place, if this state fits a loader.
    pub(crate) fn check(&self, own: &Identity, epoch_len: u64) -> Result<(u64, u64)> {
        let differs = |what, got: String, expected: String| Err(Error::Resume { what, got, expected });
        let Identity { samples, fingerprint, shuffle, rank, world, drop_last } = self.identity;
        if self.version != VERSION {
            return differs("version", self.version.to_string(), VERSION.to_string());
        }
        if samples != own.samples {
            return differs("a number of samples of", samples.to_string(), own.samples.to_string());
        }
        if fingerprint != own.fingerprint {
            let hex = |value| format!("{value:016x}");
            return differs("a list of samples with the fingerprint", hex(fingerprint), hex(own.fingerprint));
        }
        if shuffle != own.shuffle {
            return differs("the shuffling", format!("{shuffle:?}"), format!("{:?}", own.shuffle));
        }
        if (rank, world) != (own.rank, own.world) {
            return differs("the shard", format!("{rank}/{world}"), format!("{}/{}", own.rank, own.world));
        }
        if drop_last != own.drop_last {
            return differs("drop_last", drop_last.to_string(), own.drop_last.to_string());
        }
        if self.place > epoch_len {
            return differs("the place", self.place.to_string(), format!("epochs of {epoch_len} samples"));
        }
        Ok((self.epoch, self.place))
    }
}
