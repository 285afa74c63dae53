//! qvl-cache: what a hit, a miss and an insertion take, and what each policy adds, on one thread and in memory alone.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::expect_used, reason = "a bench without its input has nothing to measure")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use qvl_cache::policy::Item;
use qvl_cache::trace::Trace;
use qvl_cache::{KeyId, PolicyName, TieredCache};

const ENTRIES: u64 = 100_000;
const VALUE_BYTES: usize = 64;

type Cache = TieredCache<u64, bytes::Bytes>;

/// Keys as they are asked for: Zipf with an exponent of 0.9.
fn keys(count: usize) -> Vec<u64> {
    Trace::zipf(1, ENTRIES, 0.9, count).requests.iter().map(|request| request.id).collect()
}

fn value(key: u64) -> bytes::Bytes {
    bytes::Bytes::from(vec![key as u8; VALUE_BYTES])
}

fn hits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache/hit");
    for entries in [1000, ENTRIES] {
        let cache: Cache =
            TieredCache::builder().hot_bytes(1 << 30).build().expect("memory alone cannot fail");
        for key in 0..entries {
            cache.insert(key, value(key)).expect("it is open");
        }
        let keys = keys(100_000);
        let mut next = keys.iter().map(|key| key % entries).cycle();
        group.bench_function(BenchmarkId::from_parameter(entries), |bench| {
            bench.iter(|| cache.get(black_box(&next.next().expect("a cycle"))).expect("it is open"));
        });
    }
    group.finish();
}

fn insertions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache/insert_and_evict");
    for policy in PolicyName::ALL {
        // A tenth of the keys fit.
        let bytes = ENTRIES / 10 * (VALUE_BYTES as u64 + 8 + 400);
        let cache: Cache =
            TieredCache::builder().hot_bytes(bytes).policy(policy).build().expect("memory alone cannot fail");
        let (keys, made) = (keys(200_000), value(7));
        keys.iter().for_each(|&key| drop(cache.insert(key, made.clone())));
        let mut next = keys.iter().copied().cycle();
        group.bench_function(BenchmarkId::from_parameter(policy), |bench| {
            bench.iter(|| cache.insert(next.next().expect("a cycle"), made.clone()).expect("it is open"));
        });
    }
    group.finish();
}

fn policies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache/policy_hit");
    for name in PolicyName::ALL {
        let mut policy = name.build();
        policy.set_budget(ENTRIES * 100);
        let item = |key: u64| Item { id: KeyId::of(&key.to_le_bytes()), bytes: 100, cost: 1.0, uses: 0 };
        let slots: Vec<_> = (0..ENTRIES).map(|key| policy.insert(item(key))).collect();
        let keys = keys(100_000);
        let mut next = keys.iter().map(|&key| slots[(key % ENTRIES) as usize]).cycle();
        group.bench_function(BenchmarkId::from_parameter(name), |bench| {
            bench.iter(|| policy.hit(black_box(next.next().expect("a cycle"))));
        });
    }
    group.finish();
}

criterion_group!(benches, hits, insertions, policies);
criterion_main!(benches);
