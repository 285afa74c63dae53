//! From a rendered conversation and its pictures to what the decoder takes: ids, positions, and which token
//! is which visual token.

use std::ops::Range;

use crate::config::{Config, VisionConfig};
use crate::error::{Error, Result};
use crate::mrope::{Position, Span, positions, visual_span};
use crate::tokenizer::Tokenizer;
use crate::vision::Grid;

/// A picture or a video as patches, ready for the vision tower.
#[derive(Clone, Debug, PartialEq)]
pub struct VisualInput {
    /// Still or video.
    pub kind: VisualKind,
    /// Its size in patches.
    pub grid: Grid,
    /// `[grid.patches(), patch_values]`, in merge order.
    pub pixel_values: Vec<f32>,
}

/// What a [`VisualInput`] is. A still never stands for a video, nor the reverse.
#[derive(Clone, Debug, PartialEq)]
pub enum VisualKind {
    /// A still: `grid.t` is 1.
    Image,
    /// A video.
    Video {
        /// Seconds from its start, one for each temporal patch: `[grid.t]`.
        timestamps: Vec<f64>,
    },
}

/// A prompt ready to be prefilled.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Token ids, placeholders expanded: `[L]`.
    pub ids: Vec<u32>,
    /// `[L]`
    pub positions: Vec<Position>,
    /// Position minus index of the tokens that follow.
    pub rope_delta: i64,
    /// The index of each visual token, in the order of the tower's output: `[T]`.
    pub visual_tokens: Vec<usize>,
    /// The pictures and videos in the order in which the prompt names them.
    pub inputs: Vec<VisualInput>,
}

impl Prompt {
    /// Expands the placeholders of `text`. The n-th `<|image_pad|>` takes the n-th still of `inputs`, the
    /// n-th `<|video_pad|>` the n-th video; a video becomes, for each temporal patch, its time as text and
    /// its visual tokens between `<|vision_start|>` and `<|vision_end|>`.
    ///
    /// # Errors
    /// [`Error::Placeholders`] unless there is one placeholder for each input; [`Error::Patches`] for an
    /// input whose grid does not fit its kind; [`Error::ContextLength`].
    pub fn new(text: &str, inputs: Vec<VisualInput>, tokenizer: &Tokenizer, config: &Config) -> Result<Self> {
        let rendered = tokenizer.encode(text)?;
        check_counts(&rendered, &inputs, config)?;
        let merge = config.vision.spatial_merge_size;
        let (stills, videos): (Vec<_>, Vec<_>) =
            inputs.into_iter().partition(|input| input.kind == VisualKind::Image);
        let (mut stills, mut videos) = (stills.into_iter(), videos.into_iter());

        let limit = config.text.max_position_embeddings;
        let mut builder = Builder { limit, ..Builder::default() };
        let mut ordered = Vec::new();
        for id in rendered {
            let input = if id == config.image_token_id {
                stills.next()
            } else if id == config.video_token_id {
                videos.next()
            } else {
                builder.text(&[id]);
                continue;
            };
            // The counts were compared above.
            let Some(input) = input else { continue };
            check_input(ordered.len(), &input, &config.vision)?;
            match &input.kind {
                VisualKind::Image => builder.visual(id, visual_span(input.grid, merge)),
                VisualKind::Video { timestamps } => {
                    for seconds in timestamps {
                        builder.text(&tokenizer.encode_piece(&format!("<{seconds:.1} seconds>"))?);
                        builder.text(&[config.vision_start_token_id]);
                        builder.visual(id, visual_span(input.grid, merge));
                        builder.text(&[config.vision_end_token_id]);
                    }
                }
            }
            ordered.push(input);
        }
        if builder.tokens > limit {
            return Err(Error::ContextLength { tokens: builder.tokens, limit });
        }
        let (positions, rope_delta) = positions(builder.spans);
        Ok(Self {
            ids: builder.ids,
            positions,
            rope_delta,
            visual_tokens: builder.visual_tokens,
            inputs: ordered,
        })
    }

    /// Tokens, visual ones included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it has no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The visual tokens among the given tokens: pairs of (index from the start of the range, row of the tower's
    /// output), as [`VisualRows`](crate::decoder::VisualRows) takes them.
    pub fn visual_rows(&self, tokens: Range<usize>) -> Vec<(usize, usize)> {
        let rows = self.visual_tokens.partition_point(|&token| token < tokens.start)
            ..self.visual_tokens.partition_point(|&token| token < tokens.end);
        rows.map(|row| (self.visual_tokens[row] - tokens.start, row)).collect()
    }

    /// Sizes of the inputs, in prompt order.
    pub fn grids(&self) -> Vec<Grid> {
        self.inputs.iter().map(|input| input.grid).collect()
    }
}

/// Counts every token, but keeps none beyond the limit: a grid of any size costs nothing to refuse.
#[derive(Default)]
struct Builder {
    limit: usize,
    tokens: usize,
    ids: Vec<u32>,
    spans: Vec<Span>,
    visual_tokens: Vec<usize>,
}

impl Builder {
    /// Whether that many more tokens are kept.
    fn fits(&mut self, count: usize) -> bool {
        self.tokens = self.tokens.saturating_add(count);
        self.tokens <= self.limit
    }

    fn text(&mut self, ids: &[u32]) {
        if self.fits(ids.len()) {
            self.ids.extend_from_slice(ids);
            self.spans.push(Span::Text(ids.len()));
        }
    }

    fn visual(&mut self, placeholder: u32, span: Span) {
        let Span::Visual { h, w } = span else { return };
        let count = (h as usize).saturating_mul(w as usize);
        if !self.fits(count) {
            return;
        }
        let first = self.ids.len();
        self.ids.resize(first + count, placeholder);
        self.visual_tokens.extend(first..first + count);
        self.spans.push(span);
    }
}

fn check_counts(rendered: &[u32], inputs: &[VisualInput], config: &Config) -> Result<()> {
    let images = inputs.iter().filter(|input| input.kind == VisualKind::Image).count();
    for (kind, id, given) in
        [("image", config.image_token_id, images), ("video", config.video_token_id, inputs.len() - images)]
    {
        let placeholders = rendered.iter().filter(|&&token| token == id).count();
        if placeholders != given {
            return Err(Error::Placeholders { kind, placeholders, given });
        }
    }
    Ok(())
}

fn check_input(index: usize, input: &VisualInput, vision: &VisionConfig) -> Result<()> {
    let Grid { t, h, w } = input.grid;
    let merge = vision.spatial_merge_size;
    let fail = |reason: String| Err(Error::Patches { what: format!("visual input {index}"), reason });
    if t == 0
        || h == 0
        || w == 0
        || !(h as usize).is_multiple_of(merge)
        || !(w as usize).is_multiple_of(merge)
    {
        return fail(format!("its grid is {t} x {h} x {w}, expected multiples of {merge} patches a side"));
    }
    let patches = [t, h, w].into_iter().try_fold(1usize, |count, side| count.checked_mul(side as usize));
    match &input.kind {
        VisualKind::Image if t != 1 => fail(format!("a still has one temporal patch, its grid has {t}")),
        VisualKind::Video { timestamps } if timestamps.len() != t as usize => {
            fail(format!("{} timestamps for {t} temporal patches", timestamps.len()))
        }
        VisualKind::Video { timestamps } if timestamps.iter().any(|t| !t.is_finite() || *t < 0.0) => {
            fail(format!("timestamps are {timestamps:?}, expected seconds from the start"))
        }
        _ if patches.and_then(|count| count.checked_mul(vision.patch_values()))
            != Some(input.pixel_values.len()) =>
        {
            fail(format!(
                "{} pixel values, but a grid of {t} x {h} x {w} patches of {} needs another number",
                input.pixel_values.len(),
                vision.patch_values()
            ))
        }
        _ => Ok(()),
    }
}
