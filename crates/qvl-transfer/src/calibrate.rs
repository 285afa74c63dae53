//! Measures the drive, the copies and the link, and says what they predict.
//!
//! The rates are of the engine itself: its workers, its chunks, its way of reading. The stages are measured by turns,
//! so that a disturbance of the machine meets all of them, and each figure has its spread beside it. What the figures
//! say of moving and computing together is in [`Rates`], which is pure.

mod predict;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use predict::{Achieved, Bound, Comparison, Cost, Measured, Origin, Place, Prediction, Rates};

use crate::drive::FileRange;
use crate::engine::Settings;
use crate::memory::BLOCK_BYTES;
use crate::source::{Source, part};
use crate::{Device, Error, HostDevice, HostMemory, Priority, Result, Transfer, TransferEngine};

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is read to measure the drive, from its beginning on and again; without it the drive is not measured. Best
    /// some hundred megabytes that are on the drive for good: fresh files may be read from where they are not written
    /// yet.
    pub file: Option<FileRange>,
    /// The settings of the engine, for measuring the drive without the link.
    pub settings: Settings,
    /// About how long it may take: 400 ms. What takes longer is measured three times.
    pub time: Duration,
    /// The longest sample, in bytes: 32 MiB. Memory for three of them is needed, and for one on the device.
    pub sample_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            file: None,
            settings: Settings::default(),
            time: Duration::from_millis(400),
            sample_bytes: 32 << 20,
        }
    }
}

/// What was measured. Derefs to its [`Rates`], whose methods predict; prints as a table.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Calibration {
    /// Each stage alone.
    pub rates: Rates,
    /// From a file to the device, all stages at once; as the drive, where the file is read straight to the device.
    pub from_drive: Option<Measured>,
    /// From ordinary memory to the device, all stages at once.
    pub from_memory: Option<Measured>,
    /// The device.
    pub device: String,
    /// How files are read.
    pub io: String,
    /// How this file is read.
    pub file: Option<String>,
}

impl Deref for Calibration {
    type Target = Rates;

    fn deref(&self) -> &Rates {
        &self.rates
    }
}

impl Calibration {
    /// Measures the stages that lead to the engine's device. Blocks for about [`Options::time`]; nothing else should be
    /// transferred meanwhile.
    ///
    /// # Errors
    /// Those of transfers and of [`Device::allocate`]; [`Error::Setting`] if there is no sample to take.
    pub fn measure<D: Device>(engine: &TransferEngine<D>, options: &Options) -> Result<Self> {
        let Options { file, settings, time, sample_bytes } = options;
        if *sample_bytes < BLOCK_BYTES {
            return Err(Error::Setting {
                name: "sample_bytes",
                got: sample_bytes.to_string(),
                expected: format!("a block of {BLOCK_BYTES} bytes at least is measured"),
            });
        }
        if file.as_ref().is_some_and(Source::is_empty) {
            return Err(Error::Setting {
                name: "file",
                got: "0 bytes".to_owned(),
                expected: "there must be something to read".to_owned(),
            });
        }
        // Bytes that are moved by the same settings without the engine's device.
        let host = HostDevice::new(HostMemory::charge(*sample_bytes) as u64);
        let host = TransferEngine::new(host, Settings { trace: None, ..settings.clone() })?;
        let device = engine.device();
        let mut staging = device.staging(*sample_bytes)?;
        staging.as_mut().fill(1);
        let (ordinary, staging) = (Part::new(vec![1; *sample_bytes]), Part::new(staging));
        let mut on_host = host.device().allocate(*sample_bytes)?;
        let mut on_device = device.allocate(*sample_bytes)?;
        let drive_is_direct = device.window(&on_device).is_some();
        let memory_is_direct = ordinary.bytes().is_some_and(|bytes| device.copies_from(bytes));
        let mut reads = Reads { file: file.as_ref(), at: 0 };

        let figures = 2 + usize::from(file.is_some()) * if drive_is_direct { 1 } else { 2 };
        let figures = figures + usize::from(!memory_is_direct);
        let sample_s = time.as_secs_f64() / (figures * SAMPLES) as f64;
        let figure = |first_bytes| Figure {
            bytes: first_bytes,
            most_bytes: *sample_bytes,
            sample_s,
            ..Figure::default()
        };
        // The first sample of a figure is not counted: it finds how long the others should be. Those from memory go first
        // and over all of the destinations, since the first touch of memory costs.
        let [mut host_copy, mut link, mut from_memory] = [(); 3].map(|()| figure(*sample_bytes));
        let [mut drive, mut from_drive] = [(); 2].map(|()| figure(FIRST_READ_BYTES.min(*sample_bytes)));
        let begun = Instant::now();
        let mut rounds = 0;
        while more(rounds, begun.elapsed(), *time) {
            on_host = host_copy.sample(&host, ordinary.first(host_copy.bytes), on_host)?;
            on_device = link.sample(engine, staging.first(link.bytes), on_device)?;
            if !memory_is_direct {
                on_device = from_memory.sample(engine, ordinary.first(from_memory.bytes), on_device)?;
            }
            if let Some(part) = reads.next(drive.bytes)? {
                on_host = drive.sample(&host, part, on_host)?;
            }
            if !drive_is_direct && let Some(part) = reads.next(from_drive.bytes)? {
                on_device = from_drive.sample(engine, part, on_device)?;
            }
            rounds += 1;
        }
        let [mut block, mut drive_block] = [(); 2].map(|()| figure(BLOCK_BYTES));
        for _ in 0..1 + BLOCKS {
            on_device = block.sample(engine, staging.first(BLOCK_BYTES), on_device)?;
            if let Some(part) = reads.next(BLOCK_BYTES)? {
                on_device = drive_block.sample(engine, part, on_device)?;
            }
        }

        let seconds =
            |figure: Figure| figure.measured().map_or(0.0, |rate| BLOCK_BYTES as f64 / rate.bytes_per_s);
        let (drive, host_copy) = (drive.measured(), host_copy.measured());
        Ok(Self {
            rates: Rates {
                drive,
                host_copy,
                link: link.measured(),
                drive_is_direct,
                memory_is_direct,
                latency_s: seconds(block),
                drive_latency_s: seconds(drive_block),
            },
            from_drive: if drive_is_direct { drive } else { from_drive.measured() },
            from_memory: if memory_is_direct { host_copy } else { from_memory.measured() },
            device: device.name().to_owned(),
            io: engine.stats().io,
            file: file.as_ref().map(|file| format!("{}: {}", file.name(), file.of().explain())),
        })
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = |is: bool, stages: &str| if is { "directly".to_owned() } else { stages.to_owned() };
        let rows = [
            ("drive", self.rates.drive, self.file.clone().unwrap_or_else(|| "no file was given".to_owned())),
            ("host copy", self.rates.host_copy, "memory of the host to memory of the host".to_owned()),
            ("link", self.rates.link, format!("staging memory to {}", self.device)),
            ("from drive", self.from_drive, direct(self.rates.drive_is_direct, "through drive and link")),
            (
                "from memory",
                self.from_memory,
                direct(self.rates.memory_is_direct, "through host copy and link"),
            ),
        ];
        writeln!(f, "{:<12} {:>8} {:>7} {:>8}  way", "", "GB/s", "noise", "samples")?;
        for (name, rate, way) in rows {
            match rate {
                Some(Measured { bytes_per_s, noise, samples }) => writeln!(
                    f,
                    "{name:<12} {:>8.2} {:>5.1} % {samples:>8}  {way}",
                    bytes_per_s / 1e9,
                    noise * 100.0
                )?,
                None => writeln!(f, "{name:<12} {:>8} {:>7} {:>8}  {way}", "-", "-", "-")?,
            }
        }
        let micros = |seconds: f64| seconds * 1e6;
        write!(f, "a block takes {:.0} us from memory", micros(self.rates.latency_s))?;
        if self.rates.drive.is_some() {
            write!(f, ", {:.0} us from the drive", micros(self.rates.drive_latency_s))?;
        }
        write!(f, "; files are read by {}", self.io)
    }
}

/// Whether another round of samples should be taken.
pub(crate) fn more(rounds: usize, elapsed: Duration, time: Duration) -> bool {
    // The first one is not counted.
    rounds <= SAMPLES_MIN || (rounds <= SAMPLES && elapsed < time)
}

/// One figure, sample by sample; the first one is not counted.
#[derive(Default)]
pub(crate) struct Figure {
    rates: Vec<f64>,
    /// Bytes of the next sample.
    bytes: usize,
    most_bytes: usize,
    /// How long a sample should take.
    sample_s: f64,
    is_warm: bool,
}

impl Figure {
    /// Moves all of a source to the beginning of the memory, which comes back.
    pub(crate) fn sample<D: Device>(
        &mut self,
        engine: &TransferEngine<D>,
        source: impl Source,
        memory: D::Memory,
    ) -> Result<D::Memory> {
        let bytes = source.len() as f64;
        let begun = Instant::now();
        let done = engine.submit(Transfer::new(source, memory).priority(Priority::Urgent))?.wait()?;
        let rate = bytes / begun.elapsed().as_secs_f64().max(1e-9);
        if self.is_warm {
            self.rates.push(rate);
        } else {
            self.is_warm = true;
            let blocks = rate * self.sample_s / BLOCK_BYTES as f64;
            self.bytes = (blocks as usize * BLOCK_BYTES)
                .clamp(SAMPLE_BYTES_MIN, self.most_bytes.max(SAMPLE_BYTES_MIN));
            self.bytes = self.bytes.min(self.most_bytes);
        }
        Ok(done.memory)
    }

    pub(crate) fn measured(self) -> Option<Measured> {
        Measured::of(self.rates)
    }
}

/// The parts of a file, one after another and from the beginning again: no cache has just what comes next.
struct Reads<'a> {
    file: Option<&'a FileRange>,
    at: u64,
}

impl Reads<'_> {
    fn next(&mut self, bytes: usize) -> Result<Option<FileRange>> {
        let Some(file) = self.file else { return Ok(None) };
        let bytes = (bytes as u64).min(file.len());
        if self.at + bytes > file.len() {
            self.at = 0;
        }
        let part = file.of().range(file.offset() + self.at, bytes)?;
        self.at += bytes;
        Ok(Some(part))
    }
}

/// The first bytes of memory that several samples are taken from.
struct Part<B> {
    all: Arc<B>,
    bytes: usize,
}

impl<B: AsRef<[u8]>> Part<B> {
    fn new(all: B) -> Self {
        let bytes = all.as_ref().len();
        Self { all: Arc::new(all), bytes }
    }

    fn first(&self, bytes: usize) -> Self {
        Self { all: self.all.clone(), bytes: bytes.min(self.bytes) }
    }
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Source for Part<B> {
    fn name(&self) -> String {
        "memory to measure with".to_owned()
    }

    fn len(&self) -> u64 {
        self.bytes as u64
    }

    fn fill(&self, at: u64, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(part(&(*self.all).as_ref()[..self.bytes], at, into.len())?);
        Ok(())
    }

    fn bytes(&self) -> Option<&[u8]> {
        Some(&(*self.all).as_ref()[..self.bytes])
    }
}

/// Samples of each figure that are aimed at.
const SAMPLES: usize = 9;
/// Samples of each figure, however long they take.
const SAMPLES_MIN: usize = 3;
/// The shortest sample: below it a transfer's own costs are measured.
const SAMPLE_BYTES_MIN: usize = 1 << 20;
/// The first sample of a drive, which may be slow.
const FIRST_READ_BYTES: usize = 4 << 20;
/// Transfers of a block.
const BLOCKS: usize = 9;
