//! In every interleaving the items come in order, none is lost, nobody waits for ever, and the threads end.

use qvl_dataload_loom as model;

#[test]
fn workers_that_share_scarce_bytes() {
    model::workers_share_scarce_bytes(1);
}

#[test]
fn workers_that_claim_several_items() {
    model::workers_share_scarce_bytes(2);
}

#[test]
fn workers_that_share_one_place() {
    model::workers_share_one_place();
}

#[test]
fn a_batch_that_is_kept() {
    model::a_batch_is_kept();
}

#[test]
fn a_consumer_that_leaves() {
    model::the_consumer_leaves();
}

#[test]
fn items_that_are_fetched_ahead() {
    model::items_are_fetched_ahead();
}
