//! After a trim, what is resident is what is live.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![cfg(target_os = "linux")]

use qvl_alloc::backing::Pages;
use qvl_alloc::{Pool, PoolSettings};

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn what_is_resident_is_what_is_live() {
    let settings = PoolSettings { budget_bytes: 256 << 20, ..PoolSettings::default() };
    let pool = Pool::new(Pages::new(), settings).unwrap();
    let owner = pool.default_owner();
    let sizes = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 3 << 20];
    let mut held: Vec<_> = (0..2000).map(|_| None).collect();
    let before = resident_bytes();
    let mut used = 0;
    for (number, place) in held.iter_mut().enumerate() {
        let bytes = sizes[number % sizes.len()];
        if used + bytes > 180 << 20 {
            break;
        }
        let mut buffer = pool.bytes(owner, bytes, 4096).unwrap();
        buffer.fill(1);
        used += bytes;
        *place = Some(buffer);
    }
    assert!(resident_bytes() >= before + used, "all was touched");
    // Three of four are freed, of each size and everywhere.
    held.iter_mut()
        .enumerate()
        .filter(|(number, _)| number / 5 % 4 != 0)
        .for_each(|(_, place)| *place = None);
    let live = owner.in_use_bytes() as usize;
    assert!(live > 30 << 20);
    let given_back = pool.trim();
    assert!(given_back >= used - live, "{given_back} of {}", used - live);
    let resident = resident_bytes().saturating_sub(before);
    // A mebibyte for what the process itself took meanwhile.
    let allowed = live + live / 20 + (1 << 20);
    assert!(resident <= allowed, "{resident} bytes are resident, {live} are live");
    assert!(held.iter().flatten().all(|buffer| buffer.iter().all(|&byte| byte == 1)), "contents stay");
    held.clear();
    pool.trim();
    assert_eq!(pool.stats().reserved_bytes, 0);
}
