//! The members of a shard in a file beside it, so that opening the shard again does not scan it.
//!
//! The file belongs to one state of the shard: it states the shard's length and the time of its last change, and is
//! not used if either differs. It ends in a hash of itself.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `QVLTAR1` and an end of line |
//! | 8 | length of the shard in bytes |
//! | 8 | its last change, in nanoseconds since 1970 |
//! | 8 | number of members |
//! | each: 4, n, 8, 8 | length of the name, the name, where the member's bytes begin, how many they are |
//! | 8 | FNV-1a hash of all before, as one part |
//!
//! Numbers are little-endian.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::Error;
use crate::source::tar::member::Member;
use crate::source::{fingerprint, shown};

const MAGIC: &[u8; 8] = b"QVLTAR1\n";

/// The longest index that is read, in bytes: of about ten million members.
const MAX_BYTES: u64 = 1 << 30;

/// What an index has to agree with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) length: u64,
    changed_ns: u64,
}

impl State {
    pub(crate) fn of(shard: &Path) -> std::io::Result<Self> {
        let metadata = shard.metadata()?;
        // A file system without such times has one time for all states: the length still tells most of them apart.
        let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let changed_ns = changed.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        Ok(Self { length: metadata.len(), changed_ns })
    }
}

/// Where the index of a shard is: `shard.tar.index` for `shard.tar`.
pub(crate) fn path_of(shard: &Path) -> PathBuf {
    let mut name = shard.as_os_str().to_owned();
    name.push(".index");
    name.into()
}

/// The members that the index of a shard states. None without an index, and for one of another state or content:
/// then the shard is scanned, which gives the same.
pub(crate) fn load(shard: &Path, state: State) -> Option<Vec<Member>> {
    let mut content = Vec::new();
    let file = File::open(path_of(shard)).ok()?;
    file.take(MAX_BYTES).read_to_end(&mut content).ok()?;
    decode(&content, state)
}

/// Writes the index of a shard: under another name first, so that there is never half of one.
pub(crate) fn save(shard: &Path, state: State, members: &[Member]) -> Result<(), Error> {
    let path = path_of(shard);
    let temporary = path.with_extension(format!("index.{}", std::process::id()));
    let written = fs::write(&temporary, encode(state, members)).and_then(|()| fs::rename(&temporary, &path));
    written.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::Storage { what: "a saved index", why: format!("{} cannot be written: {e}", shown(&path)) }
    })
}

fn encode(state: State, members: &[Member]) -> Vec<u8> {
    let mut content = MAGIC.to_vec();
    for number in [state.length, state.changed_ns, members.len() as u64] {
        content.extend(number.to_le_bytes());
    }
    for member in members {
        // A name comes from a header of at most a mebibyte.
        content.extend((member.name.len() as u32).to_le_bytes());
        content.extend(&member.name);
        content.extend(member.offset.to_le_bytes());
        content.extend(member.bytes.to_le_bytes());
    }
    let hash = fingerprint([&content]);
    content.extend(hash.to_le_bytes());
    content
}

fn decode(content: &[u8], state: State) -> Option<Vec<Member>> {
    let (content, hash) = content.split_last_chunk::<8>()?;
    let mut rest = content.strip_prefix(MAGIC)?;
    let number = |of: &mut &[u8]| {
        let (first, after) = of.split_first_chunk::<8>()?;
        *of = after;
        Some(u64::from_le_bytes(*first))
    };
    let stated = State { length: number(&mut rest)?, changed_ns: number(&mut rest)? };
    if stated != state || u64::from_le_bytes(*hash) != fingerprint([content]) {
        return None;
    }
    let count = number(&mut rest)?;
    let mut members = Vec::new();
    for _ in 0..count {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (name, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = after;
        let (offset, bytes) = (number(&mut rest)?, number(&mut rest)?);
        if offset.checked_add(bytes)? > state.length {
            return None;
        }
        members.push(Member { name: name.to_vec(), offset, bytes });
    }
    rest.is_empty().then_some(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_comes_back_and_any_change_of_it_is_noticed() {
        let state = State { length: 5_000, changed_ns: 77 };
        let member = |name: &str, offset, bytes| Member { name: name.into(), offset, bytes };
        let members = [member("a.jpg", 512, 100), member("", 4_000, 1_000)];
        let content = encode(state, &members);
        assert_eq!(decode(&content, state).unwrap(), members);
        assert_eq!(decode(&content, State { length: 5_001, ..state }), None);
        assert_eq!(decode(&content, State { changed_ns: 78, ..state }), None);
        for at in 0..content.len() {
            assert_eq!(decode(&content[..at], state), None);
            let mut changed = content.clone();
            changed[at] ^= 0x40;
            assert_eq!(decode(&changed, state), None, "byte {at}");
        }
        let beyond = encode(state, &[member("a.jpg", 4_999, 2)]);
        assert_eq!(decode(&beyond, state), None, "a member that ends after the shard");
    }
}
