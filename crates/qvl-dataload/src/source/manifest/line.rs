//! A line of a manifest: its object, and the places of the pictures and videos it names, in their order.

use serde_json::{Map, Value};

use crate::Cause;
use crate::source::manifest::location::{Location, shortened};

/// A parsed line.
pub(crate) struct Line {
    pub(crate) value: Map<String, Value>,
    pub(crate) media: Vec<Medium>,
}

/// A picture or video that a line names.
pub(crate) enum Medium {
    Image(Location),
    /// A video as a list of pictures.
    Frames {
        frames: Vec<Location>,
        fps: f64,
    },
    /// A video as a folder of pictures.
    Folder {
        location: Location,
        fps: Option<f64>,
    },
}

/// What is wrong with a line.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) what: String,
    pub(crate) source: Option<Cause>,
}

impl From<String> for Wrong {
    fn from(what: String) -> Self {
        Self { what, source: None }
    }
}

impl Line {
    /// Reads a line that names at most so many pictures, frames of lists included.
    pub(crate) fn parse(text: &[u8], max_pictures: usize) -> Result<Self, Wrong> {
        let value = serde_json::from_slice(text)
            .map_err(|e| Wrong { what: "is not JSON".to_owned(), source: Some(e.into()) })?;
        let value = match value {
            Value::Object(members) => members,
            Value::Array(_) => {
                let what = "is a JSON array; a manifest has one object on each line, with nothing round them";
                return Err(what.to_owned().into());
            }
            _ => return Err("is not a JSON object".to_owned().into()),
        };
        let media = Collector { value: &value, left: max_pictures, limit: max_pictures }.media()?;
        Ok(Self { value, media })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Image,
    Video,
}

impl Kind {
    /// The keys beside the messages that name such things.
    fn keys(self) -> [&'static str; 2] {
        match self {
            Self::Image => ["image", "images"],
            Self::Video => ["video", "videos"],
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Image => "pictures",
            Self::Video => "videos",
        }
    }
}

struct Collector<'a> {
    value: &'a Map<String, Value>,
    /// Pictures that the line may still name.
    left: usize,
    limit: usize,
}

impl<'a> Collector<'a> {
    fn media(mut self) -> Result<Vec<Medium>, Wrong> {
        let messages = self.value.get("messages").and_then(Value::as_array);
        let items: Vec<(Kind, &Value)> = messages
            .into_iter()
            .flatten()
            .filter_map(|message| message.get("content").and_then(Value::as_array))
            .flatten()
            .filter_map(|item| Some((kind_of(item)?, item)))
            .collect();
        let mut found = Vec::new();
        for kind in [Kind::Image, Kind::Video] {
            self.of_kind(kind, &items, &mut found)?;
        }
        Ok(found)
    }

    /// The things of one kind: where the messages only say that there is one, the next of those beside them.
    fn of_kind(
        &mut self,
        kind: Kind,
        items: &[(Kind, &Value)],
        found: &mut Vec<Medium>,
    ) -> Result<(), Wrong> {
        let beside = self.beside(kind)?;
        let of_kind = || items.iter().filter(|(k, _)| *k == kind).map(|(_, item)| *item);
        let (named, noun) = (of_kind().filter(|item| names_something(item)).count(), kind.noun());
        let open = of_kind().count() - named;
        if open == 0 && named > 0 && !beside.is_empty() {
            return Err(format!("names {noun} in its messages and beside them: which are meant?").into());
        }
        if open > 0 && open != beside.len() {
            let what = format!(
                "has room for {open} {noun} in its messages and names {} beside them under {:?}",
                beside.len(),
                kind.keys()
            );
            return Err(what.into());
        }
        let mut beside = beside.into_iter();
        for item in of_kind() {
            if names_something(item) {
                found.push(self.medium(kind, item)?);
            } else if let Some(value) = beside.next() {
                found.push(self.medium(kind, value)?);
            }
        }
        for value in beside {
            found.push(self.medium(kind, value)?);
        }
        Ok(())
    }

    /// What is named beside the messages.
    fn beside(&self, kind: Kind) -> Result<Vec<&'a Value>, Wrong> {
        let [one, many] = kind.keys();
        let mut named: Vec<&'a Value> = Vec::new();
        for key in [one, many] {
            match self.value.get(key) {
                None | Some(Value::Null) => {}
                // A list under the key for one is a list all the same, except that a video may be a list of frames.
                Some(Value::Array(list)) if key == many || kind == Kind::Image => named.extend(list),
                Some(value) => named.push(value),
            }
        }
        if named.len() > self.limit {
            return Err(self.too_many());
        }
        Ok(named)
    }

    fn medium(&mut self, kind: Kind, value: &Value) -> Result<Medium, Wrong> {
        let fps = value.get("fps").or_else(|| self.value.get("fps")).filter(|fps| !fps.is_null());
        match kind {
            Kind::Image => {
                self.take(1)?;
                Ok(Medium::Image(location_of(value)?))
            }
            Kind::Video => {
                let fps = match fps {
                    Some(fps) => Some(rate(fps)?),
                    None => None,
                };
                let named =
                    ["video", "path", "frames"].iter().find_map(|key| value.get(key)).unwrap_or(value);
                let Value::Array(frames) = named else {
                    return Ok(Medium::Folder { location: location_of(named)?, fps });
                };
                self.take(frames.len())?;
                let frames = frames.iter().map(location_of).collect::<Result<_, _>>()?;
                let fps = fps.ok_or_else(|| "a video as a list of frames needs its \"fps\"".to_owned())?;
                Ok(Medium::Frames { frames, fps })
            }
        }
    }

    fn take(&mut self, pictures: usize) -> Result<(), Wrong> {
        self.left = self.left.checked_sub(pictures).ok_or_else(|| self.too_many())?;
        Ok(())
    }

    fn too_many(&self) -> Wrong {
        format!("names more pictures and frames than the limit of {}", self.limit).into()
    }
}

/// What an item of a message is; none for text and what else there may be.
fn kind_of(item: &Value) -> Option<Kind> {
    match item.get("type").and_then(Value::as_str)? {
        "image" | "image_url" | "input_image" => Some(Kind::Image),
        "video" | "video_url" => Some(Kind::Video),
        _ => None,
    }
}

const PLACES: [&str; 7] = ["image", "image_url", "video", "video_url", "path", "url", "frames"];

fn names_something(item: &Value) -> bool {
    PLACES.iter().any(|key| item.get(*key).is_some_and(|value| !value.is_null()))
}

/// A text, or an object with one under a usual key.
fn location_of(value: &Value) -> Result<Location, Wrong> {
    let mut inner = value;
    // `{"image_url": {"url": …}}` is as deep as it gets.
    for _ in 0..3 {
        match inner {
            Value::String(text) => return Ok(Location::parse(text)?),
            Value::Object(members) => {
                let named = PLACES.iter().find_map(|key| members.get(*key).filter(|value| !value.is_null()));
                let Some(named) = named else { break };
                inner = named;
            }
            _ => break,
        }
    }
    let what = shortened(&value.to_string());
    Err(format!("where a picture should be named there is {what}").into())
}

fn rate(fps: &Value) -> Result<f64, Wrong> {
    let got = fps.as_f64().filter(|fps| fps.is_finite() && *fps > 0.0);
    got.ok_or_else(|| {
        format!("\"fps\" is {}, expected a positive number", shortened(&fps.to_string())).into()
    })
}
