//! What bounds each figure of a plan, as values and as sentences.

use std::fmt;
use std::time::Duration;

use super::PARTS;

/// What bounds a plan. Shown, it is three sentences.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Why {
    /// Hot cache, staging and read-ahead.
    pub bytes: BytesBound,
    /// Threads.
    pub threads: ThreadsBound,
    /// The token budget.
    pub tokens: TokensBound,
}

/// What bounds the bytes. A `part` is of [`PARTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BytesBound {
    /// Nothing but the envelope.
    Envelope,
    /// Memory is short, and no less is possible.
    Floor,
    /// Memory is short.
    Pressed {
        /// What is left.
        part: u32,
    },
    /// Neither short nor plenty: nothing changes.
    Band {
        /// What there is.
        part: u32,
    },
    /// One part more would leave others less than the reserve.
    Room {
        /// What there is.
        part: u32,
    },
    /// It was short at the next part; that is tried again after a longer calm.
    Wall {
        /// What there is.
        part: u32,
        /// Where it was short.
        wall: u32,
        /// How long it has been calm.
        calm: Duration,
    },
    /// It was short not long ago.
    Dwell {
        /// What there is.
        part: u32,
        /// How long it has been calm.
        calm: Duration,
        /// How long it must be.
        needed: Duration,
    },
    /// The machine says nothing of memory.
    Unknown,
}

/// What bounds the threads.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum ThreadsBound {
    /// Nothing but the envelope.
    Envelope {
        /// Threads of the plan.
        threads: usize,
    },
    /// The machine is too hot for more.
    Heat {
        /// Threads of the plan.
        threads: usize,
    },
    /// More would draw more than the target.
    Watts {
        /// Threads of the plan.
        threads: usize,
        /// The target in watts.
        target: f64,
    },
    /// They cost the least of those that were tried.
    Found {
        /// Threads of the plan.
        threads: usize,
    },
    /// They are being tried.
    Trial {
        /// Threads of the plan.
        threads: usize,
    },
    /// Neither joules nor watts and tokens are known, so it is what the mode says.
    Unmeasured {
        /// Threads of the plan.
        threads: usize,
    },
}

/// What bounds the token budget. A `part` is of [`PARTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokensBound {
    /// Nothing but the envelope.
    Envelope,
    /// The battery is low.
    Charge {
        /// What is left.
        part: u32,
    },
    /// The fewest threads are still too hot.
    Heat {
        /// What is left.
        part: u32,
    },
    /// The fewest threads still draw more than the target.
    Watts {
        /// What is left.
        part: u32,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes: {}; threads: {}; tokens: {}", self.bytes, self.threads, self.tokens)
    }
}

impl fmt::Display for BytesBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Envelope => write!(f, "all of the envelope"),
            Self::Floor => write!(f, "the least of the envelope, and memory is short"),
            Self::Pressed { part } => write!(f, "{part} of {PARTS} parts, memory is short"),
            Self::Band { part } => write!(f, "{part} of {PARTS} parts, memory is neither short nor plenty"),
            Self::Room { part } => write!(f, "{part} of {PARTS} parts, one more would not leave the reserve"),
            Self::Wall { part, wall, calm } if wall <= part => write!(
                f,
                "{part} of {PARTS} parts, memory was short with {wall} before, so each part more takes longer; \
                 it has been calm for {:.0} s",
                calm.as_secs_f64()
            ),
            Self::Wall { part, wall, calm } => write!(
                f,
                "{part} of {PARTS} parts, memory was short with {wall} and has been calm for {:.0} s",
                calm.as_secs_f64()
            ),
            Self::Dwell { part, calm, needed } => write!(
                f,
                "{part} of {PARTS} parts, memory has been calm for {:.0} s and one more takes {:.0} s",
                calm.as_secs_f64(),
                needed.as_secs_f64()
            ),
            Self::Unknown => write!(f, "nothing is known of memory, so nothing changes"),
        }
    }
}

impl fmt::Display for ThreadsBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Envelope { threads } => write!(f, "{threads}, all of the envelope"),
            Self::Heat { threads } => write!(f, "{threads}, the machine is too hot for more"),
            Self::Watts { threads, target } => write!(f, "{threads}, within {target} W"),
            Self::Found { threads } => write!(f, "{threads}, the best of those that were tried"),
            Self::Trial { threads } => write!(f, "{threads}, being tried"),
            Self::Unmeasured { threads } => {
                write!(f, "{threads}, as the mode says, since neither joules nor watts and tokens are known")
            }
        }
    }
}

impl fmt::Display for TokensBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Envelope => write!(f, "all of the envelope"),
            Self::Charge { part } => write!(f, "{part} of {PARTS} parts, the battery is low"),
            Self::Heat { part } => write!(f, "{part} of {PARTS} parts, the fewest threads are still too hot"),
            Self::Watts { part } => {
                write!(f, "{part} of {PARTS} parts, the fewest threads still draw too much")
            }
        }
    }
}
