//! The library behind the program: conversations in, streamed answers out, on the embedded checkpoint.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use qvl_model::{FinishReason, GenerateOptions, Reference};
use qvl_runtime::{Conversation, Engine, Turn, TurnContent, TurnPart};

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/samples").join(name)
}

fn go_on(_piece: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, ..GenerateOptions::default() }
}

#[test]
fn what_was_streamed_is_the_answer() {
    let engine = Engine::embedded(2).unwrap();
    let conversation = Conversation::question([sample("shapes-1.png")], "Describe the image.");
    let mut streamed = Vec::new();
    let answer = engine
        .answer(&conversation, &options(64), |piece| {
            streamed.push(piece.to_owned());
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(streamed.concat(), answer.text);
    assert!(streamed.iter().all(|piece| !piece.is_empty()));
    assert_eq!(answer.text, engine.model().tokenizer().decode(&answer.ids));
    assert_eq!(answer.finish, if answer.ids.len() == 64 { FinishReason::Length } else { FinishReason::Stop });
}

#[test]
fn a_caller_who_has_heard_enough_gets_what_there_is() {
    let engine = Engine::embedded(2).unwrap();
    let conversation = Conversation::question([sample("shapes-1.png")], "Describe the image.");
    let whole = engine.answer(&conversation, &options(64), go_on).unwrap();
    let mut pieces = 0;
    let cut = engine.answer(&conversation, &options(64), |_| {
        pieces += 1;
        if pieces < 2 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let cut = cut.unwrap();
    assert_eq!((pieces, cut.finish), (2, FinishReason::Cancelled));
    assert!(whole.text.starts_with(&cut.text) && cut.ids.len() < whole.ids.len(), "{cut:?} of {whole:?}");
    assert_eq!(cut.ids, whole.ids[..cut.ids.len()]);
}

#[test]
fn the_naive_backend_gives_the_same_answer() {
    let conversation = Conversation::question([sample("digits-2.jpg")], "Read the number.");
    let fast = Engine::embedded(2).unwrap().answer(&conversation, &options(8), go_on).unwrap();
    let naive = Engine::embedded_on(Reference).unwrap().answer(&conversation, &options(8), go_on).unwrap();
    assert_eq!(fast.ids, naive.ids);
}

#[test]
fn an_answer_is_the_same_the_second_time() {
    let engine = Engine::embedded(1).unwrap();
    let ask = |name: &str| {
        engine
            .answer(&Conversation::question([sample(name)], "Describe the image."), &options(12), |_| {
                ControlFlow::Continue(())
            })
            .unwrap()
    };
    let first = ask("shapes-2.png");
    ask("count-1.png");
    assert_eq!(ask("shapes-2.png").ids, first.ids);
}

#[test]
fn a_conversation_is_read_as_people_write_it() {
    let json = r#"{"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "image", "image": "a.png"}, {"type": "text", "text": "and"},
            {"type": "video", "video": ["f1.png", "/abs/f2.png"], "fps": 2}]}]}"#;
    let conversation = Conversation::parse(json, "request.json", Path::new("/base")).unwrap();
    let user = TurnContent::Parts(vec![
        TurnPart::Image("/base/a.png".into()),
        TurnPart::Text("and".to_owned()),
        TurnPart::Video { frames: vec!["/base/f1.png".into(), "/abs/f2.png".into()], fps: 2.0 },
    ]);
    assert_eq!(
        conversation.turns,
        [
            Turn { role: "system".to_owned(), content: TurnContent::Text("Be brief.".to_owned()) },
            Turn { role: "user".to_owned(), content: user },
        ]
    );
    assert_eq!(conversation.parts().count(), 3);
}

#[test]
fn a_conversation_of_another_form_is_an_error_that_shows_the_item() {
    let message = |content: &str| {
        let json = format!(r#"{{"messages": [{{"role": "user", "content": {content}}}]}}"#);
        Conversation::parse(&json, "request.json", Path::new("")).unwrap_err().to_string()
    };
    for (content, parts) in [
        (r#"[{"type": "sound", "sound": "a"}]"#, ["sound", "unknown variant"]),
        (r#"[{"type": "image", "image": "a", "size": 2}]"#, ["size", "unknown field"]),
        (r#"[{"type": "video", "video": ["a"]}]"#, ["video", "missing field `fps`"]),
        (r#"[{"image": "a"}]"#, ["image", "missing field `type`"]),
        ("7", ["line 1", "content must be a string or a list"]),
    ] {
        let message = message(content);
        assert!(message.starts_with("request.json: "), "{message}");
        assert!(parts.iter().all(|part| message.contains(part)), "{message:?} does not say {parts:?}");
    }
    assert!(
        Conversation::parse("{", "request.json", Path::new("")).unwrap_err().to_string().contains("line 1")
    );
}
