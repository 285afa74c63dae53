//! An object store as a cold tier: what was put comes back; a store that does not answer costs a time-out, then nothing,
//! then it is tried again; damage is a miss.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is a failed test")]
#![cfg(feature = "object-store")]

#[path = "common/first_stays.rs"]
mod first_stays;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use first_stays::FirstStays;
use object_store::memory::InMemory;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use qvl_cache::cold::object::{ObjectSettings, ObjectTier};
use qvl_cache::cold::{Cold, Kept, Refusal};
use qvl_cache::health::HealthSettings;
use qvl_cache::{Error, KeyId, PolicyName};

/// Longer than any test runs.
const NEVER: Duration = Duration::from_secs(100_000);

fn settings() -> ObjectSettings {
    let mut settings = ObjectSettings::default();
    settings.absent_for = Duration::ZERO;
    settings
}

fn value(len: usize) -> Bytes {
    (0..len).map(|i| (i * i % 251) as u8).collect()
}

/// The cause of an error of the tier, with the operation.
fn tier_error(error: Error, tier_name: &str) -> (&'static str, String) {
    match error {
        Error::Tier { tier, operation, source } => {
            assert_eq!(tier, tier_name);
            (operation, source.to_string())
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_store_in_memory_and_one_in_a_folder_give_back_what_was_put() {
    let folder = tempfile::tempdir().unwrap();
    let url = url::Url::from_directory_path(folder.path()).unwrap();
    for url in ["memory:///some/prefix", url.as_str()] {
        let tier = ObjectTier::open(url, ObjectSettings::default()).unwrap();
        assert_eq!(tier.name(), url);
        for (key, value) in
            [(&b"empty"[..], Bytes::new()), (b"large", value(300_000)), (&[9; 5000], value(10))]
        {
            assert_eq!(tier.get(key).unwrap(), None);
            assert!(!tier.contains(key).unwrap());
            assert_eq!(tier.put(key, &value, 0.5).unwrap(), Kept::Stored);
            assert_eq!(tier.put(key, &value, 0.5).unwrap(), Kept::AlreadyThere);
            assert!(tier.contains(key).unwrap());
            assert_eq!(tier.get(key).unwrap(), Some(value), "though it was known to be absent a moment ago");
        }
        tier.remove(b"large").unwrap();
        tier.remove(b"never there").unwrap();
        assert_eq!(tier.get(b"large").unwrap(), None);
        let stats = tier.stats();
        assert_eq!((stats.hits, stats.misses, stats.puts, stats.errors), (3, 4, 3, 0), "{url}");
        tier.close().unwrap();
        assert!(matches!(tier.get(b"empty"), Err(Error::Closed)));
    }
}

#[test]
fn a_folder_keeps_what_was_put_and_fingerprints_do_not_see_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let url = url::Url::from_directory_path(folder.path()).unwrap();
    let open = |fingerprint: &str| {
        let mut settings = settings();
        settings.fingerprint = fingerprint.to_owned();
        ObjectTier::open(url.as_str(), settings).unwrap()
    };
    open("one").put(b"k", &value(100), 0.0).unwrap();
    assert_eq!(open("one").get(b"k").unwrap(), Some(value(100)));
    assert_eq!(open("two").get(b"k").unwrap(), None);
}

#[test]
fn it_works_inside_another_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let tier = ObjectTier::open("memory:///", settings()).unwrap();
        tier.put(b"k", &value(100), 0.0).unwrap();
        assert_eq!(tier.get(b"k").unwrap(), Some(value(100)));
    });
}

#[test]
fn a_store_that_never_answers_is_left_alone_and_comes_back() {
    let store = Arc::new(ThrottledStore::new(InMemory::new(), ThrottleConfig::default()));
    let mut settings = settings();
    // Both far longer than what is tried between them takes, on a machine with other things to do.
    settings.timeout = Duration::from_millis(250);
    let backoff = Duration::from_millis(1500);
    settings.health = HealthSettings { failures_max: 2, backoff_min: backoff, backoff_max: backoff };
    let tier = ObjectTier::with_store(Arc::clone(&store) as _, "values", settings).unwrap();
    let name = tier.name();
    tier.put(b"k", &value(100), 0.0).unwrap();

    store.config_mut(|config| config.wait_get_per_call = NEVER);
    for _ in 0..2 {
        let (operation, cause) = tier_error(tier.get(b"k").unwrap_err(), &name);
        assert_eq!(operation, "get");
        assert!(cause.contains("no answer within 250ms") && cause.contains("`timeout`"), "{cause}");
    }
    assert!(tier.down());
    assert_eq!((tier.stats().timeouts, tier.stats().skipped), (2, 0));

    // A put would be answered, but is not tried.
    let (operation, cause) = tier_error(tier.put(b"other", &value(1), 0.0).unwrap_err(), &name);
    assert_eq!(operation, "put");
    assert!(cause.contains("2 calls in a row failed"), "{cause}");
    assert_eq!((tier.stats().timeouts, tier.stats().skipped), (2, 1));

    // The probe is not answered either: down again.
    std::thread::sleep(backoff);
    tier.get(b"k").unwrap_err();
    assert_eq!((tier.stats().timeouts, tier.stats().skipped), (3, 1));
    tier.get(b"k").unwrap_err();
    assert_eq!((tier.stats().timeouts, tier.stats().skipped), (3, 2));

    store.config_mut(|config| config.wait_get_per_call = Duration::ZERO);
    std::thread::sleep(backoff);
    assert_eq!(tier.get(b"k").unwrap(), Some(value(100)));
    assert!(!tier.down());
    assert_eq!(tier.get(b"k").unwrap(), Some(value(100)));
    assert_eq!((tier.stats().errors, tier.stats().hits), (3, 2));
}

#[test]
fn a_store_that_hangs_does_not_hold_up_close() {
    let config = ThrottleConfig { wait_get_per_call: NEVER, ..ThrottleConfig::default() };
    let store = Arc::new(ThrottledStore::new(InMemory::new(), config));
    let mut settings = settings();
    settings.timeout = Duration::from_millis(20);
    let tier = ObjectTier::with_store(store, "", settings).unwrap();
    assert!(tier.get(b"k").is_err());
    tier.close().unwrap();
    assert!(matches!(tier.put(b"k", &value(1), 0.0), Err(Error::Closed)));
}

#[test]
fn a_store_that_says_no_is_an_error_and_not_a_miss() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a file");
    std::fs::write(&file, b"no folder").unwrap();
    let url = url::Url::from_directory_path(&file).unwrap();
    let tier = ObjectTier::open(url.as_str(), settings()).unwrap();
    let (operation, cause) = tier_error(tier.put(b"k", &value(10), 0.0).unwrap_err(), &tier.name());
    assert_eq!(operation, "put");
    assert!(!cause.is_empty());
    assert_eq!((tier.stats().errors, tier.stats().timeouts), (1, 0));
}

#[test]
fn a_key_known_to_be_absent_is_not_asked_for_again() {
    let store = Arc::new(ThrottledStore::new(InMemory::new(), ThrottleConfig::default()));
    let mut settings = settings();
    settings.absent_for = NEVER;
    settings.timeout = Duration::from_millis(50);
    let tier = ObjectTier::with_store(Arc::clone(&store) as _, "", settings).unwrap();
    assert_eq!(tier.get(b"k").unwrap(), None);
    assert!(!tier.contains(b"other").unwrap());
    store.config_mut(|config| config.wait_get_per_call = NEVER);
    for _ in 0..10 {
        assert_eq!(tier.get(b"k").unwrap(), None, "the store would not have answered");
        assert_eq!(tier.get(b"other").unwrap(), None);
    }
    assert_eq!((tier.stats().known_absent, tier.stats().misses), (20, 21));
    store.config_mut(|config| config.wait_get_per_call = Duration::ZERO);
    tier.put(b"k", &value(10), 0.0).unwrap();
    assert_eq!(tier.get(b"k").unwrap(), Some(value(10)));
}

#[test]
fn a_damaged_object_is_a_counted_miss_and_is_removed() {
    let folder = tempfile::tempdir().unwrap();
    let url = url::Url::from_directory_path(folder.path()).unwrap();
    let tier = ObjectTier::open(url.as_str(), settings()).unwrap();
    tier.put(b"k", &value(1000), 0.0).unwrap();
    let inner = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let file = inner.join(KeyId::of(b"k").to_string());
    let whole = std::fs::read(&file).unwrap();
    for at in (0..whole.len()).step_by(37) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&file, damaged).unwrap();
        assert_eq!(tier.get(b"k").unwrap(), None, "byte {at}");
        assert!(!file.exists());
    }
    assert_eq!(tier.stats().damaged, whole.len().div_ceil(37) as u64);
    std::fs::write(&file, &whole).unwrap();
    assert_eq!(tier.get(b"k").unwrap(), Some(value(1000)));
}

#[test]
fn an_object_over_the_bound_is_not_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let url = url::Url::from_directory_path(folder.path()).unwrap();
    ObjectTier::open(url.as_str(), settings()).unwrap().put(b"k", &value(2000), 0.0).unwrap();
    let mut small = settings();
    small.value_bytes_max = 1000;
    let tier = ObjectTier::open(url.as_str(), small).unwrap();
    assert_eq!(tier.get(b"k").unwrap(), None);
    assert_eq!(tier.stats().damaged, 1);
    assert_eq!(tier.put(b"k", &value(1001), 0.0).unwrap(), Kept::Refused(Refusal::TooLarge));
}

#[test]
fn a_budget_that_was_asked_for_holds() {
    let folder = tempfile::tempdir().unwrap();
    let url = url::Url::from_directory_path(folder.path()).unwrap();
    // Values that do not compress: with header and key 64 bytes more.
    let random = |seed: u64| -> Bytes {
        let mut state = seed * 2 + 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..1000).map(|_| next()).collect()
    };
    let open = |budget| {
        ObjectTier::open(url.as_str(), settings())
            .unwrap()
            .with_budget(budget, PolicyName::Lru.build())
            .unwrap()
    };
    let tier = open(2 * 1064);
    for i in 0..4u64 {
        assert_eq!(tier.put(&i.to_le_bytes(), &random(i), 0.0).unwrap(), Kept::Stored);
    }
    let there = |tier: &ObjectTier| -> Vec<u64> {
        (0..4).filter(|i: &u64| tier.get(&i.to_le_bytes()).unwrap().is_some()).collect()
    };
    assert_eq!(there(&tier), [2, 3]);
    assert_eq!((tier.stats().bytes, tier.stats().evicted, tier.stats().budget_bytes), (2128, 2, Some(2128)));
    drop(tier);
    let tier = open(2 * 1064);
    assert_eq!((tier.stats().values, tier.stats().bytes), (2, 2128), "as it was listed");
    tier.resize(1064).unwrap();
    assert_eq!(there(&tier).len(), 1);
    drop(tier);
    let first =
        ObjectTier::open(url.as_str(), settings()).unwrap().with_budget(1064, FirstStays::boxed()).unwrap();
    assert_eq!(first.put(b"new", &random(9), 0.0).unwrap(), Kept::Refused(Refusal::NotWorthIt));
}

#[test]
fn a_url_that_cannot_be_opened_says_why_and_keeps_its_password() {
    let refused = |url: &str| match ObjectTier::open(url, settings()) {
        Ok(_) => panic!("{url} was opened"),
        Err(error) => error.to_string(),
    };
    assert!(refused("no url").starts_with("url = no url: "));
    assert!(refused("ftp://somewhere/else").contains("url = ftp://somewhere/else"));
    // The tests are built without the features of object_store.
    let error = refused("https://me:secret@host/bucket?token=secret");
    assert!(error.contains("features of object_store") && !error.contains("secret"), "{error}");
    assert!(!refused("//me:secret@host").contains("secret"));
}
