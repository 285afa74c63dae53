//! Watches this machine for some seconds: what there is, what limits it, and what the watch costs.
//!
//! `cargo run --release -p qvl-alloc --example watch -- 10`

#![allow(clippy::print_stdout, reason = "it is a program")]

use std::time::{Duration, Instant};

use qvl_alloc::system::Live;
use qvl_alloc::{Power, Pressure, Watch};

fn main() -> qvl_alloc::Result<()> {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(10);
    let watch = Watch::builder(Pressure::live())
        .on_change(|change| println!("{:?} -> {:?} at {:?}", change.from, change.to, change.reading.share))
        .start()?;
    println!("{}", watch.how());
    let reading = watch.reading();
    if let Some(limits) = &reading.limits {
        let mib = |bytes: u64| bytes >> 20;
        let (total, available) = (mib(limits.total_bytes), mib(limits.available_bytes));
        println!("{available} of {total} MiB available, limited by {}", limits.limited_by);
    }
    println!("level {:?}, share {:?}", watch.level(), reading.share);
    for (source, why) in reading.failures() {
        println!("  {:?}: {why}", source.source);
    }

    let power = Power::read(&Live);
    println!("on {:?}, charge {:?}, {:?} W", power.source, power.charge_share, power.battery_watts);
    println!("throttled {:?}, profile {:?}, {:?}", power.throttled, power.profile, power.frequency);
    for (source, why) in power.failures() {
        println!("  {source:?}: {why}");
    }

    // A thread has its name once it runs.
    std::thread::sleep(Duration::from_millis(200));
    let (began, before) = (Instant::now(), busy());
    std::thread::sleep(Duration::from_secs(seconds));
    match before.zip(busy()) {
        Some((before, after)) => {
            let share = (after - before).as_secs_f64() / began.elapsed().as_secs_f64();
            println!("{:?}, {:.4} % of one core", watch.stats(), share * 100.0);
        }
        None => println!("{:?}; this system does not say what a thread costs", watch.stats()),
    }
    Ok(())
}

/// What the thread of the watch has run for.
fn busy() -> Option<Duration> {
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let task = task.ok()?.path();
        if std::fs::read_to_string(task.join("comm")).ok()?.trim() == "qvl-pressure" {
            let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
            return text.split(' ').next()?.parse().ok().map(Duration::from_nanos);
        }
    }
    None
}
