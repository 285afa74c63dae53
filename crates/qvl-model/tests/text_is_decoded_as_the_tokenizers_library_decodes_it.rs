//! Decoding, at once and as a stream, against the `tokenizers` library; and a stream never splits a character.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{ADDED, FIRST_SPECIAL, Network, SPECIALS, VOCAB};
use proptest::prelude::*;
use qvl_model::checkpoint::TextFile;
use qvl_model::config::Config;
use qvl_model::tokenizer::{TextStream, Tokenizer};

struct Both {
    ours: Tokenizer,
    library: tokenizers::Tokenizer,
}

fn both() -> Both {
    let text = common::tokenizer().to_string();
    let config = TextFile { name: "config.json".to_owned(), text: Network::dense().config().to_string() };
    let library = tokenizers::Tokenizer::from_bytes(&text).unwrap();
    let file = TextFile { name: "tokenizer.json".to_owned(), text };
    Both { ours: Tokenizer::parse(&file, &Config::parse(&config).unwrap()).unwrap(), library }
}

/// Decodes in all three ways, which must agree; returns the pieces of the stream.
fn check(both: &Both, ids: &[u32]) -> Vec<String> {
    let expected = both.library.decode(ids, true).unwrap();
    assert_eq!(both.ours.decode(ids), expected, "at once: {ids:?}");
    let mut stream = TextStream::new(&both.ours);
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    pieces.push(stream.finish());
    assert_eq!(pieces.concat(), expected, "as a stream: {ids:?}");
    assert_eq!(stream.finish(), "", "nothing is left twice");
    pieces
}

#[test]
fn a_character_of_several_tokens_comes_when_it_is_complete() {
    let both = both();
    let ids: Vec<u32> = "é图😀".bytes().map(u32::from).collect();
    assert_eq!(check(&both, &ids), ["", "é", "", "", "图", "", "", "", "😀", ""]);
}

#[test]
fn bytes_that_are_no_character() {
    let both = both();
    // A lone continuation, a start without its rest, and an end in the middle of a character.
    assert_eq!(check(&both, &[0x80, 0x41]), ["\u{fffd}", "A", ""]);
    assert_eq!(check(&both, &[0xe5, 0x41]), ["", "\u{fffd}A", ""]);
    assert_eq!(check(&both, &[0xf0, 0x9f]), ["", "", "\u{fffd}"]);
    assert_eq!(check(&both, &[0xff, 0xff]), ["\u{fffd}", "\u{fffd}", ""]);
}

#[test]
fn special_and_unknown_ids_leave_no_text_and_split_no_character() {
    let both = both();
    assert_eq!(check(&both, &[0xc3, FIRST_SPECIAL, VOCAB as u32 - 1, 0xa9]), ["", "", "", "é", ""]);
}

#[test]
fn added_tokens_that_are_not_special_are_text() {
    let both = both();
    for (token, id) in ADDED.iter().zip(FIRST_SPECIAL + SPECIALS.len() as u32..) {
        assert_eq!(both.ours.id(token), Some(id));
        check(&both, &[65, id, 66]);
        assert_eq!(both.ours.encode(&format!("A{token}B")).unwrap(), [65, id, 66]);
    }
}

#[test]
fn special_tokens_written_in_a_text_become_their_ids() {
    let both = both();
    let ids = both.ours.encode("a<|im_start|><|image_pad|>the").unwrap();
    assert_eq!(ids, [97, FIRST_SPECIAL + 1, FIRST_SPECIAL + 5, 257]);
}

proptest! {
    #[test]
    fn random_ids(ids in prop::collection::vec(0..VOCAB as u32 + 4, 0..40)) {
        check(&both(), &ids);
    }

    #[test]
    fn random_bytes_above_ascii(ids in prop::collection::vec(0x80u32..0x100, 0..24)) {
        check(&both(), &ids);
    }

    #[test]
    fn random_texts_come_back_and_no_piece_holds_half_a_character(text in "\\PC{0,24}") {
        let both = both();
        let ids = both.ours.encode(&text).unwrap();
        let expected = both.library.encode(text.as_str(), true).unwrap();
        prop_assert_eq!(&ids[..], expected.get_ids());
        let pieces = check(&both, &ids);
        prop_assert_eq!(pieces.concat(), text.clone());
        let replaced = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
        prop_assert!(replaced(&text) || !pieces.iter().any(|piece| replaced(piece)));
    }
}
