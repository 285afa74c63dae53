//! What a run allocates, in order, and how that is written in a file.
//!
//! The file is text, so that a difference can be read in a review:
//!
//! ```text
//! qvl-trace 1
//! # id bytes align birth death
//! 0 4096 64 0 2
//! 1 8192 64 1 2
//! end 2
//! ```
//!
//! The last line counts the allocations, so that a file that was cut is seen.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::{Error, Result};

/// One allocation of a run.
///
/// Times are steps of the allocation clock, which moves by one with each allocation. It lives from `birth` on and is
/// gone at `death`: what is born when it dies can have its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Allocation {
    /// Its name, which no other of the trace has.
    pub id: u32,
    /// Its size, 1 to 2^44.
    pub bytes: u64,
    /// What its offset is a multiple of; a power of two up to 2^30.
    pub align: u64,
    /// When it begins to live.
    pub birth: u64,
    /// When it no longer lives; later than its birth.
    pub death: u64,
}

impl Allocation {
    /// Whether there is a time when both live.
    pub fn meets(&self, other: &Self) -> bool {
        self.birth < other.death && other.birth < self.death
    }
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, bytes, align, birth, death } = self;
        write!(f, "{id} {bytes} {align} {birth} {death}")
    }
}

/// All allocations of a run, ordered by birth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    allocations: Vec<Allocation>,
}

impl Trace {
    /// A trace of these allocations, which are in the order in which they are made.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first allocation that cannot be, or says that there are more than 2^18.
    pub fn new(allocations: Vec<Allocation>) -> Result<Self> {
        if allocations.len() > ALLOCATIONS_MAX {
            return Err(setting(
                "trace",
                format!("{} allocations", allocations.len()),
                "at most 262144 can be planned",
            ));
        }
        let mut ids = HashSet::with_capacity(allocations.len());
        let mut birth = 0;
        for allocation in &allocations {
            let wrong = invalid(allocation, birth).or_else(|| {
                let id = allocation.id;
                (!ids.insert(id)).then(|| ("id", id.to_string(), "no other allocation has it".to_owned()))
            });
            if let Some((field, got, expected)) = wrong {
                return Err(setting(field, format!("{got} in the allocation \"{allocation}\""), expected));
            }
            birth = allocation.birth;
        }
        Ok(Self { allocations })
    }

    /// The allocations, by birth.
    pub fn allocations(&self) -> &[Allocation] {
        &self.allocations
    }

    /// Reads a trace from a file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Line`] for the first line that is not as it should be.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Writes it to a file, in the format that [`Self::load`] reads.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.to_string()).map_err(|source| Error::File { path: path.to_owned(), source })
    }

    /// Reads a trace from text; `path` is for errors.
    ///
    /// # Errors
    /// [`Error::Line`] names the line, the field, what is there and what should be.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let wrong = |line: usize, field: &'static str, got: &str, expected: &str| Error::Line {
            path: path.to_owned(),
            line,
            field,
            got: got.chars().take(SHOWN_CHARS).collect(),
            expected: expected.to_owned(),
        };
        let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        match lines.next() {
            Some((_, HEADER)) => {}
            first => return Err(wrong(1, "header", first.map_or("", |(_, text)| text), "\"qvl-trace 1\"")),
        }
        let mut allocations = Vec::new();
        let mut ids = HashSet::new();
        let mut birth = 0;
        let mut last = 1;
        let mut ended = false;
        for (line, text) in lines {
            last = line;
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            if ended {
                return Err(wrong(line, "end", text, "nothing after the line \"end\""));
            }
            if let Some(count) = text.strip_prefix("end ") {
                if count.trim().parse() != Ok(allocations.len()) {
                    let expected = format!("{}, the number of allocations before", allocations.len());
                    return Err(wrong(line, "end", count, &expected));
                }
                ended = true;
                continue;
            }
            if allocations.len() == ALLOCATIONS_MAX {
                return Err(wrong(line, "allocation", text, "at most 262144 of them"));
            }
            let mut words = text.split_whitespace();
            let mut next = |field| words.next().ok_or_else(|| wrong(line, field, text, "five numbers"));
            let id = number(next("id")?).map_err(|got| wrong(line, "id", got, "a number below 2^32"))?;
            let mut next =
                |field| number(next(field)?).map_err(|got| wrong(line, field, got, "a number below 2^64"));
            let (bytes, align) = (next("bytes")?, next("align")?);
            let allocation = Allocation { id, bytes, align, birth: next("birth")?, death: next("death")? };
            if let Some(more) = words.next() {
                return Err(wrong(line, "allocation", more, "nothing after five numbers"));
            }
            if let Some((field, got, expected)) = invalid(&allocation, birth) {
                return Err(wrong(line, field, &got, &expected));
            }
            if !ids.insert(id) {
                return Err(wrong(line, "id", &id.to_string(), "no other allocation has it"));
            }
            birth = allocation.birth;
            allocations.push(allocation);
        }
        if !ended {
            return Err(wrong(last + 1, "end", "", "\"end\" and the number of allocations"));
        }
        Ok(Self { allocations })
    }

    /// Where two recordings of a program first differ; `None` if they are the same, so that one plan is for both.
    pub fn first_difference(&self, other: &Self) -> Option<Difference> {
        let most = self.allocations.len().max(other.allocations.len());
        let pair = |index| (self.allocations.get(index).copied(), other.allocations.get(index).copied());
        (0..most)
            .map(|index| (index, pair(index)))
            .find_map(|(index, (here, there))| (here != there).then_some(Difference { index, here, there }))
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}\n# id bytes align birth death")?;
        for allocation in &self.allocations {
            writeln!(f, "{allocation}")?;
        }
        writeln!(f, "end {}", self.allocations.len())
    }
}

/// Where two traces first differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The number of the allocation, from 0.
    pub index: usize,
    /// What the one has there, if it goes on.
    pub here: Option<Allocation>,
    /// What the other has there, if it goes on.
    pub there: Option<Allocation>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show =
            |one: Option<Allocation>| one.map_or_else(|| "nothing".to_owned(), |one| format!("\"{one}\""));
        write!(f, "allocation {}: {} here, {} there", self.index, show(self.here), show(self.there))
    }
}

/// Writes down what a run allocates. Both calls take some nanoseconds and never block.
#[derive(Debug, Default)]
pub struct Recorder {
    allocations: Vec<Allocation>,
    foreign: Option<u32>,
}

/// An allocation that a [`Recorder`] has begun.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an allocation that is not ended lives until the end of the trace"]
pub struct Id(u32);

impl Recorder {
    /// An empty recording.
    pub fn new() -> Self {
        Self::default()
    }

    /// An allocation of `bytes` begins to live.
    pub fn begin(&mut self, bytes: u64, align: u64) -> Id {
        let birth = self.allocations.len();
        // More than 2^32 are refused when the trace is made.
        let id = u32::try_from(birth).unwrap_or(u32::MAX);
        self.allocations.push(Allocation { id, bytes, align, birth: birth as u64, death: u64::MAX });
        Id(id)
    }

    /// It no longer lives.
    pub fn end(&mut self, id: Id) {
        let now = self.allocations.len() as u64;
        match self.allocations.get_mut(id.0 as usize) {
            Some(allocation) if allocation.death == u64::MAX => allocation.death = now,
            // It is of another recorder. This is no place for an error, so the end of the recording tells it.
            _ => self.foreign = Some(id.0),
        }
    }

    /// The trace; what has not ended lives until the end of it.
    ///
    /// # Errors
    /// [`Error::Setting`] for an allocation that cannot be, or if one was ended that this recorder had not begun.
    pub fn finish(mut self) -> Result<Trace> {
        if let Some(id) = self.foreign {
            return Err(setting("id", id.to_string(), "an allocation of this recorder that had not ended"));
        }
        let now = self.allocations.len() as u64;
        for allocation in &mut self.allocations {
            allocation.death = allocation.death.min(now);
        }
        Trace::new(self.allocations)
    }
}

/// What is wrong with an allocation after one that was born at `birth`: the field, what it is, what is expected.
fn invalid(allocation: &Allocation, birth: u64) -> Option<(&'static str, String, String)> {
    let Allocation { bytes, align, birth: born, death, .. } = *allocation;
    if bytes == 0 || bytes > BYTES_MAX {
        return Some(("bytes", bytes.to_string(), "1 to 2^44".to_owned()));
    }
    if !align.is_power_of_two() || align > ALIGN_MAX {
        return Some(("align", align.to_string(), "a power of two up to 2^30".to_owned()));
    }
    if born < birth {
        return Some(("birth", born.to_string(), format!("at least {birth}, when the one before is born")));
    }
    if death <= born {
        return Some(("death", death.to_string(), format!("more than its birth, which is {born}")));
    }
    None
}

fn number<T: FromStr>(word: &str) -> Result<T, &str> {
    word.parse().map_err(|_| word)
}

fn setting(name: &'static str, got: String, expected: impl Into<String>) -> Error {
    Error::Setting { name, got, expected: expected.into() }
}

const HEADER: &str = "qvl-trace 1";
/// With these bounds the sum of all sizes is below 2^63, and no sum of sizes and offsets needs a check.
const ALLOCATIONS_MAX: usize = 1 << 18;
const BYTES_MAX: u64 = 1 << 44;
const ALIGN_MAX: u64 = 1 << 30;
/// Of what is wrong, as much as an error shows.
const SHOWN_CHARS: usize = 60;
