//! A conversation with pictures, as people write it in JSON.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};

/// Turns of a conversation; the network answers the last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// In order.
    pub turns: Vec<Turn>,
}

/// What one side says.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: TurnContent,
}

/// Templates may treat a text and a list with one text differently, so the difference is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum TurnContent {
    /// Plain text.
    Text(String),
    /// Pieces in order.
    Parts(Vec<TurnPart>),
}

/// A piece of a turn.
#[derive(Clone, Debug, PartialEq)]
pub enum TurnPart {
    /// Text.
    Text(String),
    /// A still picture.
    Image(PathBuf),
    /// Frames of a video, taken `fps` a second.
    Video {
        /// One file a frame, in order.
        frames: Vec<PathBuf>,
        /// Frames a second.
        fps: f64,
    },
}

impl Conversation {
    /// One user turn: pictures, then a question.
    pub fn question(images: impl IntoIterator<Item = impl Into<PathBuf>>, text: impl Into<String>) -> Self {
        let mut parts: Vec<TurnPart> =
            images.into_iter().map(|image| TurnPart::Image(image.into())).collect();
        parts.push(TurnPart::Text(text.into()));
        Self { turns: vec![Turn { role: "user".to_owned(), content: TurnContent::Parts(parts) }] }
    }

    /// Parses `{"messages": [{"role", "content"}]}`; `content` is a string or a list of
    /// `{"type": "text", "text"}`, `{"type": "image", "image": PATH}` and
    /// `{"type": "video", "video": [PATH...], "fps": N}`. Paths are relative to `base`; `file` is for
    /// messages.
    ///
    /// # Errors
    /// [`Error::Form`] with what is wrong.
    pub fn parse(json: &str, file: &str, base: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            messages: Vec<RawTurn>,
        }
        #[derive(Deserialize)]
        struct RawTurn {
            role: String,
            content: RawContent,
        }
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "content must be a string or a list of items")]
        enum RawContent {
            Text(String),
            Parts(Vec<serde_json::Value>),
        }
        let raw: Raw = serde_json::from_str(json).map_err(|error| Error::form(file, error.to_string()))?;
        let turns = raw.messages.into_iter().map(|turn| {
            let content = match turn.content {
                RawContent::Text(text) => TurnContent::Text(text),
                RawContent::Parts(parts) => TurnContent::Parts(
                    parts.into_iter().map(|part| parse_part(part, file, base)).collect::<Result<_>>()?,
                ),
            };
            Ok(Turn { role: turn.role, content })
        });
        Ok(Self { turns: turns.collect::<Result<_>>()? })
    }

    /// All parts of all turns, in order.
    pub fn parts(&self) -> impl Iterator<Item = &TurnPart> {
        self.turns.iter().flat_map(|turn| match &turn.content {
            TurnContent::Text(_) => &[],
            TurnContent::Parts(parts) => &parts[..],
        })
    }
}

fn parse_part(part: serde_json::Value, file: &str, base: &Path) -> Result<TurnPart> {
    #[derive(Deserialize)]
    #[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
    enum RawPart {
        Text { text: String },
        Image { image: PathBuf },
        Video { video: Vec<PathBuf>, fps: f64 },
    }
    let shown = part.to_string();
    let part: RawPart = serde_json::from_value(part)
        .map_err(|error| Error::form(file, format!("content item {}: {error}", shorten(&shown))))?;
    Ok(match part {
        RawPart::Text { text } => TurnPart::Text(text),
        RawPart::Image { image } => TurnPart::Image(base.join(image)),
        RawPart::Video { video, fps } => {
            TurnPart::Video { frames: video.iter().map(|frame| base.join(frame)).collect(), fps }
        }
    })
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 {
        text.to_owned()
    } else {
        format!("{}…", text.chars().take(79).collect::<String>())
    }
}
