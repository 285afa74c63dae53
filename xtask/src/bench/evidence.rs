//! What the sides of a comparison made, so that only equal work is compared.
//!
//! Each side of a measurement says what it made, as a hash or as bytes. A side that made something else is refused, or,
//! where several libraries are candidates, does not count and is said to differ.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Gathered while a plan runs.
#[derive(Default)]
pub(crate) struct Evidence {
    /// By what was to be made: who said first what it is, and what.
    made: RefCell<BTreeMap<String, (String, Vec<u8>)>>,
    /// What stands behind the name of a peer: its version, whether it makes the same bits.
    remarks: RefCell<BTreeMap<String, String>>,
}

impl Evidence {
    /// Notes what a side made, or refuses it if another side made something else.
    pub(crate) fn same(&self, what: &str, side: &str, made: &[u8]) -> Result<()> {
        match self.made.borrow_mut().entry(what.to_owned()).or_insert_with(|| (side.to_owned(), made.into()))
        {
            (_, before) if before.as_slice() == made => Ok(()),
            (other, _) => bail!("{what}: {side} and {other} made different bits, so their times say nothing"),
        }
    }

    /// Whether this is what the first side made, and how many bytes in a thousand are not.
    pub(crate) fn differs(&self, what: &str, made: &[u8]) -> Result<Option<f64>> {
        let all = self.made.borrow();
        let (_, first) = all.get(what).with_context(|| format!("{what}: nothing to compare with"))?;
        if first == made {
            return Ok(None);
        }
        let differing = first.iter().zip(made).filter(|(a, b)| a != b).count();
        let missing = first.len().abs_diff(made.len());
        Ok(Some(1e3 * (differing + missing) as f64 / first.len().max(1) as f64))
    }

    /// Notes what stands behind a peer's name from now on.
    pub(crate) fn remark(&self, peer: &str, remark: &str) {
        self.remarks.borrow_mut().insert(peer.to_owned(), remark.to_owned());
    }

    /// Notes the versions that a script printed.
    pub(crate) fn versions(&self, line: &Value) {
        for (peer, version) in line["versions"].as_object().into_iter().flatten() {
            self.remark(peer, version.as_str().unwrap_or_default());
        }
    }

    /// A name with `{peer}` replaced by what is known of the peer.
    pub(crate) fn complete(&self, name: &str) -> String {
        let remarks = self.remarks.borrow();
        let mut parts = name.split('{');
        let mut complete = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (peer, rest) = part.split_once('}').unwrap_or((part, ""));
            if let Some(remark) = remarks.get(peer) {
                complete.push(' ');
                complete.push_str(remark);
            }
            complete.push_str(rest);
        }
        complete
    }
}

/// The text a measurement has under this name.
pub(crate) fn text<'a>(line: &'a Value, name: &str) -> Result<&'a str> {
    line[name].as_str().with_context(|| format!("no {name} in {line}"))
}

/// The bytes that a measurement wrote.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let name = path.file_name().unwrap_or_default().display().to_string();
    std::fs::read(path).with_context(|| format!("{name}, which the measurement should have written"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_side_that_made_something_else_is_refused() {
        let evidence = Evidence::default();
        evidence.same("patches", "qvl", b"one").expect("the first");
        evidence.same("patches", "qvl", b"one").expect("again");
        evidence.same("sizes", "transformers", b"two").expect("something else");
        let error = evidence.same("patches", "transformers", b"two").expect_err("differs").to_string();
        assert_eq!(error, "patches: transformers and qvl made different bits, so their times say nothing");
    }

    #[test]
    fn a_difference_is_counted() {
        let evidence = Evidence::default();
        assert!(evidence.differs("picture", b"abcd").is_err());
        evidence.same("picture", "Pillow", b"abcd").expect("the first");
        assert_eq!(evidence.differs("picture", b"abcd").expect("compares"), None);
        assert_eq!(evidence.differs("picture", b"abxd").expect("compares"), Some(250.0));
        assert_eq!(evidence.differs("picture", b"ab").expect("compares"), Some(500.0));
    }

    #[test]
    fn names_are_completed_with_what_is_known() {
        let evidence = Evidence::default();
        evidence.versions(&json!({ "versions": { "transformers": "5.23.0" } }));
        evidence.remark("llama", "(same bits)");
        let name = "transformers{transformers} with Pillow{pillow}; llama.cpp{llama}";
        assert_eq!(evidence.complete(name), "transformers 5.23.0 with Pillow; llama.cpp (same bits)");
        assert_eq!(evidence.complete("plain"), "plain");
    }
}
