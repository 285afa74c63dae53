//! Small tar archives for the tests, written by another implementation.

#![allow(dead_code, reason = "each test file uses a part of it")]

/// An archive of these members without its end mark, and where each member's bytes end.
pub(crate) fn members(of: &[(&str, &[u8])]) -> (Vec<u8>, Vec<usize>) {
    let (mut archive, mut ends) = (Vec::new(), Vec::new());
    for (name, bytes) in of {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
        let mut one = builder.into_inner().unwrap();
        // The end mark: two blocks.
        one.truncate(one.len() - 1024);
        let padding = (512 - bytes.len() % 512) % 512;
        ends.push(archive.len() + one.len() - padding);
        archive.extend(one);
    }
    (archive, ends)
}

/// A whole archive of these members.
pub(crate) fn archive(of: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut archive, _) = members(of);
    archive.extend([0; 1024]);
    archive
}
