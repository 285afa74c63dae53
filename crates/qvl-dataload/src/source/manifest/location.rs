//! Where a manifest says that a picture is: a path, or a URL that needs no network.

use std::path::PathBuf;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Base64 with or without the `=` at its end: both are written.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Where a picture is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// A path as written.
    File(PathBuf),
    /// The picture itself.
    Data(Vec<u8>),
}

impl Location {
    /// Reads a path or URL; what cannot be read is said in words.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // A letter before a colon is a drive of Windows, not a scheme.
        let scheme = text.split_once(':').filter(|(scheme, _)| {
            scheme.len() > 1
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        });
        match scheme.map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest)) {
            Some((scheme, rest)) if scheme == "data" => data(rest).map(Self::Data),
            Some((scheme, rest)) if scheme == "file" && rest.starts_with("//") => {
                file(&rest[2..]).map(Self::File)
            }
            Some((scheme, rest)) if rest.starts_with("//") => Err(format!(
                "{} is not fetched: download it and give its path ({scheme} is not read)",
                shortened(text)
            )),
            _ if text.is_empty() => Err("an empty path names no picture".to_owned()),
            _ if text.contains('\0') => Err(format!("the path {} has a zero byte", shortened(text))),
            _ => Ok(Self::File(PathBuf::from(text))),
        }
    }
}

/// What follows `data:`.
fn data(rest: &str) -> Result<Vec<u8>, String> {
    let (kind, content) =
        rest.split_once(',').ok_or_else(|| "a data: URL without a comma has no content".to_owned())?;
    let is_base64 = kind.rsplit(';').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("base64"));
    if !is_base64 {
        return Err(format!("a data: URL of the kind {} is not base64", shortened(kind)));
    }
    BASE64.decode(content.trim()).map_err(|e| format!("a data: URL is not base64: {e}"))
}

/// What follows `file://`.
fn file(rest: &str) -> Result<PathBuf, String> {
    let refused = || format!("file://{} does not name a file of this machine", shortened(rest));
    let slash = rest.find('/').ok_or_else(refused)?;
    let (host, path) = rest.split_at(slash);
    if !host.is_empty() && !host.eq_ignore_ascii_case("localhost") {
        return Err(refused());
    }
    path_of(unescaped(path)).ok_or_else(refused)
}

#[cfg(unix)]
fn path_of(bytes: Vec<u8>) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    (!bytes.contains(&0)).then(|| std::ffi::OsString::from_vec(bytes).into())
}

#[cfg(not(unix))]
fn path_of(bytes: Vec<u8>) -> Option<PathBuf> {
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))?;
    // `file:///C:/pictures` has a slash before the drive.
    let drive = text.strip_prefix('/').filter(|rest| rest.as_bytes().get(1) == Some(&b':'));
    Some(drive.unwrap_or(&text).into())
}

/// Bytes written as `%` and two digits become themselves; a `%` without them stays.
fn unescaped(text: &str) -> Vec<u8> {
    let digit = |byte: &u8| (*byte as char).to_digit(16);
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => digit(high).zip(digit(low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            None => bytes.push(*first),
        }
    }
    bytes
}

/// The start of a text, for a message of one line.
pub(crate) fn shortened(text: &str) -> String {
    let start: String = text.chars().take(80).collect();
    let end = if start.len() < text.len() { "…" } else { "" };
    format!("{}{end}", start.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_at(text: &str) -> Result<PathBuf, String> {
        match Location::parse(text)? {
            Location::File(path) => Ok(path),
            Location::Data(_) => Err("data".to_owned()),
        }
    }

    #[test]
    fn paths_and_file_urls() {
        for (text, path) in [
            ("a/b.jpg", "a/b.jpg"),
            ("/a:b.jpg", "/a:b.jpg"),
            ("C:\\a.jpg", "C:\\a.jpg"),
            ("note: this.jpg", "note: this.jpg"),
            ("file:///a/b%20c%25.jpg", "/a/b c%.jpg"),
            ("FILE://localhost/a%zz%.jpg", "/a%zz%.jpg"),
        ] {
            assert_eq!(file_at(text), Ok(PathBuf::from(path)), "{text}");
        }
    }

    #[test]
    fn data_urls() {
        for text in ["data:image/png;base64,AQID", "DATA:;base64,AQID", "data:image/png;x=y;base64, AQID\n"] {
            assert!(Location::parse(text) == Ok(Location::Data(vec![1, 2, 3])), "{text}");
        }
        assert!(Location::parse("data:;base64,AQI=") == Ok(Location::Data(vec![1, 2])));
        assert!(Location::parse("data:;base64,AQI") == Ok(Location::Data(vec![1, 2])));
        assert!(Location::parse("data:;base64,") == Ok(Location::Data(Vec::new())));
    }

    #[test]
    fn what_names_no_file_is_said_in_words() {
        for (text, says) in [
            ("http://a/b.jpg", "http://a/b.jpg is not fetched"),
            ("HTTPS://a/b.jpg", "https is not read"),
            ("s3://bucket/b.jpg", "is not fetched"),
            ("file://elsewhere/b.jpg", "this machine"),
            ("file://b.jpg", "this machine"),
            ("file:///a%00b", "this machine"),
            ("data:image/png,abc", "is not base64"),
            ("data:image/png;base64", "without a comma"),
            ("data:;base64,A!", "is not base64"),
            ("", "empty path"),
            ("a\0b", "zero byte"),
        ] {
            let error = Location::parse(text).err().unwrap_or_default();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }
}
