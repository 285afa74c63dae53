//! The files that say how much memory there is, read into numbers: pure, so that any text can be tried.
//!
//! Each parser names the file that the text is from, the field, what is there and what was expected.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// How long tasks waited for memory, as one line of a PSI file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Stall {
    /// Share of the last 10 s, in percent.
    pub avg10: f64,
    /// Share of the last 60 s, in percent.
    pub avg60: f64,
    /// Share of the last 300 s, in percent.
    pub avg300: f64,
    /// All of it since the start, in microseconds.
    pub total_us: u64,
}

/// A PSI file: `/proc/pressure/memory`, or `memory.pressure` of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Psi {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks that were not idle waited.
    pub full: Stall,
}

/// `/proc/meminfo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Meminfo {
    /// `MemTotal`.
    pub total_bytes: u64,
    /// `MemAvailable`: what can be had without swapping, as the kernel estimates it.
    pub available_bytes: u64,
    /// `SwapFree`.
    pub swap_free_bytes: u64,
}

/// `memory.events` of a group of version 2: how often, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Events {
    /// Was slowed down because it was over `memory.high`.
    pub high: u64,
    /// Ran into `memory.max`.
    pub max: u64,
    /// Found nothing to reclaim there.
    pub oom: u64,
    /// Had a process killed.
    pub oom_kill: u64,
}

/// `/proc/self/cgroup`: the groups of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Membership {
    /// The group of version 2.
    pub v2: Option<String>,
    /// The group of the memory controller of version 1. Where it is there, version 2 has no memory controller.
    pub memory_v1: Option<String>,
}

/// Where a hierarchy of groups is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mount {
    /// Which of its groups is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
}

/// `/proc/self/mountinfo`, as far as it is about groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mounts {
    /// Of version 2.
    pub v2: Option<Mount>,
    /// Of the memory controller of version 1.
    pub memory_v1: Option<Mount>,
}

/// Parses a PSI file.
///
/// # Errors
/// [`Error::Content`] if a line or a field of it is not there or is not a number.
pub fn psi(path: &Path, text: &str) -> Result<Psi> {
    Ok(Psi { some: stall(path, text, "some")?, full: stall(path, text, "full")? })
}

fn stall(path: &Path, text: &str, name: &'static str) -> Result<Stall> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .ok_or_else(|| content(path, name, text, "a line `avg10=.. avg60=.. avg300=.. total=..`"))?;
    let value = |key: &'static str| {
        line.split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .ok_or_else(|| content(path, key, line, "this field"))
    };
    let percent = |key| {
        let got = value(key)?;
        match got.parse::<f64>() {
            Ok(number) if (0.0..=100.0).contains(&number) => Ok(number),
            _ => Err(content(path, key, got, "a number from 0 to 100")),
        }
    };
    Ok(Stall {
        avg10: percent("avg10")?,
        avg60: percent("avg60")?,
        avg300: percent("avg300")?,
        total_us: whole(path, "total", value("total")?)?,
    })
}

/// Parses `/proc/meminfo`.
///
/// # Errors
/// [`Error::Content`] if `MemTotal` is 0, or if one of the three fields is not there or is no number of kB.
pub fn meminfo(path: &Path, text: &str) -> Result<Meminfo> {
    let bytes = |key: &'static str| {
        let got = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
            .ok_or_else(|| content(path, key, text, "this field"))?;
        let number = got.trim().strip_suffix("kB").and_then(|number| number.trim_end().parse::<u64>().ok());
        number
            .and_then(|number| number.checked_mul(1024))
            .ok_or_else(|| content(path, key, got.trim(), "a number of kB"))
    };
    let total_bytes = bytes("MemTotal")?;
    if total_bytes == 0 {
        return Err(content(path, "MemTotal", "0", "more than 0 kB"));
    }
    Ok(Meminfo {
        total_bytes,
        available_bytes: bytes("MemAvailable")?.min(total_bytes),
        swap_free_bytes: bytes("SwapFree")?,
    })
}

/// Parses a file that is one number of bytes, such as `memory.current`.
///
/// # Errors
/// [`Error::Content`] if it is not.
pub fn bytes(path: &Path, field: &'static str, text: &str) -> Result<u64> {
    whole(path, field, text.trim())
}

/// Parses a limit of a group: a number of bytes, or `max` for none. Version 1 has no word for none and gives the
/// greatest number instead, which is taken as none too.
///
/// # Errors
/// [`Error::Content`] if it is neither.
pub fn limit(path: &Path, field: &'static str, text: &str) -> Result<Option<u64>> {
    match text.trim() {
        "max" => Ok(None),
        text => match text.parse::<u64>() {
            Ok(number) => Ok(Some(number).filter(|number| *number < UNLIMITED_BYTES)),
            Err(_) => Err(content(path, field, text, "a number of bytes, or max")),
        },
    }
}

/// Parses `memory.stat` of a group for what the kernel would reclaim before it kills: pages of files, and slabs where
/// they are listed, less what has to be written to a drive first. The same pages as in `MemAvailable`, so that a
/// machine and a group compare.
///
/// `prefix` is `total_` in version 1, where plain names leave out groups inside, and empty in version 2.
///
/// # Errors
/// [`Error::Content`] if there are no pages of files in it, or something there is not a number.
pub fn reclaimable(path: &Path, text: &str, prefix: &str) -> Result<u64> {
    let find = |key: &'static str| -> Result<Option<u64>> {
        let got =
            text.lines().find_map(|line| line.strip_prefix(prefix)?.strip_prefix(key)?.strip_prefix(' '));
        got.map(|got| whole(path, key, got.trim())).transpose()
    };
    let need = |key: &'static str| -> Result<u64> {
        find(key)?.ok_or_else(|| content(path, key, text, "this field"))
    };
    let have = need("inactive_file")?
        .saturating_add(need("active_file")?)
        .saturating_add(find("slab_reclaimable")?.unwrap_or(0));
    // Version 1 leaves out the `file_`.
    let dirty = find("file_dirty")?.or(find("dirty")?).unwrap_or(0);
    let writeback = find("file_writeback")?.or(find("writeback")?).unwrap_or(0);
    Ok(have.saturating_sub(dirty).saturating_sub(writeback))
}

/// Parses `memory.events`.
///
/// # Errors
/// [`Error::Content`] if a count is not there or is not a number.
pub fn events(path: &Path, text: &str) -> Result<Events> {
    let count = |key: &'static str| {
        let got = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        whole(path, key, got.ok_or_else(|| content(path, key, text, "this field"))?.trim())
    };
    Ok(Events { high: count("high")?, max: count("max")?, oom: count("oom")?, oom_kill: count("oom_kill")? })
}

/// Parses `/proc/self/cgroup`: lines such as `0::/a` (version 2) and `4:memory:/a` (version 1).
///
/// # Errors
/// [`Error::Content`] if a line has not three parts, or a group is no path.
pub fn membership(path: &Path, text: &str) -> Result<Membership> {
    let mut found = Membership::default();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(content(path, "group", line, "number:controllers:path"));
        };
        if !group.starts_with('/') || group.len() > PATH_BYTES_MAX {
            return Err(content(path, "group", group, "a path that begins with /"));
        }
        if number == "0" && controllers.is_empty() {
            found.v2 = Some(group.to_owned());
        } else if controllers.split(',').any(|name| name == "memory") {
            found.memory_v1 = Some(group.to_owned());
        }
    }
    Ok(found)
}

/// Parses `/proc/self/mountinfo`.
///
/// # Errors
/// [`Error::Content`] if a line has not the parts that it should have.
pub fn mounts(path: &Path, text: &str) -> Result<Mounts> {
    let mut found = Mounts::default();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let wrong =
            || content(path, "mount", line, "id parent device root point options - type source options");
        let (left, right) = line.split_once(" - ").ok_or_else(wrong)?;
        let mut left = left.split(' ').skip(3);
        let (Some(root), Some(point)) = (left.next(), left.next()) else { return Err(wrong()) };
        let mut right = right.split(' ');
        let (Some(kind), Some(_), Some(options)) = (right.next(), right.next(), right.next()) else {
            return Err(wrong());
        };
        let place = match kind {
            "cgroup2" => &mut found.v2,
            "cgroup" if options.split(',').any(|option| option == "memory") => &mut found.memory_v1,
            _ => continue,
        };
        if !root.starts_with('/') || !point.starts_with('/') {
            return Err(wrong());
        }
        // The first is where a distribution puts it; others are further views, as of a container that is built.
        place.get_or_insert_with(|| Mount { root: unescaped(root).into(), point: unescaped(point).into() });
    }
    Ok(found)
}

/// Spaces and the like are written as `\040`.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code.filter(u8::is_ascii) {
            Some(code) => {
                plain.push(char::from(code));
                rest = after.get(3..).unwrap_or("");
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

/// A whole number, for the other parsers here.
pub(crate) fn whole(path: &Path, field: &'static str, got: &str) -> Result<u64> {
    got.parse().map_err(|_| content(path, field, got, "a whole number"))
}

/// The error for something else than was expected; what is there is shortened.
pub(crate) fn content(path: &Path, field: &'static str, got: &str, expected: &'static str) -> Error {
    let mut shown: String = got.chars().take(SHOWN_CHARS).collect();
    if shown.len() < got.len() {
        shown.push_str("..");
    }
    Error::Content { path: path.to_owned(), field, got: shown, expected }
}

/// What no machine has: version 1 gives `i64::MAX` in whole pages for no limit.
const UNLIMITED_BYTES: u64 = 1 << 62;
/// Longer paths cannot be opened.
const PATH_BYTES_MAX: usize = 4096;
const SHOWN_CHARS: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_mount_points() {
        assert_eq!(unescaped(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescaped(r"/a\9"), r"/a\9");
        assert_eq!(unescaped(r"/\é\040"), r"/\é ");
    }

    #[test]
    fn version_1_says_no_limit_by_a_number() {
        let path = Path::new("/l");
        assert_eq!(limit(path, "l", "9223372036854771712\n").unwrap(), None);
        assert_eq!(limit(path, "l", "max\n").unwrap(), None);
        assert_eq!(limit(path, "l", "0\n").unwrap(), Some(0));
        let said = limit(path, "l", "-1").unwrap_err().to_string();
        assert_eq!(said, r#"/l: l is "-1", a number of bytes, or max was expected"#);
    }

    #[test]
    fn what_waits_for_a_drive_is_not_reclaimable() {
        let path = Path::new("/s");
        let v2 =
            "anon 5\nfile_dirty 4\nfile_writeback 1\ninactive_file 100\nactive_file 10\nslab_reclaimable 7\n";
        assert_eq!(reclaimable(path, v2, "").unwrap(), 112);
        let v1 = "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 10\ntotal_dirty 4\ntotal_writeback 1";
        assert_eq!(reclaimable(path, v1, "total_").unwrap(), 105);
        assert!(reclaimable(path, "total_inactive_file 5", "total_").is_err());
    }
}
