//! Exact-match accuracy on a manifest of questions about pictures.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use qvl_model::GenerateOptions;
use qvl_model::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::conversation::{Conversation, Turn, TurnContent, TurnPart};
use crate::engine::Engine;
use crate::error::{Error, Result, read_text};

/// One line of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Where it stands, for messages.
    pub place: String,
    /// What is asked.
    pub conversation: Conversation,
    /// The one right answer.
    pub answer: String,
    /// What it is counted under.
    pub task: String,
}

impl Question {
    /// Whether an answer is the right one but for white space around.
    pub fn is_right(&self, answer: &str) -> bool {
        answer.trim() == self.answer.trim()
    }
}

/// How one question was answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Where the question stands.
    pub place: String,
    /// What it is counted under.
    pub task: String,
    /// The right answer.
    pub expected: String,
    /// What the network said.
    pub got: String,
    /// Its tokens, end token left out.
    pub ids: Vec<u32>,
    /// Whether they are equal but for white space around.
    pub right: bool,
}

/// Right answers and questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    /// Right answers.
    pub right: usize,
    /// Questions.
    pub asked: usize,
}

impl Score {
    /// Share of right answers in per cent; 0 if nothing was asked.
    pub fn percent(self) -> f64 {
        if self.asked == 0 { 0.0 } else { 100.0 * self.right as f64 / self.asked as f64 }
    }

    pub(crate) fn count(&mut self, right: bool) {
        self.asked += 1;
        self.right += usize::from(right);
    }
}

/// Reads a manifest: one JSON object a line with `prompt`, `answer`, `images` (or `image`), and optionally
/// `video` with `fps`, and `task`. Paths are relative to the manifest.
///
/// # Errors
/// [`Error::Form`] names the line.
pub fn read_manifest(path: &Path) -> Result<Vec<Question>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        prompt: String,
        answer: String,
        image: Option<PathBuf>,
        #[serde(default)]
        images: Vec<PathBuf>,
        #[serde(default)]
        video: Vec<PathBuf>,
        fps: Option<f64>,
        task: Option<String>,
    }
    let base = path.parent().unwrap_or(Path::new(""));
    let mut questions = Vec::new();
    for (index, text) in read_text(path)?.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let place = format!("{}:{}", path.display(), index + 1);
        let line: Line =
            serde_json::from_str(text).map_err(|error| Error::form(&place, error.to_string()))?;
        let mut parts: Vec<TurnPart> =
            line.image.iter().chain(&line.images).map(|image| TurnPart::Image(base.join(image))).collect();
        match (line.video.is_empty(), line.fps) {
            (true, None) => {}
            (false, Some(fps)) => {
                parts
                    .push(TurnPart::Video { frames: line.video.iter().map(|f| base.join(f)).collect(), fps });
            }
            _ => return Err(Error::form(place, "video and fps belong together: give both or neither")),
        }
        parts.push(TurnPart::Text(line.prompt));
        questions.push(Question {
            place,
            conversation: Conversation {
                turns: vec![Turn { role: "user".to_owned(), content: TurnContent::Parts(parts) }],
            },
            answer: line.answer,
            task: line.task.unwrap_or_else(|| "all".to_owned()),
        });
    }
    if questions.is_empty() {
        return Err(Error::form(path.display().to_string(), "the manifest has no lines"));
    }
    Ok(questions)
}

/// What another implementation answered, one line a question: `{"text": ..., "ids": [...]}`.
///
/// # Errors
/// [`Error::Form`] names the line, or that there is not one for each question.
pub fn read_reference(path: &Path, questions: usize) -> Result<Vec<Vec<u32>>> {
    #[derive(Deserialize)]
    struct Line {
        ids: Vec<u32>,
    }
    let text = read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let ids: Vec<Vec<u32>> = lines
        .map(|(index, line)| {
            serde_json::from_str::<Line>(line)
                .map(|line| line.ids)
                .map_err(|error| Error::form(format!("{}:{}", path.display(), index + 1), error.to_string()))
        })
        .collect::<Result<_>>()?;
    if ids.len() != questions {
        let reason =
            format!("{} answers for {questions} questions; make it from the same manifest", ids.len());
        return Err(Error::form(path.display().to_string(), reason));
    }
    Ok(ids)
}

/// Asks every question; `on_outcome` sees each result as it comes.
///
/// # Errors
/// The first question that cannot be asked: a missing picture makes the whole accuracy meaningless.
pub fn evaluate<B: Backend>(
    engine: &Engine<B>,
    questions: &[Question],
    options: &GenerateOptions,
    mut on_outcome: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>> {
    questions
        .iter()
        .map(|question| {
            let answer = engine.answer(&question.conversation, options, |_| ControlFlow::Continue(()))?;
            let outcome = Outcome {
                place: question.place.clone(),
                task: question.task.clone(),
                expected: question.answer.clone(),
                right: question.is_right(&answer.text),
                got: answer.text,
                ids: answer.ids,
            };
            on_outcome(&outcome);
            Ok(outcome)
        })
        .collect()
}

/// Scores by task, and in all.
pub fn scores(outcomes: &[Outcome]) -> (BTreeMap<String, Score>, Score) {
    let mut by_task: BTreeMap<String, Score> = BTreeMap::new();
    let mut all = Score::default();
    for outcome in outcomes {
        by_task.entry(outcome.task.clone()).or_default().count(outcome.right);
        all.count(outcome.right);
    }
    (by_task, all)
}
