//! What was moved and how long the stages took.

use std::time::Duration;

/// What one transfer took. Times of chunks that went at once are added up, so a stage can have more than the wall
/// clock.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Bytes that arrived.
    pub bytes: u64,
    /// Chunks they came in.
    pub chunks: u64,
    /// Chunks that went through staging; the others were read or copied to where they belong.
    pub staged_chunks: u64,
    /// From the submission until the first chunk was begun.
    pub queued: Duration,
    /// Reading or filling.
    pub read: Duration,
    /// Copying to or from the device, until the fence.
    pub copy: Duration,
    /// From the submission to the end.
    pub wall: Duration,
    /// The CRC-32 (that of zip and PNG) of the bytes, if it was asked for.
    pub crc32: Option<u32>,
}

impl Report {
    /// Bytes a second from the first chunk on.
    pub fn bytes_per_s(&self) -> f64 {
        let seconds = self.wall.saturating_sub(self.queued).as_secs_f64();
        if seconds > 0.0 { self.bytes as f64 / seconds } else { 0.0 }
    }
}

/// What an engine did since it was made, and what it holds now.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Transfers that were submitted.
    pub submitted: u64,
    /// Of these, those that arrived.
    pub arrived: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that were cancelled, or whose ticket was dropped.
    pub cancelled: u64,
    /// Chunks that ended.
    pub chunks: u64,
    /// Bytes of chunks that ended well.
    pub bytes: u64,
    /// Seconds of all workers in reading and filling.
    pub read_seconds: f64,
    /// Seconds from the beginning of copies to their fences.
    pub copy_seconds: f64,
    /// Bytes of staging buffers.
    pub staging_bytes: u64,
    /// Of these, bytes that are in use now.
    pub staging_in_use_bytes: u64,
    /// The budget for them.
    pub staging_budget_bytes: u64,
    /// How files are read: by threads or by the ring of the kernel, and why.
    pub io: String,
}
