//! Every chunk ends exactly once, nobody waits for ever, and buffers are never more than there may be.

use loom::thread;
use qvl_transfer_loom::Model;

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn workers_share_one_buffer() {
    explore(|| {
        let model = Model::new(1);
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let model = model.clone();
                thread::spawn(move || model.serve_one(false))
            })
            .collect();
        model.push(1, 2, true);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!((model.ended(), model.slots()), (2, (1, 1)));
    });
}

#[test]
fn a_buffer_that_cannot_be_made_leaves_room_for_another_try() {
    explore(|| {
        let model = Model::new(1);
        let workers: Vec<_> = [true, false]
            .map(|fails| {
                let model = model.clone();
                thread::spawn(move || model.serve_one(fails))
            })
            .into();
        model.push(1, 2, true);
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!(model.ended(), 2);
        let (made, free) = model.slots();
        assert_eq!(made, free);
    });
}

#[test]
fn chunks_without_a_buffer_pass_those_that_wait_for_one() {
    explore(|| {
        let model = Model::new(1);
        model.push(1, 2, true);
        model.push(2, 1, false);
        let workers: Vec<_> = [1, 2]
            .map(|chunks| {
                let model = model.clone();
                thread::spawn(move || (0..chunks).for_each(|_| model.serve_one(false)))
            })
            .into();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert_eq!((model.ended(), model.slots()), (3, (1, 1)));
    });
}

#[test]
fn a_job_that_is_abandoned_while_it_is_served() {
    explore(|| {
        let model = Model::new(1);
        model.push(1, 2, true);
        let worker = {
            let model = model.clone();
            thread::spawn(move || model.serve())
        };
        model.abandon(1);
        model.close();
        worker.join().unwrap();
        assert_eq!(model.ended(), 2);
    });
}

#[test]
fn a_board_that_is_closed_while_jobs_come() {
    explore(|| {
        let model = Model::new(1);
        let worker = {
            let model = model.clone();
            thread::spawn(move || model.serve())
        };
        let closer = {
            let model = model.clone();
            thread::spawn(move || model.close())
        };
        model.push(1, 2, false);
        closer.join().unwrap();
        worker.join().unwrap();
        assert_eq!(model.ended(), 2);
    });
}
