//! Memory of a run that is known before: recorded, packed, and run from one allocation.
//!
//! A program that runs the same operations each time allocates the same sizes in the same order each time. A
//! [`Recorder`] writes them down as a [`Trace`], [`pack`] finds where each can lie so that the whole is small, and a
//! [`PlannedRun`] hands out those places. What the plan does not have is said to be so, and the caller takes it from a
//! pool.

mod held;
mod pack;
mod run;
mod trace;

pub(crate) use held::Held;
pub use pack::{Effort, Packing, pack, pack_with};
pub use run::{Counts, Deviation, Piece, PlannedPiece, PlannedRun};
pub use trace::{Allocation, Difference, Id, Recorder, Trace};
