//! Quantised weights and activations answer the held-out questions as the exact mode does.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use common::{file, qvl};
use qvl_model::{CpuOptions, WeightFormat};
use qvl_runtime::distance::{Comparison, distance};
use qvl_runtime::evaluate::{Question, read_manifest};
use qvl_runtime::{Engine, Result};

/// The first 60 pictures of digits.
fn digits() -> Vec<Question> {
    let questions = read_manifest(file("assets/heldout/manifest.jsonl").as_ref()).unwrap();
    questions.into_iter().filter(|question| question.task == "digits").take(60).collect()
}

fn engine(weights: WeightFormat, vision_weights: WeightFormat, exact: bool) -> Engine {
    let options = CpuOptions { threads: 2, isa: None, weights, vision_weights, exact };
    Engine::open_with(None, None, options, &|_, _| {}).unwrap()
}

fn compare(questions: &[Question], other: &Engine) -> Result<Comparison> {
    distance(&engine(WeightFormat::Stored, WeightFormat::Stored, true), other, questions, 8, || {})
}

#[test]
fn every_mode_answers_within_a_point() {
    use WeightFormat::{Q4, Q8, Stored};
    let questions = digits();
    assert_eq!(questions.len(), 60);
    for (weights, vision, exact) in [
        (Stored, Stored, false),
        (Q8, Stored, false),
        (Q4, Stored, false),
        (Stored, Q8, false),
        (Q8, Q8, true),
    ] {
        let found = compare(&questions, &engine(weights, vision, exact)).unwrap();
        let what = format!("{weights} {vision} exact {exact}: {found:?}");
        let (exact, other) = (found.all.exact, found.all.other);
        assert_eq!((exact.asked, other.asked), (60, 60), "{what}");
        assert!(exact.percent() > 90.0 && (exact.percent() - other.percent()).abs() <= 1.0, "{what}");
        // A hundred times what was measured over all 400 questions.
        assert!(found.distance.mean_kl_divergence < 1e-3, "{what}");
    }
}

#[test]
fn the_exact_mode_is_at_no_distance_from_itself_and_ends_are_compared() {
    let questions = &digits()[..5];
    let exact = engine(WeightFormat::Stored, WeightFormat::Stored, true);
    let found = compare(questions, &exact).unwrap();
    assert_eq!((found.distance.mean_kl_divergence, found.distance.max_kl_divergence), (0.0, 0.0));
    // One token a digit, and the end.
    let tokens: usize = questions.iter().map(|question| question.answer.len() + 1).sum();
    assert_eq!(found.all.exact.right, 5, "{found:?}");
    assert_eq!((found.distance.positions, found.distance.top1_agreement), (tokens, tokens));

    // Cut off before the end, there is none to compare.
    let cut = distance(&exact, &exact, questions, 1, || {}).unwrap();
    assert_eq!(cut.distance.positions, 5);
    let none = distance(&exact, &exact, questions, 0, || {}).unwrap();
    assert_eq!(none.distance.positions, 0);
}

#[test]
fn the_program_reports_it() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(common::sample("digits-1.png"), folder.path().join("picture.png")).unwrap();
    let line = r#"{"images": ["picture.png"], "prompt": "Read the number.", "answer": "?", "task": "one"}"#;
    let manifest = folder.path().join("questions.jsonl");
    std::fs::write(&manifest, line).unwrap();
    let args = ["distance", "--manifest", manifest.to_str().unwrap(), "--weights", "q8"];
    let run = qvl(args).done();
    assert!(run.stdout.contains("mean KL divergence") && run.stdout.contains("same top token"), "{run:?}");
    let report = qvl(args.into_iter().chain(["--json"])).done().json();
    assert_eq!(report["weights"], "q8");
    assert_eq!(report["tasks"]["one"]["other"], serde_json::json!({ "right": 0, "asked": 1 }));
    assert_eq!(report["distance"]["positions"], report["distance"]["top1_agreement"]);
    assert!(report["distance"]["mean_kl_divergence"].as_f64().unwrap() < 1e-3, "{report}");

    let run = qvl(["distance", "--manifest", "a.jsonl", "--vision-weights", "q4"]);
    assert!(run.code == 2 && run.stderr.contains("stored, bf16 or q8"), "{run:?}");
}
