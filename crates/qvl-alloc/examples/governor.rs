//! Runs the governor on a machine in virtual time and prints each change: when, what the machine said, and why.
//!
//! ```text
//! cargo run -p qvl-alloc --example governor
//! cargo run -p qvl-alloc --example governor -- balanced 40
//! ```
//!
//! The words are a mode (`performance`, `balanced`, `saver`) and a target in watts.

#![allow(clippy::print_stdout, reason = "a program that shows what it found")]

use std::error::Error;
use std::time::Duration;

use qvl_alloc::governor::simulate::{Load, Machine, run};
use qvl_alloc::{Envelope, Governor, Mode, Target};

const GIB: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let mode = match words.next().as_deref() {
        None | Some("performance") => Mode::Performance,
        Some("balanced") => Mode::Balanced,
        Some("saver") => Mode::Saver,
        Some(other) => return Err(format!("{other} is no mode: performance, balanced or saver").into()),
    };
    let target = match words.next() {
        None => Target::None,
        Some(watts) => Target::Watts(watts.parse()?),
    };
    let envelope = Envelope {
        threads: 2..=16,
        token_budget: 64..=2048,
        hot_cache_bytes: 0..=16 * GIB,
        staging_bytes: 256 << 20..=GIB,
        prefetch_depth: 1..=9,
        reserve_bytes: 2 * GIB,
    };
    // Another program starts after a minute, grows, ends, and comes back every 20 s at last.
    let mut points = vec![(60.0, 7 * GIB), (90.0, 9 * GIB), (120.0, 12 * GIB), (150.0, 0)];
    points.extend((20..50).map(|tens| (f64::from(tens) * 10.0, if tens % 2 == 0 { 8 * GIB } else { 0 })));
    let machine = Machine {
        load: Load::Recorded { points },
        knee_threads: 8,
        cooled_watts: 80.0,
        ..Machine::new(&envelope)
    };
    let mut governor = Governor::new(envelope, mode)?.with_target(target)?;
    println!("     s  pressure  available    others   hot cache  threads  tokens  tokens/s   watts");
    let gib = |bytes: u64| bytes as f64 / GIB as f64;
    let mut moments = Vec::new();
    let verdict = run(
        &machine,
        Duration::from_secs(600),
        |now, signals| governor.step(now, signals),
        |moment| moments.push(*moment),
    );
    let mut before = None;
    for moment in &moments {
        if before.replace(moment.plan) == Some(moment.plan) {
            continue;
        }
        println!(
            "{:6.1}  {:8.2}  {:5.1} GiB  {:4.1} GiB  {:6.1} GiB  {:7}  {:6}  {:8.1}  {:6.1}",
            moment.now.as_secs_f64(),
            moment.signals.memory_pressure.unwrap_or_default(),
            gib(moment.available_bytes),
            gib(moment.others_bytes),
            gib(moment.plan.hot_cache_bytes),
            moment.plan.threads,
            moment.plan.token_budget,
            moment.tokens_per_s,
            moment.watts
        );
    }
    println!("{}", governor.why());
    println!("{verdict:#?}");
    Ok(())
}
