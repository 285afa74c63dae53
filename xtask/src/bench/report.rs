//! What a run found: one JSON form, and the same as a table.

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::machine::Machine;
use super::stats::{Better, Verdict};
use crate::run::say;

/// The file of `--json`.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) commit: String,
    pub(crate) date: String,
    pub(crate) results: Vec<Row>,
}

/// One metric.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) suite: &'static str,
    pub(crate) metric: String,
    /// What it means, with the unit of its two sides.
    pub(crate) what: String,
    /// Of `value`, `low` and `high`.
    pub(crate) unit: &'static str,
    pub(crate) value: Option<f64>,
    pub(crate) low: Option<f64>,
    pub(crate) high: Option<f64>,
    pub(crate) ours: Option<f64>,
    pub(crate) reference: Option<f64>,
    pub(crate) reference_name: String,
    pub(crate) target: Option<f64>,
    pub(crate) better: Better,
    pub(crate) noise: Option<f64>,
    pub(crate) verdict: Verdict,
    pub(crate) why: String,
}

impl Row {
    /// The verdict as the table says it: what has no target is not judged.
    fn shown_verdict(&self) -> &'static str {
        match (self.target, self.verdict) {
            (None, Verdict::Inconclusive) => "shown",
            (_, verdict) => verdict.name(),
        }
    }

    fn cells(&self) -> [String; 8] {
        let interval = match (self.low, self.high) {
            (Some(low), Some(high)) if low < high => format!("{} .. {}", number(low), number(high)),
            _ => String::new(),
        };
        let target = self.target.map_or(String::new(), |target| {
            let sign = if self.better == Better::Higher { "≥" } else { "≤" };
            format!("{sign} {target}")
        });
        let optional = |value: Option<f64>| value.map_or("-".to_owned(), number);
        [
            self.metric.clone(),
            optional(self.value),
            interval,
            target,
            self.noise.map_or("-".to_owned(), |noise| format!("{:.1} %", 100.0 * noise)),
            optional(self.ours),
            optional(self.reference),
            self.shown_verdict().to_owned(),
        ]
    }
}

const HEADER: [&str; 8] = ["metric", "value", "95 %", "target", "noise", "ours", "reference", "verdict"];
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const UNSURE: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

impl Report {
    /// The table, then what each row is and why it is judged as it is.
    pub(crate) fn print(&self) {
        say("");
        for line in table(&self.results) {
            say(&line);
        }
        say("");
        let width = self.results.iter().map(|row| row.metric.len()).max().unwrap_or(0);
        for row in &self.results {
            let verdict = match (row.shown_verdict(), row.why.as_str()) {
                ("shown", why) => why.to_owned(),
                (verdict, "") => verdict.to_owned(),
                (verdict, why) => format!("{verdict}: {why}"),
            };
            say(&format!(
                "{:width$}  {}{DIM}; reference: {}; {verdict}{DIM:#}",
                row.metric, row.what, row.reference_name
            ));
        }
        let count = |verdict| {
            self.results.iter().filter(|row| row.target.is_some() && row.verdict == verdict).count()
        };
        say(&format!(
            "\n{} hold, {} fall short, {} inconclusive, {} not run",
            count(Verdict::Holds),
            count(Verdict::FallsShort),
            count(Verdict::Inconclusive),
            count(Verdict::NotRun)
        ));
    }
}

/// Aligned lines: names to the left, figures to the right.
fn table(rows: &[Row]) -> Vec<String> {
    let cells: Vec<[String; 8]> = rows.iter().map(Row::cells).collect();
    let widths: Vec<usize> = (0..HEADER.len())
        .map(|column| {
            let all = cells.iter().map(|row| row[column].chars().count());
            all.chain([HEADER[column].len()]).max().unwrap_or(0)
        })
        .collect();
    let line = |row: &[String; 8], style: Style| {
        let shown: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| match column {
                0 => format!("{cell:<width$}"),
                7 => format!("{style}{cell}{style:#}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        shown.join("  ")
    };
    let mut lines = vec![line(&HEADER.map(str::to_owned), Style::new())];
    for (row, cells) in rows.iter().zip(&cells) {
        let style = match row.verdict {
            Verdict::Holds => GOOD,
            Verdict::FallsShort => BAD,
            Verdict::Inconclusive if row.target.is_some() => UNSURE,
            Verdict::Inconclusive | Verdict::NotRun => DIM,
        };
        lines.push(line(cells, style));
    }
    lines
}

/// Four significant digits, large amounts with a prefix.
fn number(value: f64) -> String {
    let (scaled, prefix) = match value.abs() {
        v if v >= 1e12 => (value / 1e12, "T"),
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        _ => (value, ""),
    };
    // A zero has no magnitude; it counts as one digit before the point.
    let whole = if scaled == 0.0 { 1 } else { scaled.abs().log10().floor() as i32 + 1 };
    format!("{scaled:.*}{prefix}", (4 - whole).clamp(0, 4) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            suite: "model",
            metric: "decode_q8_share".to_owned(),
            what: "decode".to_owned(),
            unit: "share",
            value: Some(0.875),
            low: Some(0.86),
            high: Some(0.89),
            ours: Some(24.0),
            reference: Some(27.42),
            reference_name: "read bandwidth over weight bytes a token".to_owned(),
            target: Some(0.85),
            better: Better::Higher,
            noise: Some(0.004),
            verdict: Verdict::Holds,
            why: String::new(),
        }
    }

    #[test]
    fn a_row_has_the_form_that_readers_rely_on() {
        let value = serde_json::to_value(row()).expect("serialises");
        let expected = serde_json::json!({
            "suite": "model", "metric": "decode_q8_share", "what": "decode", "unit": "share",
            "value": 0.875, "low": 0.86, "high": 0.89, "ours": 24.0, "reference": 27.42,
            "reference_name": "read bandwidth over weight bytes a token",
            "target": 0.85, "better": "higher", "noise": 0.004, "verdict": "holds", "why": "",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn every_verdict_has_its_name() {
        let names = [Verdict::Holds, Verdict::FallsShort, Verdict::Inconclusive, Verdict::NotRun]
            .map(|verdict| serde_json::to_value(verdict).expect("serialises"));
        assert_eq!(names, ["holds", "falls short", "inconclusive", "not run"]);
    }

    #[test]
    fn a_metric_that_was_not_run_has_no_figures() {
        let empty = Row {
            value: None,
            low: None,
            high: None,
            ours: None,
            reference: None,
            noise: None,
            verdict: Verdict::NotRun,
            why: "--llama-bench PATH was not given".to_owned(),
            ..row()
        };
        let value = serde_json::to_value(&empty).expect("serialises");
        assert!(value["value"].is_null() && value["noise"].is_null());
        assert_eq!(empty.cells()[1], "-");
    }

    #[test]
    fn the_table_is_aligned() {
        let long = Row { metric: "a_much_longer_name_than_that".to_owned(), value: Some(12.3), ..row() };
        let lines = table(&[row(), long]);
        let plain: Vec<String> =
            lines.iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect();
        // In characters: the sign of a target has more than one byte.
        let column = |line: &str| {
            let bytes = line.find("holds").or(line.find("verdict"));
            bytes.map(|bytes| line[..bytes].chars().count())
        };
        assert_eq!(column(&plain[1]), column(&plain[2]));
        assert_eq!(column(&plain[0]), column(&plain[1]));
    }

    #[test]
    fn numbers_have_four_digits() {
        for (value, text) in
            [(0.875, "0.8750"), (27.416, "27.42"), (5e10, "50.00G"), (1.055e12, "1.055T"), (0.0, "0.000")]
        {
            assert_eq!(number(value), text);
        }
    }
}
