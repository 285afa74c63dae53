//! A pool beside the heap: what an allocation costs in the steady state, touched and given back.
//!
//!     cargo run --release -p qvl-alloc --example pool

#![allow(clippy::print_stdout, reason = "a program that prints")]

use std::hint::black_box;
use std::time::Instant;

use qvl_alloc::backing::Pages;
use qvl_alloc::{Pool, PoolSettings, Result};

fn main() -> Result<()> {
    let settings =
        PoolSettings { name: "activations".to_owned(), budget_bytes: 256 << 20, ..PoolSettings::default() };
    let pool = Pool::new(Pages::new(), settings)?;
    let owner = pool.owner("prefill", Some(64 << 20));

    println!("{:>10}  {:>8}  {:>12}  {:>12}", "bytes", "touched", "pool, ns", "Vec, ns");
    for bytes in [256, 64 << 10, 4 << 20, 64 << 20] {
        for is_touched in [false, true] {
            let rounds = if is_touched { (128 << 20) / bytes.max(4096) } else { 100_000 };
            let of_pool = median_ns(rounds, || {
                if let Ok(mut buffer) = pool.bytes(&owner, bytes, 64) {
                    touch(&mut buffer, is_touched);
                }
            });
            let of_heap = median_ns(rounds, || {
                let mut buffer = Vec::<u8>::with_capacity(bytes);
                if is_touched {
                    buffer.resize(bytes, 1);
                }
                black_box(buffer.as_mut_ptr());
            });
            println!("{bytes:>10}  {is_touched:>8}  {of_pool:>12.1}  {of_heap:>12.1}");
        }
    }

    // What does not fit says why, and what would.
    if let Err(error) = pool.bytes(&owner, 65 << 20, 64) {
        println!("{error}");
    }
    println!("{} bytes were given back", pool.trim());
    Ok(())
}

fn touch(buffer: &mut [u8], is_touched: bool) {
    if is_touched {
        buffer.fill(1);
    }
    black_box(buffer.as_mut_ptr());
}

/// The median of nine runs, for one round.
fn median_ns(rounds: usize, mut round: impl FnMut()) -> f64 {
    let mut runs = [0.0; 9];
    for run in &mut runs {
        let begin = Instant::now();
        (0..rounds).for_each(|_| round());
        *run = begin.elapsed().as_secs_f64() * 1e9 / rounds as f64;
    }
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}
