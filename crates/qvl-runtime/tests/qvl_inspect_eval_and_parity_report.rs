//! The commands that report: what they print, in which form, and with which exit code.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use common::{case, copy, qvl, sample};
use qvl_model::backend::cpu::Isa;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::json;

#[test]
fn inspect_names_the_family_and_quotes_pictures() {
    let run = qvl(["inspect", "--size", "128x96"]).done();
    assert!(run.stdout.contains("qvl-tiny (embedded)") && run.stdout.contains("Qwen3-VL, dense"), "{run:?}");
    assert!(run.stdout.contains("128 x 96 is resized to 128 x 96: 12 tokens"), "{run:?}");
    let report = qvl(["inspect", "--json", "--size", "128x96"]).done().json();
    assert_eq!(report["family"], "Qwen3-VL, dense");
    assert_eq!(report["image_tokens"][0]["tokens"], 12);
    assert_eq!(report["files"], 1);
    assert_eq!(report["weight_bytes"], report["parameters"].as_u64().unwrap() * 2);

    let model = case("moe_published_layout").join("model");
    let run = qvl(["inspect", model.to_str().unwrap()]).done();
    assert!(run.stdout.contains("mixture of experts (3 of 8 a token)"), "{run:?}");
    let sharded = case("untied_sharded_published_names").join("model");
    let report = qvl(["inspect", "--json", sharded.to_str().unwrap()]).done().json();
    assert!(report["files"].as_u64().unwrap() > 1, "{report}");
    assert_eq!(report["decoder"]["tied_head"], false);
}

#[test]
fn inspect_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    qvl(["inspect", path]).refused(&[path, "config.json"]);
    qvl(["inspect", "--size", "1x4000"]).refused(&["1x4000", "aspect ratio"]);
}

/// Writes a manifest beside a picture and evaluates it.
struct Manifest {
    folder: tempfile::TempDir,
}

impl Manifest {
    fn new(lines: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(sample("digits-1.png"), folder.path().join("picture.png")).unwrap();
        fs::write(folder.path().join("questions.jsonl"), lines.join("\n")).unwrap();
        Self { folder }
    }

    fn path(&self) -> String {
        self.folder.path().join("questions.jsonl").to_str().unwrap().to_owned()
    }

    fn eval(&self, args: &[&str]) -> common::Run {
        qvl(["eval", "--max-tokens", "6", "--manifest", &self.path()].iter().chain(args))
    }
}

fn question(answer: &str, task: &str) -> String {
    json!({ "images": ["picture.png"], "prompt": "Read the number.", "answer": answer, "task": task })
        .to_string()
}

#[test]
fn eval_counts_right_answers_by_task() {
    let said = Manifest::new(&[question("?", "only")]).eval(&["--json"]).done().json();
    assert_eq!(said["all"], json!({ "right": 0, "asked": 1 }));
    let answer = said["outcomes"][0]["got"].as_str().unwrap();
    let ids = &said["outcomes"][0]["ids"];

    // White space around an answer does not count, and neither does an empty line.
    let manifest =
        Manifest::new(&[question(&format!(" {answer} "), "one"), String::new(), question("never", "two")]);
    let report = manifest.eval(&["--json"]).done().json();
    assert_eq!(
        report["tasks"],
        json!({ "one": { "right": 1, "asked": 1 }, "two": { "right": 0, "asked": 1 } })
    );
    assert_eq!(report["all"], json!({ "right": 1, "asked": 2 }));
    assert_eq!(report["equal_to_reference"], json!(null));

    let run = manifest.eval(&["--wrong"]).done();
    assert!(run.stdout.contains("1 of    2") && run.stdout.contains("50.00 %"), "{run:?}");
    assert!(run.stdout.contains("questions.jsonl:3") && run.stdout.contains("never"), "{run:?}");

    let reference = manifest.folder.path().join("reference.jsonl");
    fs::write(&reference, format!("{}\n{}\n", json!({ "ids": ids }), json!({ "ids": [1, 2, 3] }))).unwrap();
    let args = ["--json", "--reference", reference.to_str().unwrap()];
    let report = manifest.eval(&args).done().json();
    assert_eq!(report["equal_to_reference"], json!({ "right": 1, "asked": 2 }));
    fs::write(&reference, json!({ "ids": ids }).to_string()).unwrap();
    manifest.eval(&args).refused(&["reference.jsonl", "1 answers for 2 questions"]);
    fs::write(&reference, "\n{\"ids\": 1}").unwrap();
    manifest.eval(&args).refused(&["reference.jsonl:2"]);
}

#[test]
fn eval_names_the_line_that_is_wrong() {
    let good = question("1", "a");
    for (line, part) in [
        ("not JSON".to_owned(), "expected"),
        (json!({ "prompt": "a" }).to_string(), "missing field `answer`"),
        (json!({ "prompt": "a", "answer": "b", "picture": "c" }).to_string(), "unknown field `picture`"),
        (json!({ "prompt": "a", "answer": "b", "fps": 2 }).to_string(), "video and fps belong together"),
        (json!({ "prompt": "a", "answer": "b", "video": ["picture.png"] }).to_string(), "video and fps"),
    ] {
        Manifest::new(&[good.clone(), line]).eval(&[]).refused(&["questions.jsonl:2", part]);
    }
    Manifest::new(&[]).eval(&[]).refused(&["questions.jsonl", "no lines"]);
    qvl(["eval", "--manifest", "no/such.jsonl"]).refused(&["no/such.jsonl", "cannot be read"]);
    let absent = json!({ "image": "absent.png", "prompt": "a", "answer": "b" }).to_string();
    Manifest::new(&[good, absent]).eval(&[]).refused(&["absent.png", "no such file"]);
}

/// A reference case with `expected.safetensors` changed by `change`; returns the run of `parity` on it.
fn altered(
    change: impl FnOnce(&mut HashMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>),
) -> common::Run {
    let folder = tempfile::tempdir().unwrap();
    copy(&case("dense_text_only"), folder.path());
    let path = folder.path().join("expected.safetensors");
    let bytes = fs::read(&path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = parsed
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    qvl(["parity", folder.path().to_str().unwrap()])
}

#[test]
fn parity_holds_on_an_intact_case() {
    let run = altered(|_| {}).done();
    assert!(run.stdout.contains("1 of 1 cases within tolerance"), "{run:?}");
    assert!(!run.stdout.contains("FAILS"), "{run:?}");
    assert!(run.stdout.contains(&format!("instructions: {}", Isa::detect().name())), "{run:?}");
    let report =
        qvl(["parity", "--json", "--backend", "reference", case("dense_text_only").to_str().unwrap()]);
    let report = report.done().json();
    assert_eq!((&report["instruction_set"], &report["exact"]), (&json!("reference"), &json!(true)));
    assert_eq!(report["cases"][0]["case"], "dense_text_only");
    let tensors = report["cases"][0]["tensors"].as_array().unwrap();
    let names: Vec<_> = tensors.iter().map(|tensor| tensor["tensor"].as_str().unwrap()).collect();
    assert_eq!(names, ["input_ids", "logits", "generated_ids"]);
    assert!(tensors.iter().all(|tensor| tensor["holds"] == true));
}

#[test]
fn parity_fails_on_one_wrong_value() {
    let set_logit = |index: usize, value: f32| {
        altered(move |tensors| {
            tensors.get_mut("logits").unwrap().2[4 * index..4 * index + 4]
                .copy_from_slice(&value.to_le_bytes());
        })
    };
    for (run, tensor, part) in [
        (set_logit(1000, f32::NAN), "logits", "expected NaN"),
        (set_logit(1000, 17.0), "logits", "expected 1.7e1"),
        (set_logit(0, f32::INFINITY), "logits", "inf"),
        (altered(|tensors| tensors.get_mut("input_ids").unwrap().2[0] ^= 1), "input_ids", "at [0]"),
        (altered(|tensors| tensors.get_mut("generated_ids").unwrap().2[8] ^= 1), "generated_ids", "at [1]"),
        (altered(|tensors| drop(tensors.remove("logits"))), "logits", "nothing of this name is expected"),
        (
            altered(|tensors| {
                let copy = tensors["logits"].clone();
                tensors.insert("deepstack_0".to_owned(), copy);
            }),
            "deepstack_0",
            "nothing of this name is computed",
        ),
    ] {
        assert_eq!((run.code, run.stderr.as_str()), (1, ""), "{run:?}");
        let line = run.stdout.lines().find(|line| line.contains("FAILS")).unwrap();
        assert!(line.contains(tensor) && line.contains(part), "{line:?} does not say {tensor} and {part:?}");
        assert!(run.stdout.contains("0 of 1 cases within tolerance"), "{run:?}");
    }
}

#[test]
fn parity_says_why_it_cannot_compare() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    qvl(["parity", path]).refused(&[path, "no folder in it holds request.json"]);
    qvl(["parity", "no/such/folder"]).refused(&["no/such/folder"]);

    copy(&case("dense_one_image"), folder.path());
    let damage = |file: &str, text: &str, parts: &[&str]| {
        let path: &Path = &folder.path().join(file);
        let intact = fs::read(path).unwrap();
        fs::write(path, text).unwrap();
        qvl(["parity", folder.path().to_str().unwrap()]).refused(parts);
        fs::write(path, intact).unwrap();
    };
    damage("request.json", "{}", &["request.json", "missing field `messages`"]);
    damage(
        "request.json",
        r#"{"messages": [{"role": "user", "content": [{"type": "sound"}]}], "max_new_tokens": 1}"#,
        &["request.json", "sound"],
    );
    damage("request.json", r#"{"messages": []}"#, &["request.json", "max_new_tokens"]);
    damage("expected.safetensors", "abc", &["expected.safetensors"]);
    fs::remove_file(folder.path().join("image_0.png")).unwrap();
    qvl(["parity", path]).refused(&["image_0.png", "no such file"]);
}
