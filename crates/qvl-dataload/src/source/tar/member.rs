//! The members of a tar archive: their names and where their bytes are, found by reading headers and seeking over
//! what lies between.
//!
//! Read are ustar with its name prefix, GNU long names, names and sizes in pax headers, and sizes in base 256. The
//! scan ends at two blocks of zeros, or after the last byte of a complete member: archives without an end mark exist.
//! Anything else at its end is damage, which is reported with all that was found before it.
//!
//! Source: POSIX.1-2017, `pax`, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format".

use std::io::{BufReader, ErrorKind, Read, Seek};

/// A header, and the unit that everything in an archive is filled up to, in bytes.
pub(crate) const BLOCK: usize = 512;

/// The longest header that extends another one, in bytes: a path of 4 KiB and whatever else a pax header says.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    /// Where its bytes begin in the archive.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// What an archive holds, as far as it can be read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scan {
    pub(crate) members: Vec<Member>,
    pub(crate) damage: Option<Flaw>,
}

/// Where an archive stops making sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) offset: u64,
    pub(crate) what: String,
    /// The name of the member it is in, if that is known.
    pub(crate) member: Option<Vec<u8>>,
}

impl Scan {
    /// Scans an archive of `length` bytes.
    ///
    /// # Errors
    /// What the reader says; damage is no error.
    pub(crate) fn of<R: Read + Seek>(archive: R, length: u64) -> std::io::Result<Self> {
        // Small members are passed by inside the buffer, large ones by a seek.
        let archive = BufReader::with_capacity(16 << 10, archive);
        let mut scanner = Scanner { archive, length, position: 0, members: Vec::new() };
        let damage = match scanner.run() {
            Ok(()) => None,
            Err(Stop::Damage(flaw)) => Some(flaw),
            Err(Stop::Io(error)) => return Err(error),
        };
        Ok(Self { members: scanner.members, damage })
    }
}

/// Why a scan ends before the end.
enum Stop {
    Damage(Flaw),
    Io(std::io::Error),
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

fn damage<T>(offset: u64, what: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Damage(Flaw { offset, what: what.into(), member: None }))
}

struct Scanner<R> {
    archive: BufReader<R>,
    length: u64,
    position: u64,
    members: Vec<Member>,
}

/// What a header says about the next one.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read + Seek> Scanner<R> {
    fn run(&mut self) -> Result<(), Stop> {
        let mut extension: Option<Extension> = None;
        loop {
            let start = self.position;
            let Some(block) = self.block()? else {
                return match extension {
                    None if self.members.is_empty() && start == 0 => damage(start, "the archive is empty"),
                    None => Ok(()),
                    Some(_) => damage(start, "the archive ends after a header that extends the next one"),
                };
            };
            if block.iter().all(|byte| *byte == 0) {
                return match extension {
                    None => self.end(start),
                    Some(_) => damage(start, "the end mark follows a header that extends the next one"),
                };
            }
            let header = Header::parse(&block).or_else(|what| {
                let what = if start == 0 { compression(&block).map_or(what, str::to_owned) } else { what };
                damage(start, what)
            })?;
            match header.kind {
                b'L' => {
                    let mut name = self.extension(start, header.size)?;
                    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                    extension.get_or_insert_default().name = Some(name);
                }
                b'x' => {
                    let records = self.extension(start, header.size)?;
                    pax(&records, extension.get_or_insert_default()).or_else(|what| damage(start, what))?;
                }
                kind => {
                    let extended = if matches!(kind, b'K' | b'g') { None } else { extension.take() };
                    let Extension { name, size } = extended.unwrap_or_default();
                    self.member(start, header, name, size)?;
                }
            }
        }
    }

    /// A member of which the header was read, and what it takes.
    fn member(
        &mut self,
        start: u64,
        header: Header,
        name: Option<Vec<u8>>,
        size: Option<u64>,
    ) -> Result<(), Stop> {
        let name = name.unwrap_or(header.name);
        let bytes = match header.kind {
            // Links, devices, folders and pipes: what their size means is not how many bytes follow.
            b'1'..=b'6' => 0,
            _ => size.unwrap_or(header.size),
        };
        let flawed =
            |what: String| Err(Stop::Damage(Flaw { offset: start, what, member: Some(name.clone()) }));
        let shown = String::from_utf8_lossy(&name).escape_debug().to_string();
        if header.kind == b'S' {
            return flawed(format!("{shown} is a sparse file, whose bytes do not lie in one run"));
        }
        let left = self.length.saturating_sub(self.position);
        if bytes > left {
            return flawed(format!("{shown} has {bytes} bytes, the archive ends after {left} of them"));
        }
        let is_file = matches!(header.kind, b'0' | 0 | b'7') && !name.ends_with(b"/");
        if is_file {
            self.members.push(Member { name, offset: self.position, bytes });
        }
        self.skip(bytes)?;
        Ok(())
    }

    /// The bytes of a header that extends another one.
    fn extension(&mut self, start: u64, size: u64) -> Result<Vec<u8>, Stop> {
        let left = self.length.saturating_sub(self.position);
        if size > left {
            return damage(start, format!("a header of {size} bytes, the archive ends after {left} of them"));
        }
        if size > MAX_EXTENSION_BYTES {
            return damage(
                start,
                format!("a header of {size} bytes, at most {MAX_EXTENSION_BYTES} are read"),
            );
        }
        let mut content = vec![0; size as usize];
        self.archive.read_exact(&mut content)?;
        self.position += size;
        self.skip_padding(size)?;
        Ok(content)
    }

    /// The next block; none at the end of the archive, for which less than a block of zeros is taken too.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Stop> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.archive.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let start = self.position;
        self.position += filled as u64;
        match filled {
            0 => Ok(None),
            // The end mark, cut off: a header begins with a name.
            _ if filled < BLOCK && block.iter().all(|byte| *byte == 0) => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => damage(start, format!("a header of {filled} bytes instead of {BLOCK}")),
        }
    }

    /// The member's bytes and what fills its last block, which may be missing at the end of the archive.
    fn skip(&mut self, bytes: u64) -> Result<(), Stop> {
        // Not over the end of the archive, which was compared before; so this is no more than `i64` holds.
        self.archive.seek_relative(i64::try_from(bytes).unwrap_or(i64::MAX))?;
        self.position += bytes;
        self.skip_padding(bytes)
    }

    fn skip_padding(&mut self, bytes: u64) -> Result<(), Stop> {
        let padding = (BLOCK as u64 - bytes % BLOCK as u64) % BLOCK as u64;
        let padding = padding.min(self.length.saturating_sub(self.position));
        self.archive.seek_relative(padding as i64)?;
        self.position += padding;
        Ok(())
    }

    /// After a first block of zeros: nothing but zeros may follow, or samples would be lost in silence.
    fn end(&mut self, start: u64) -> Result<(), Stop> {
        loop {
            let block = match self.block() {
                Ok(Some(block)) => block,
                // What fills up a tape record need not be whole blocks.
                Ok(None) | Err(Stop::Damage(_)) => return Ok(()),
                Err(error) => return Err(error),
            };
            if block.iter().any(|byte| *byte != 0) {
                let at = self.position - BLOCK as u64;
                let what = format!("data after the end mark at {start}: archives put one behind the other?");
                return damage(at, what);
            }
        }
    }
}

/// What a header says.
struct Header {
    name: Vec<u8>,
    size: u64,
    kind: u8,
}

impl Header {
    fn parse(block: &[u8; BLOCK]) -> Result<Self, String> {
        let checksum = octal(&block[148..156]).ok_or("no header: its checksum is no number")?;
        let others = || block[..148].iter().chain(&block[156..]);
        let unsigned: u64 = others().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * 32;
        // Some old programs added the bytes as signed ones.
        let signed: i64 = others().map(|byte| i64::from(*byte as i8)).sum::<i64>() + 8 * 32;
        if checksum != unsigned && i64::try_from(checksum) != Ok(signed) {
            return Err(format!("no header: its checksum is {unsigned}, it states {checksum}"));
        }
        let size = number(&block[124..136]).ok_or("a header whose size is no number")?;
        let text = |field: &[u8]| field.iter().copied().take_while(|byte| *byte != 0).collect::<Vec<u8>>();
        let (mut name, prefix) = (text(&block[..100]), text(&block[345..500]));
        // The field of the prefix has another meaning in GNU's own format.
        if block[257..263] == *b"ustar\0" && !prefix.is_empty() {
            name = [&prefix[..], b"/", &name[..]].concat();
        }
        Ok(Self { name, size, kind: block[156] })
    }
}

/// Octal digits with spaces before them, and spaces or zero bytes after them. No digits are 0.
fn octal(field: &[u8]) -> Option<u64> {
    let end = |byte: &u8| matches!(byte, b' ' | 0);
    let field = &field[field.iter().take_while(|byte| **byte == b' ').count()..];
    let digits = field.iter().take_while(|byte| matches!(byte, b'0'..=b'7')).count();
    let (digits, rest) = field.split_at(digits);
    if !rest.iter().all(end) {
        return None;
    }
    // At most twelve digits, so this fits.
    Some(digits.iter().fold(0, |value, digit| value * 8 + u64::from(digit - b'0')))
}

/// A size: octal, or with the first bit set as one number in base 256.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    match first {
        0x80 => {
            rest.iter().try_fold(0u64, |value, byte| value.checked_mul(256)?.checked_add(u64::from(*byte)))
        }
        // A negative number, or one beyond 2^88.
        0x81.. => None,
        _ => octal(field),
    }
}

/// Reads the records of a pax header, each `length key=value` and the end of a line.
fn pax(mut records: &[u8], extension: &mut Extension) -> Result<(), String> {
    let broken = || "a pax header that cannot be read".to_owned();
    while records.iter().any(|byte| *byte != 0) {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(broken)?;
        let decimal = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<u64>().ok();
        let length = decimal(&records[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(broken)?;
        if length <= space + 1 || length > records.len() {
            return Err(broken());
        }
        let (record, rest) = records.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(broken)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(broken)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => extension.name = Some(value.to_vec()),
            b"size" => extension.size = Some(decimal(value).ok_or_else(broken)?),
            _ if key.starts_with(b"GNU.sparse.") => {
                return Err("a sparse file, whose bytes do not lie in one run".to_owned());
            }
            _ => {}
        }
        records = rest;
    }
    Ok(())
}

/// What is said about a file that begins as compressed ones do.
fn compression(block: &[u8; BLOCK]) -> Option<&'static str> {
    Some(match block {
        [0x1f, 0x8b, ..] => {
            "is compressed with gzip, in which nothing can be found by its place: decompress it first"
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            "is compressed with zstd, in which nothing can be found by its place: decompress it first"
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            "is compressed with xz, in which nothing can be found by its place: decompress it first"
        }
        [b'B', b'Z', b'h', ..] => {
            "is compressed with bzip2, in which nothing can be found by its place: decompress it first"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_archives_have_them() {
        for (field, expected) in [
            (&b"00000001234\0"[..], Some(0o1234)),
            (b"      1234 \0", Some(0o1234)),
            (b"777777777777", Some((1 << 36) - 1)),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0", Some(0)),
            (b"000000000089", None),
            (b"1 2         ", None),
            (b"-1          ", None),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\x02", Some(258)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", Some(u64::MAX)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }

    #[test]
    fn pax_records() {
        let read = |text: &[u8]| {
            let mut extension = Extension::default();
            pax(text, &mut extension).map(|()| (extension.name, extension.size))
        };
        assert_eq!(read(b"12 path=a/b\n"), Ok((Some(b"a/b".to_vec()), None)));
        assert_eq!(read(b"11 size=12\n14 mtime=1.25\n\0\0"), Ok((None, Some(12))));
        assert_eq!(read(b"13 path=a\nb=\n"), Ok((Some(b"a\nb=".to_vec()), None)));
        for broken in [
            &b"path=a"[..],
            b"99 path=a\n",
            b"0 path=a\n",
            b"11 size=1x\n",
            b"8 path=a",
            b"6 abc\n",
            b"22 GNU.sparse.major=1\n",
        ] {
            assert!(read(broken).is_err(), "{broken:?}");
        }
    }
}
