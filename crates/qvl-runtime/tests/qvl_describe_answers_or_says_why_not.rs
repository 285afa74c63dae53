//! `qvl describe`: stdout holds the answer and nothing else; whatever prevents one is a line on stderr.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs;
use std::path::Path;

use common::{case, copy, file, program, qvl, sample};

/// Answers with some arguments.
#[track_caller]
fn answer(args: &[&str]) -> String {
    let run = qvl(["describe"].iter().chain(args)).done();
    assert_eq!(run.stderr.lines().count(), 1, "one line of figures: {run:?}");
    assert!(run.stderr.contains("prompt tokens"), "{run:?}");
    run.stdout.strip_suffix('\n').unwrap().to_owned()
}

#[test]
fn stdout_is_the_answer_and_a_line_break() {
    let text = answer(&[&sample("digits-1.png"), "--prompt", "Read the number."]);
    let run = qvl(["describe", &sample("digits-1.png"), "--prompt", "Read the number.", "--json"]).done();
    assert_eq!(run.json()["answer"], text);
    assert!(!text.is_empty());
}

#[test]
fn json_has_the_answer_and_what_it_took() {
    let run = qvl(["describe", &sample("shapes-1.png"), "--json", "--max-tokens", "3"]).done();
    let report = run.json();
    assert_eq!(run.stderr, "");
    assert_eq!(report["model"], "qvl-tiny (embedded)");
    assert!(report["answer"].is_string());
    let tokens = report["tokens"].as_array().unwrap();
    let finish = report["finish_reason"].as_str().unwrap();
    assert!(tokens.len() == 3 && finish == "length" || tokens.len() < 3 && finish == "stop", "{report}");
    let visual = report["visual_tokens"].as_u64().unwrap();
    assert!(visual > 0 && report["prompt_tokens"].as_u64().unwrap() > visual, "{report}");
    for key in [
        "load_seconds",
        "prepare_seconds",
        "prefill_seconds",
        "decode_seconds",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    ] {
        assert!(report[key].as_f64().unwrap() >= 0.0, "{key}: {report}");
    }
    assert!(report.as_object().unwrap().contains_key("peak_resident_bytes"));
}

#[test]
fn several_pictures_a_system_message_a_video_or_no_picture() {
    let (one, two) = (sample("shapes-1.png"), sample("digits-2.jpg"));
    answer(&[&one, &two, "--max-tokens", "2"]);
    answer(&[&one, "--system", "Be brief.", "--max-tokens", "2"]);
    answer(&["--text-only", "--prompt", "Hello", "--max-tokens", "2"]);
    let frames: Vec<String> =
        (0..5).map(|index| file(&format!("tests/data/cases/dense_video/frame_{index:03}.png"))).collect();
    let mut args = vec!["--prompt", "What happens?", "--max-tokens", "2", "--fps", "2", "--video"];
    args.extend(frames.iter().map(String::as_str));
    answer(&args);
}

#[test]
fn a_checkpoint_folder_answers_too() {
    let folder = case("moe_one_image");
    let (picture, model) = (folder.join("image_0.png"), folder.join("model"));
    let args = [picture.to_str().unwrap(), "--model", model.to_str().unwrap(), "--max-tokens", "4", "--json"];
    let report = qvl(["describe"].iter().chain(&args)).done().json();
    assert_eq!(report["model"], model.to_str().unwrap());
}

#[test]
fn threads_and_chunks_do_not_change_the_answer() {
    let picture = sample("shapes-2.png");
    let expected = answer(&[&picture, "--threads", "1"]);
    for args in [["--threads", "2"], ["--prefill-chunk", "1"], ["--prefill-chunk", "7"]] {
        assert_eq!(answer(&[&[picture.as_str()], &args[..]].concat()), expected, "{args:?}");
    }
    let seeded =
        |threads: &str| answer(&[&picture, "--temperature", "1.5", "--seed", "4", "--threads", threads]);
    assert_eq!(seeded("1"), seeded("2"));
}

#[test]
fn a_picture_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let jpeg = fs::read(sample("digits-2.jpg")).unwrap();
    let mut huge = fs::read(sample("digits-1.png")).unwrap();
    huge[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
    let checksum = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&checksum.to_be_bytes());
    for (path, part) in [
        (folder.path().join("absent.png").to_str().unwrap().to_owned(), "no such file"),
        (folder.path().to_str().unwrap().to_owned(), "folder"),
        (write("empty.png", b""), "empty"),
        (write("text.png", b"This is not a picture.\n"), "not a JPEG, PNG"),
        (write("cut.jpg", &jpeg[..jpeg.len() / 2]), "truncated"),
        (write("huge.png", &huge), "60000x60000"),
    ] {
        qvl(["describe", &path]).refused(&[&path, part]);
        qvl(["describe", &path, "--json"]).refused(&[&path, part]);
        // Also when a good one comes first.
        qvl(["describe", &sample("digits-1.png"), &path]).refused(&[&path, part]);
    }
}

/// The checksum of PNG chunks, so that only the size in the header is wrong.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

#[test]
fn a_folder_that_is_no_checkpoint_is_named() {
    let picture = sample("digits-1.png");
    let ask = |model: &Path| qvl(["describe", &picture, "--model", model.to_str().unwrap()]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    ask(&folder.path().join("absent")).refused(&[path, "absent"]);
    ask(folder.path()).refused(&[path, "config.json"]);
    ask(Path::new(&picture)).refused(&[&picture, "it is a file"]);

    let broken = folder.path().join("broken");
    copy(&case("dense_one_image").join("model"), &broken);
    let weights = broken.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    ask(&broken).refused(&[weights.to_str().unwrap(), "truncated"]);
    fs::remove_file(&weights).unwrap();
    ask(&broken).refused(&["model.safetensors", broken.to_str().unwrap()]);
}

#[test]
fn a_processor_that_does_not_fit_the_network_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    copy(&case("dense_one_image").join("model"), folder.path());
    let config = folder.path().join("processor_config.json");
    let text = fs::read_to_string(&config).unwrap();
    assert!(text.contains("\"merge_size\": 2"));
    fs::write(&config, text.replace("\"merge_size\": 2", "\"merge_size\": 4")).unwrap();
    let run = qvl(["describe", &sample("digits-1.png"), "--model", folder.path().to_str().unwrap()]);
    run.refused(&["merge_size 4", "2"]);
}

#[test]
fn weights_that_are_not_numbers_give_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    copy(&case("dense_one_image").join("model"), folder.path());
    let weights = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // The last tensors of the file: all bits set are a NaN in every type.
    let end = bytes.len();
    bytes[end - 5000..].fill(0xff);
    fs::write(&weights, bytes).unwrap();
    let (picture, model) = (sample("digits-1.png"), folder.path().to_str().unwrap());
    for form in [&[][..], &["--json"]] {
        qvl([&["describe", &picture, "--model", model], form].concat())
            .refused(&["not finished", "not finite"]);
    }
}

#[test]
fn text_that_breaks_the_prompt_is_an_error() {
    let picture = sample("digits-1.png");
    qvl(["describe", &picture, "--prompt", "What is <|image_pad|>?"])
        .refused(&["2 image placeholder(s)", "1 image(s)"]);
    qvl(["describe", &picture, "--prompt", &"word ".repeat(5000)]).refused(&["tokens", "4096"]);
}

#[test]
fn values_out_of_their_range_are_errors() {
    let picture = sample("digits-1.png");
    for (flag, value) in
        [("--temperature", "nan"), ("--top-p", "0"), ("--min-p", "2"), ("--repetition-penalty", "0")]
    {
        qvl(["describe", &picture, flag, value]).refused(&[&flag[2..].replace('-', "_"), "expected"]);
    }
    let frame = file("tests/data/cases/dense_video/frame_000.png");
    qvl(["describe", "--fps", "0", "--video", &frame, &frame]).refused(&["0"]);
    qvl(["describe", "--fps", "2", "--video", &frame, &picture]).refused(&[&picture]);
}

#[test]
fn wrong_usage_is_code_2() {
    let picture = sample("digits-1.png");
    for args in [
        &["describe"][..],
        &["describe", "--video", &picture],
        &["describe", &picture, "--fps", "2"],
        &["describe", &picture, "--text-only"],
        &["describe", &picture, "--no-such-flag"],
        &["describe", &picture, "--threads", "many"],
        &["describe", &picture, "--max-tokens", "-3"],
        &["describe", &picture, "--temperature", "warm"],
        &["inspect", "--size", "big"],
        &["inspect", "--size", "0x5"],
        &["eval"],
        &["parity"],
        &["parity", "somewhere", "--backend", "abacus"],
        &["no-such-command"],
        &[],
    ] {
        let run = qvl(args);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args:?}: {run:?}");
        assert!(run.stderr.contains("Usage") || run.stderr.contains("--help"), "{args:?}: {run:?}");
    }
}

#[test]
fn help_and_version_are_answers() {
    for args in
        [&["--help"][..], &["describe", "--help"], &["eval", "--help"], &["inspect", "--help"], &["-h"]]
    {
        assert!(qvl(args).done().stdout.contains("Usage"), "{args:?}");
    }
    assert_eq!(qvl(["--version"]).done().stdout, format!("qvl {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let (picture, folder) = (sample("shapes-3.png"), case("dense_text_only"));
    for args in [
        &["describe", &picture][..],
        &["describe", &picture, "--json"],
        &["inspect"],
        &["inspect", "--json"],
        &["parity", folder.to_str().unwrap()],
        &["parity", folder.to_str().unwrap(), "--json"],
        &["eval", "--manifest", &sample("samples.jsonl")],
        &["eval", "--manifest", &sample("samples.jsonl"), "--json"],
        &["describe", "--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = program().args(args).stdout(writer).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!stderr.contains("panicked") && !stderr.contains("error"), "{args:?}: {stderr}");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
    }
}

#[test]
fn every_way_of_keeping_weights_reads_the_number() {
    let picture = sample("digits-1.png");
    let ask = |more: &[&str]| {
        let args = ["describe", &picture, "--prompt", "Read the number."];
        qvl(args.into_iter().chain(more.iter().copied())).done().stdout
    };
    let expected = ask(&["--exact"]);
    for more in [
        &[][..],
        &["--weights", "bf16"],
        &["--weights", "q8"],
        &["--weights", "q4"],
        &["--vision-weights", "q8"],
        &["--weights", "q4", "--exact"],
    ] {
        assert_eq!(ask(more), expected, "{more:?}");
    }
}

#[test]
fn an_instruction_set_or_a_format_that_is_not_there_is_one_clear_line() {
    let picture = sample("digits-1.png");
    let args = ["describe", &picture, "--weights", "q3"];
    let run = qvl(args);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.stderr.contains("q3") && run.stderr.contains("q8 and q4"), "{run:?}");
    for (isa, is_there) in [("portable", true), ("sse9", false), ("", false)] {
        let output =
            program().env("QVL_ISA", isa).args(["describe", &picture, "--max-tokens", "1"]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), is_there, "{isa:?}: {stderr}");
        if !is_there {
            assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
            for part in ["QVL_ISA", isa, "portable"] {
                assert!(stderr.contains(part), "{stderr:?} does not say {part:?}");
            }
        }
    }
}
