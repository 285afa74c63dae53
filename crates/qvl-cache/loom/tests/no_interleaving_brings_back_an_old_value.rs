//! Inserts, removals, evictions, writes and searches of one key, in every order that a few threads can be in.

use loom::sync::Arc;
use loom::thread::spawn;
use qvl_cache_loom::Tiers;

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

#[test]
fn a_removed_key_stays_removed_while_it_is_written() {
    model(|| {
        let tiers = Arc::new(Tiers::default());
        tiers.insert(1);
        tiers.evict();
        let writer = {
            let tiers = Arc::clone(&tiers);
            spawn(move || while tiers.write_one() {})
        };
        tiers.remove();
        assert_eq!(tiers.get(), None);
        writer.join().unwrap();
        while tiers.write_one() {}
        assert_eq!(tiers.get(), None);
        assert!(tiers.is_quiet());
    });
}

#[test]
fn a_search_does_not_publish_what_an_insert_replaced() {
    model(|| {
        let tiers = Arc::new(Tiers::default());
        tiers.insert(1);
        tiers.evict();
        while tiers.write_one() {}
        let reader = {
            let tiers = Arc::clone(&tiers);
            spawn(move || tiers.get())
        };
        tiers.insert(2);
        assert_eq!(tiers.get(), Some(2));
        assert!([Some(1), Some(2)].contains(&reader.join().unwrap()));
        assert_eq!(tiers.get(), Some(2));
        tiers.evict();
        while tiers.write_one() {}
        assert_eq!(tiers.get(), Some(2));
        assert!(tiers.is_quiet());
    });
}

#[test]
fn an_evicted_value_is_found_wherever_it_is() {
    model(|| {
        let tiers = Arc::new(Tiers::default());
        tiers.insert(1);
        let evicter = {
            let tiers = Arc::clone(&tiers);
            spawn(move || {
                tiers.evict();
                while tiers.write_one() {}
            })
        };
        assert_eq!(tiers.get(), Some(1));
        evicter.join().unwrap();
        while tiers.write_one() {}
        assert_eq!(tiers.get(), Some(1));
    });
}

#[test]
fn a_write_behind_and_an_eviction_meet() {
    model(|| {
        let tiers = Arc::new(Tiers::default());
        tiers.insert(1);
        let writer = {
            let tiers = Arc::clone(&tiers);
            spawn(move || tiers.write_behind())
        };
        tiers.insert(2);
        tiers.evict();
        assert_eq!(tiers.get(), Some(2));
        writer.join().unwrap();
        tiers.evict();
        while tiers.write_one() {}
        assert_eq!(tiers.get(), Some(2));
        assert!(tiers.is_quiet());
    });
}

#[test]
fn two_who_load_get_one_value() {
    model(|| {
        let tiers = Arc::new(Tiers::default());
        let other = {
            let tiers = Arc::clone(&tiers);
            spawn(move || tiers.get_or_load(1))
        };
        let mine = tiers.get_or_load(2);
        assert_eq!(mine, other.join().unwrap());
        assert_eq!(tiers.get(), Some(mine));
        assert!(tiers.is_quiet());
    });
}

#[test]
fn a_load_and_a_removal_leave_no_older_value() {
    model(|| {
        let tiers = Arc::new(Tiers::default());
        tiers.insert(1);
        tiers.evict();
        while tiers.write_one() {}
        let loader = {
            let tiers = Arc::clone(&tiers);
            spawn(move || tiers.get_or_load(9))
        };
        tiers.remove();
        let after = tiers.get();
        assert!(after.is_none() || after == Some(9), "{after:?} was removed");
        assert!([1, 9].contains(&loader.join().unwrap()));
    });
}

#[test]
fn an_eviction_in_the_middle_of_an_insert_leaves_nothing_older_below() {
    model(|| {
        let tiers = Arc::new(Tiers::default());
        tiers.insert(1);
        let evicter = {
            let tiers = Arc::clone(&tiers);
            spawn(move || {
                tiers.evict();
                while tiers.write_one() {}
            })
        };
        tiers.insert(2);
        tiers.evict();
        while tiers.write_one() {}
        evicter.join().unwrap();
        while tiers.write_one() {}
        tiers.evict();
        while tiers.write_one() {}
        assert_eq!(tiers.get(), Some(2));
        assert!(tiers.is_quiet());
    });
}

#[test]
fn a_write_behind_of_what_is_replaced_leaves_nothing_older_below() {
    model(|| {
        let tiers = Arc::new(Tiers::default());
        tiers.insert(1);
        let writer = {
            let tiers = Arc::clone(&tiers);
            spawn(move || tiers.write_behind())
        };
        tiers.insert(2);
        writer.join().unwrap();
        tiers.evict();
        while tiers.write_one() {}
        assert_eq!(tiers.get(), Some(2));
        assert!(tiers.is_quiet());
    });
}

#[test]
fn a_write_behind_of_what_leaves_is_not_lost() {
    model(|| {
        let tiers = Arc::new(Tiers::default());
        tiers.insert(1);
        let writer = {
            let tiers = Arc::clone(&tiers);
            spawn(move || tiers.write_behind())
        };
        tiers.evict();
        writer.join().unwrap();
        while tiers.write_one() {}
        assert_eq!(tiers.get(), Some(1));
        assert!(tiers.is_quiet());
    });
}
