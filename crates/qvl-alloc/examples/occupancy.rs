//! Draws how a packing fills its memory over time: each allocation as a rectangle of offset and time, the bytes that
//! live as a line, and the lower bound:
//!
//!     cargo run --release --example occupancy -- TRACE PLOT.svg

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;
use plotters::series::LineSeries;
use qvl_alloc::{Packing, Trace, pack};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [trace, plot] = arguments.as_slice() else {
        return Err("what from and where to? occupancy TRACE PLOT.svg".into());
    };
    let packing = pack(&Trace::load(Path::new(trace))?);
    draw(trace, &packing, Path::new(plot))
}

fn draw(name: &str, packing: &Packing, path: &Path) -> Result<(), Box<dyn Error>> {
    let allocations = packing.trace().allocations();
    let end = allocations.iter().map(|allocation| allocation.death).max().unwrap_or(1);
    let (peak, bound) = (packing.peak_bytes(), packing.lower_bound_bytes());
    let caption = format!("{name}: peak {peak} bytes, gap {:.2} %", packing.gap() * 100.0);

    let area = SVGBackend::new(path, (1280, 720)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .caption(caption, ("sans-serif", 20))
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..end as f64, 0.0..peak as f64 / MIB * 1.05)?;
    chart.configure_mesh().disable_mesh().x_desc("allocations made").y_desc("MiB").draw()?;

    for (number, (allocation, &offset)) in allocations.iter().zip(packing.offsets()).enumerate() {
        let corners = [
            (allocation.birth as f64, offset as f64 / MIB),
            (allocation.death as f64, (offset + allocation.bytes) as f64 / MIB),
        ];
        // Neighbours differ in hue: each is a golden angle further.
        let colour = HSLColor((number as f64 * 0.618_034).fract(), 0.5, 0.7);
        chart.draw_series([
            Rectangle::new(corners, colour.filled()),
            Rectangle::new(corners, BLACK.mix(0.4).stroke_width(1)),
        ])?;
    }

    // What lives from a time on, lives until the next: a line with steps.
    let live = packing.live_bytes();
    let next = live.iter().skip(1).map(|&(time, _)| time).chain([end]);
    let steps = live.iter().zip(next).flat_map(|(&(from, bytes), to)| {
        [(from as f64, bytes as f64 / MIB), (to as f64, bytes as f64 / MIB)]
    });
    chart
        .draw_series(LineSeries::new(steps, BLACK.stroke_width(2)))?
        .label("live bytes")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], BLACK.stroke_width(2)));
    let across = [(0.0, bound as f64 / MIB), (end as f64, bound as f64 / MIB)];
    chart
        .draw_series(LineSeries::new(across, RED.stroke_width(2)))?
        .label("lower bound")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], RED.stroke_width(2)));
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

const MIB: f64 = (1 << 20) as f64;
