//! How close this implementation is to transformers on reference cases, tensor by tensor.
//!
//! A case is a folder with `model/` (a checkpoint), `request.json` and `expected.safetensors`: what
//! transformers computed in float32. Integers and pixels must be equal; floats must be within
//! [`TOLERANCE`], an error being the largest absolute difference divided by the largest absolute value
//! expected. NaN and infinity fail.

use std::path::{Path, PathBuf};

use qvl_model::backend::Backend;
use qvl_model::decoder::LogitRows;
use qvl_model::{GenerateOptions, Prompt};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use crate::conversation::Conversation;
use crate::engine::Engine;
use crate::error::{Error, Result, read_text};

/// Largest relative error of embeddings, DeepStack features and logits in float32: sums of a few thousand
/// products in another order differ by some 1e-6; a wrong formula differs by more than 1e-2.
pub const TOLERANCE: f64 = 1e-4;

/// Two best logits closer than this may change places in a greedy answer.
const TIE: f32 = 1e-3;

/// All tensors of one case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// The folder's name.
    pub case: String,
    /// In the order of the computation.
    pub tensors: Vec<TensorReport>,
}

impl CaseReport {
    /// Whether every tensor is within tolerance.
    pub fn holds(&self) -> bool {
        self.tensors.iter().all(|tensor| tensor.holds)
    }
}

/// One tensor compared.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name in `expected.safetensors`.
    pub tensor: String,
    /// Whether it is within tolerance.
    pub holds: bool,
    /// Bit for bit equal.
    pub equal: bool,
    /// Largest absolute difference over largest absolute value; absent for integers and for other shapes.
    pub relative_error: Option<f64>,
    /// The first difference out of tolerance, or what is wrong with the shape.
    pub difference: Option<String>,
    /// A remark that is no failure.
    pub note: Option<String>,
}

/// The cases below `dir`: `dir` itself if it is one, else every folder in it that is.
///
/// # Errors
/// [`Error::Io`]; [`Error::Form`] if there is none.
pub fn cases(dir: &Path) -> Result<Vec<PathBuf>> {
    let is_case =
        |dir: &Path| dir.join("request.json").is_file() && dir.join("expected.safetensors").is_file();
    if is_case(dir) {
        return Ok(vec![dir.to_owned()]);
    }
    let entries = std::fs::read_dir(dir).map_err(|source| Error::Io { path: dir.to_owned(), source })?;
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| is_case(path)).collect();
    found.sort();
    if found.is_empty() {
        let reason = "no folder in it holds request.json and expected.safetensors";
        return Err(Error::form(dir.display().to_string(), reason));
    }
    Ok(found)
}

/// Computes one case and compares.
///
/// # Errors
/// What prevents the computation; a difference is not an error but in the report.
pub fn run_case<B: Backend + 'static>(case: &Path, backend: B) -> Result<CaseReport> {
    let request_path = case.join("request.json");
    let request = read_text(&request_path)?;
    let request_name = request_path.display().to_string();
    let conversation = Conversation::parse(&request, &request_name, case)?;
    #[derive(serde::Deserialize)]
    struct Limits {
        max_new_tokens: usize,
    }
    let limits: Limits =
        serde_json::from_str(&request).map_err(|error| Error::form(&request_name, error.to_string()))?;

    let expected_path = case.join("expected.safetensors");
    let bytes =
        std::fs::read(&expected_path).map_err(|source| Error::Io { path: expected_path.clone(), source })?;
    let expected = Expected::parse(&bytes, &expected_path.display().to_string())?;

    let engine = Engine::open_on(&case.join("model"), None, backend)?;
    let prompt = engine.prepare(&conversation)?;
    let computed = compute(&engine, &prompt, limits.max_new_tokens)?;
    Ok(CaseReport {
        case: case
            .file_name()
            .map_or_else(|| case.display().to_string(), |name| name.to_string_lossy().into_owned()),
        tensors: expected.compare(&computed),
    })
}

enum Values {
    I64(Vec<i64>),
    F32(Vec<f32>),
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    values: Values,
}

struct Computed {
    tensors: Vec<Tensor>,
    /// Distance of the two best logits at each greedy step.
    gaps: Vec<f32>,
}

fn compute<B: Backend>(engine: &Engine<B>, prompt: &Prompt, max_new_tokens: usize) -> Result<Computed> {
    let model = engine.model();
    let config = model.config();
    let length = prompt.len();
    let integers = |name: &str, shape: Vec<usize>, values: Vec<i64>| Tensor {
        name: name.to_owned(),
        shape,
        values: Values::I64(values),
    };
    let floats = |name: String, shape: Vec<usize>, values: Vec<f32>| Tensor {
        name,
        shape,
        values: Values::F32(values),
    };

    let mut tensors = vec![
        integers("input_ids", vec![length], prompt.ids.iter().map(|&id| i64::from(id)).collect()),
        integers(
            "position_ids",
            vec![3, length],
            (0..3).flat_map(|axis| prompt.positions.iter().map(move |p| i64::from(p[axis]))).collect(),
        ),
    ];
    let visual = model.encode(prompt)?;
    if let Some(visual) = &visual {
        let pixels: Vec<f32> = prompt.inputs.iter().flat_map(|input| &input.pixel_values).copied().collect();
        let width = config.vision.patch_values();
        let grids = prompt.grids().into_iter().flat_map(|g| [g.t, g.h, g.w]).map(i64::from).collect();
        let tokens = prompt.visual_tokens.len();
        let hidden = config.text.hidden_size;
        tensors.push(floats("pixel_values".to_owned(), vec![pixels.len() / width, width], pixels));
        tensors.push(integers("grid_thw", vec![prompt.inputs.len(), 3], grids));
        tensors.push(floats(
            "vision_embeds".to_owned(),
            vec![tokens, hidden],
            model.download(&visual.embeds),
        ));
        for (index, features) in visual.deepstack.iter().enumerate() {
            tensors.push(floats(
                format!("deepstack_{index}"),
                vec![tokens, hidden],
                model.download(features),
            ));
        }
    }
    let mut cache = model.kv_cache();
    let logits = model.prefill(&mut cache, prompt, visual.as_ref(), 0, LogitRows::All)?;
    tensors.push(floats("logits".to_owned(), vec![length, config.text.vocab_size], logits));

    let options = GenerateOptions { max_new_tokens, ignore_eos: true, ..GenerateOptions::default() };
    let mut generation = model.generate(prompt, &options)?;
    let (mut ids, mut gaps) = (Vec::new(), Vec::new());
    while let Some(token) = generation.next() {
        ids.push(i64::from(token?.id));
        gaps.push(top_two_gap(generation.logits()));
    }
    tensors.push(integers("generated_ids", vec![ids.len()], ids));
    Ok(Computed { tensors, gaps })
}

fn top_two_gap(logits: &[f32]) -> f32 {
    let (mut best, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &logit in logits {
        if logit > best {
            (best, second) = (logit, best);
        } else if logit > second {
            second = logit;
        }
    }
    best - second
}

struct Expected(Vec<Tensor>);

impl Expected {
    fn parse(bytes: &[u8], file: &str) -> Result<Self> {
        let parsed = SafeTensors::deserialize(bytes).map_err(|error| Error::form(file, error.to_string()))?;
        let tensors = parsed.iter().map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::I64 => Values::I64(
                    data.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
                ),
                Dtype::F32 => Values::F32(
                    data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
                ),
                other => {
                    let reason = format!("tensor {name} is {other:?}, expected I64 or F32");
                    return Err(Error::form(file, reason));
                }
            };
            Ok(Tensor { name: name.to_owned(), shape: view.shape().to_vec(), values })
        });
        Ok(Self(tensors.collect::<Result<_>>()?))
    }

    /// Every tensor computed or expected, each once. A tensor on one side only fails, but for text positions,
    /// which transformers leaves out.
    fn compare(&self, computed: &Computed) -> Vec<TensorReport> {
        let of = |tensors: &'_ [Tensor], name: &str| tensors.iter().position(|tensor| tensor.name == name);
        let text_only = of(&computed.tensors, "grid_thw").is_none();
        let mut reports: Vec<TensorReport> = computed
            .tensors
            .iter()
            .filter_map(|tensor| match of(&self.0, &tensor.name) {
                Some(index) if tensor.name == "generated_ids" => {
                    Some(compare_answers(tensor, &self.0[index], &computed.gaps))
                }
                Some(index) => Some(compare(tensor, &self.0[index])),
                None if tensor.name == "position_ids" && text_only => None,
                None => Some(one_sided(tensor, "computed, but nothing of this name is expected")),
            })
            .collect();
        let absent = self.0.iter().filter(|expected| of(&computed.tensors, &expected.name).is_none());
        reports.extend(
            absent.map(|expected| one_sided(expected, "expected, but nothing of this name is computed")),
        );
        reports
    }
}

fn one_sided(tensor: &Tensor, difference: &str) -> TensorReport {
    TensorReport {
        tensor: tensor.name.clone(),
        holds: false,
        equal: false,
        relative_error: None,
        difference: Some(difference.to_owned()),
        note: None,
    }
}

fn compare(tensor: &Tensor, expected: &Tensor) -> TensorReport {
    let mut report = TensorReport {
        tensor: tensor.name.clone(),
        holds: false,
        equal: false,
        relative_error: None,
        difference: None,
        note: None,
    };
    if tensor.shape != expected.shape {
        report.difference = Some(format!("shape {:?}, expected {:?}", tensor.shape, expected.shape));
        return report;
    }
    let place = |index: usize| unravel(index, &tensor.shape);
    match (&tensor.values, &expected.values) {
        (Values::I64(got), Values::I64(want)) => {
            let first = got.iter().zip(want).position(|(got, want)| got != want);
            report.equal = first.is_none();
            report.holds = report.equal;
            report.difference = first.map(|i| format!("at {:?}: {}, expected {}", place(i), got[i], want[i]));
        }
        (Values::F32(got), Values::F32(want)) => {
            // Pixels are integers in disguise: they must be equal.
            let tolerance = if tensor.name == "pixel_values" { 0.0 } else { TOLERANCE };
            let scale =
                want.iter().fold(0.0f64, |max, v| max.max(f64::from(*v).abs())).max(f64::MIN_POSITIVE);
            let error_at = |i: usize| (f64::from(got[i]) - f64::from(want[i])).abs() / scale;
            let finite = got.iter().chain(want).all(|v| v.is_finite());
            // NaN is larger than nothing: it must be asked for.
            let fails = |i: &usize| error_at(*i) > tolerance || error_at(*i).is_nan();
            let first = (0..got.len()).find(fails);
            let worst = (0..got.len()).map(error_at).fold(0.0, f64::max);
            report.equal = got.iter().zip(want).all(|(got, want)| got.to_bits() == want.to_bits());
            report.holds = finite && first.is_none();
            report.relative_error = finite.then_some(worst);
            report.difference =
                first.map(|i| format!("at {:?}: {:e}, expected {:e}", place(i), got[i], want[i]));
            if !finite && report.difference.is_none() {
                report.difference = Some("infinite values".to_owned());
            }
        }
        _ => report.difference = Some("integers on one side, floats on the other".to_owned()),
    }
    report
}

/// Greedy answers are equal up to the first step at which the two best logits were as good as equal.
fn compare_answers(tensor: &Tensor, expected: &Tensor, gaps: &[f32]) -> TensorReport {
    let mut report = compare(tensor, expected);
    if report.holds {
        return report;
    }
    if let (Values::I64(got), Values::I64(want)) = (&tensor.values, &expected.values) {
        let first = got.iter().zip(want).position(|(got, want)| got != want);
        if let Some(step) = first.filter(|&step| tensor.shape == expected.shape && gaps[step] < TIE) {
            report.holds = true;
            report.difference = None;
            report.note = Some(format!(
                "equal up to step {step}, where the two best logits are {:e} apart",
                gaps[step]
            ));
        }
    }
    report
}

fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut place = vec![0; shape.len()];
    for (place, &size) in place.iter_mut().zip(shape).rev() {
        *place = index % size;
        index /= size;
    }
    place
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(name: &str, values: &[f32]) -> Tensor {
        Tensor { name: name.to_owned(), shape: vec![values.len()], values: Values::F32(values.to_vec()) }
    }

    fn integers(values: &[i64]) -> Tensor {
        Tensor {
            name: "generated_ids".to_owned(),
            shape: vec![values.len()],
            values: Values::I64(values.to_vec()),
        }
    }

    #[test]
    fn floats_hold_within_the_tolerance_and_not_beyond() {
        let expected = floats("logits", &[100.0, 1.0]);
        let close = compare(&floats("logits", &[100.0, 1.009]), &expected);
        assert!(close.holds && !close.equal && close.relative_error.unwrap() < TOLERANCE);
        let far = compare(&floats("logits", &[100.0, 1.02]), &expected);
        assert!(!far.holds);
        assert_eq!(far.difference.unwrap(), "at [1]: 1.02e0, expected 1e0");
    }

    #[test]
    fn pixels_must_be_equal() {
        let expected = floats("pixel_values", &[1.0, 0.5]);
        assert!(compare(&floats("pixel_values", &[1.0, 0.5]), &expected).holds);
        assert!(!compare(&floats("pixel_values", &[1.0, 0.500_000_1]), &expected).holds);
    }

    #[test]
    fn nan_never_passes() {
        for (got, want) in
            [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::NAN, f32::NAN), (f32::INFINITY, f32::INFINITY)]
        {
            let report = compare(&floats("logits", &[got]), &floats("logits", &[want]));
            assert!(!report.holds, "{got} against {want}");
            assert!(report.difference.is_some());
        }
    }

    #[test]
    fn another_shape_never_passes() {
        assert!(!compare(&floats("logits", &[1.0]), &floats("logits", &[1.0, 1.0])).holds);
    }

    #[test]
    fn an_answer_may_part_at_a_tie_only() {
        let (got, want) = (integers(&[1, 2, 3]), integers(&[1, 5, 6]));
        assert!(compare_answers(&got, &want, &[1.0, 1e-4, 1.0]).holds);
        assert!(!compare_answers(&got, &want, &[1e-4, 1.0, 1.0]).holds);
        assert!(compare_answers(&got, &integers(&[1, 2, 3]), &[1.0; 3]).equal);
    }

    #[test]
    fn what_is_expected_and_not_computed_fails() {
        let computed = Computed { tensors: vec![floats("logits", &[1.0])], gaps: Vec::new() };
        let reports =
            Expected(vec![floats("logits", &[1.0]), floats("deepstack_7", &[1.0])]).compare(&computed);
        assert_eq!(reports.iter().map(|r| r.holds).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn what_is_computed_and_not_expected_fails_but_for_positions_of_text() {
        let positions = || Tensor { name: "position_ids".to_owned(), ..integers(&[0]) };
        let grid = || Tensor { name: "grid_thw".to_owned(), ..integers(&[1]) };
        let names = |tensors: Vec<Tensor>| {
            let reports = Expected(Vec::new()).compare(&Computed { tensors, gaps: Vec::new() });
            assert!(reports.iter().all(|report| !report.holds));
            reports.into_iter().map(|report| report.tensor).collect::<Vec<_>>()
        };
        assert_eq!(names(vec![positions(), floats("logits", &[1.0])]), ["logits"]);
        assert_eq!(names(vec![positions(), grid()]), ["position_ids", "grid_thw"]);
    }
}
