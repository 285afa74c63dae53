//! Random operations against a map: what is found is what was put last, budgets hold, and reopening changes nothing.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Operation {
    Put(u8, u16),
    Get(u8),
    Remove(u8),
    Resize(u32),
    Flush,
    Reopen,
}

fn operation() -> impl Strategy<Value = Operation> {
    let key = 0..12_u8;
    prop_oneof![
        8 => (key.clone(), prop_oneof![0..1100_u16, 0..20_000_u16]).prop_map(|(key, bytes)| Operation::Put(key, bytes)),
        8 => key.clone().prop_map(Operation::Get),
        2 => key.prop_map(Operation::Remove),
        1 => (5_000..120_000_u32).prop_map(Operation::Resize),
        2 => Just(Operation::Flush),
        1 => Just(Operation::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_is_what_was_put_last_and_the_budget_holds(operations in prop::collection::vec(operation(), 1..80)) {
        let folder = memory_folder();
        let mut budget_bytes = 100_000;
        let open = |budget_bytes| Warm::open(WarmSettings { budget_bytes, ..settings(folder.path()) }).unwrap();
        let mut warm = Some(open(budget_bytes));
        let mut model: HashMap<u8, Vec<u8>> = HashMap::new();
        for (step, operation) in operations.into_iter().enumerate() {
            let tier = warm.as_ref().unwrap();
            let name = |key: u8| format!("key {key}");
            let id = |key: u8| KeyId::of(name(key).as_bytes());
            match operation {
                Operation::Put(key, bytes) => {
                    let bytes = value(step as u64, bytes.into());
                    match put(tier, &name(key), &bytes) {
                        Put::Stored => _ = model.insert(key, bytes),
                        Put::Refused(_) => {
                            prop_assert!(!has(tier, &name(key)), "an older value would be wrong");
                            model.remove(&key);
                        }
                    }
                }
                Operation::Get(key) => {
                    if let Some(found) = get(tier, &name(key)) {
                        prop_assert_eq!(Some(&found), model.get(&key));
                    }
                }
                Operation::Remove(key) => {
                    tier.remove(id(key));
                    model.remove(&key);
                }
                Operation::Resize(bytes) => {
                    budget_bytes = bytes.into();
                    tier.resize(budget_bytes).unwrap();
                }
                Operation::Flush => tier.flush().unwrap(),
                Operation::Reopen => {
                    let there: Vec<_> = (0..12).filter(|key| has(tier, &name(*key))).collect();
                    warm.take().unwrap().close().unwrap();
                    warm = Some(open(budget_bytes));
                    let tier = warm.as_ref().unwrap();
                    let again: Vec<_> = (0..12).filter(|key| has(tier, &name(*key))).collect();
                    prop_assert_eq!(there, again);
                }
            }
            let tier = warm.as_ref().unwrap();
            let stats = tier.stats();
            prop_assert!(stats.bytes <= budget_bytes, "{} bytes", stats.bytes);
        }
        let mut tier = warm.unwrap();
        tier.wait_for_sweep();
        tier.flush().unwrap();
        prop_assert_eq!(tier.stats().damaged, 0);
        let counted: u64 = tier.shared.table.lock().entries().map(|(_, entry)| entry.charge).sum();
        prop_assert_eq!(tier.stats().bytes, counted);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, u16),
    Get(u8),
    Remove(u8),
    Flush,
    Reopen,
    Wait,
    Fail(Fault),
    Heal,
}

fn step() -> impl Strategy<Value = Step> {
    let operations = [
        crate::storage::Operation::Open,
        crate::storage::Operation::Read,
        crate::storage::Operation::WriteNew,
        crate::storage::Operation::Sync,
        crate::storage::Operation::SyncFolder,
        crate::storage::Operation::Remove,
        crate::storage::Operation::List,
    ];
    let what = prop_oneof![
        prop::sample::select(vec![5, 28, 30, 2, 24]).prop_map(What::Errno),
        Just(What::Half),
        any::<u64>().prop_map(What::Flip),
    ];
    let fault = (prop::sample::select(operations.to_vec()), what, 0..3_u64, 1..4_u64);
    let fault = fault.prop_map(|(operation, what, skip, times)| Fault {
        path_contains: "/values/".to_owned(),
        operation,
        skip,
        times,
        what,
    });
    let key = 0..6_u8;
    prop_oneof![
        8 => (key.clone(), prop_oneof![0..1100_u16, 0..20_000_u16]).prop_map(|(key, bytes)| Step::Put(key, bytes)),
        8 => key.clone().prop_map(Step::Get),
        1 => key.prop_map(Step::Remove),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        3 => Just(Step::Wait),
        4 => fault.prop_map(Step::Fail),
        1 => Just(Step::Heal),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_drive_does_no_value_is_torn_or_anothers_and_the_budget_holds(
        steps in prop::collection::vec(step(), 1..100),
    ) {
        let folder = memory_folder();
        let (faulty, clock) = (Faulty::new(Arc::new(Disk)), TestClock::default());
        let try_open = || {
            let now = clock.clone();
            let mut settings = settings(folder.path());
            settings.budget_bytes = 60_000;
            settings.storage = Arc::new(faulty.clone());
            settings.clock = Arc::new(move || Duration::from_secs(now.0.load(Ordering::Relaxed)));
            Warm::open(settings)
        };
        let mut warm = Some(try_open().unwrap());
        // Every value that was ever put: of one that the drive wrote wrong, an older one may come back.
        let mut put_once: HashMap<u8, Vec<Vec<u8>>> = HashMap::new();
        for (n, step) in steps.into_iter().enumerate() {
            let tier = warm.as_ref().unwrap();
            let name = |key: u8| format!("key {key}");
            let id = |key: u8| KeyId::of(name(key).as_bytes());
            match step {
                Step::Put(key, bytes) => {
                    let bytes = value(n as u64 * 8 + u64::from(key), bytes.into());
                    match tier.put(name(key).as_bytes(), id(key), &bytes, 0.5) {
                        Ok(Put::Stored) => put_once.entry(key).or_default().push(bytes),
                        Ok(Put::Refused(_)) | Err(_) => prop_assert!(!has(tier, &name(key))),
                    }
                }
                Step::Get(key) => if let Some(found) = get(tier, &name(key)) {
                    let known = put_once.get(&key).is_some_and(|values| values.contains(&found));
                    prop_assert!(known, "a value that was never put under {}", name(key));
                }
                Step::Remove(key) => {
                    tier.remove(id(key));
                    prop_assert!(!has(tier, &name(key)));
                }
                Step::Flush => _ = tier.flush(),
                Step::Wait => clock.pass(100),
                Step::Fail(fault) => faulty.fail(fault),
                Step::Heal => faulty.heal(),
                Step::Reopen => {
                    let _ = warm.take().unwrap().close();
                    warm = Some(match try_open() {
                        Ok(warm) => warm,
                        Err(_) => {
                            faulty.heal();
                            try_open().unwrap()
                        }
                    });
                }
            }
            let stats = warm.as_ref().unwrap().stats();
            prop_assert!(stats.bytes <= 60_000, "{} bytes", stats.bytes);
        }
        // And it works again.
        faulty.heal();
        clock.pass(1000);
        let mut tier = warm.unwrap();
        tier.wait_for_sweep();
        prop_assert_eq!(put(&tier, "after", &value(1, 5000)), Put::Stored);
        tier.flush().unwrap();
        prop_assert_eq!(get(&tier, "after"), Some(value(1, 5000)));
        let counted: u64 = tier.shared.table.lock().entries().map(|(_, entry)| entry.charge).sum();
        prop_assert_eq!(tier.stats().bytes, counted);
    }
}
