//! Whoever takes, keeps and drains at once: each block is with one of them or in the shard, and none is lost.

use loom::sync::Arc;
use loom::thread;
use qvl_alloc_loom::Stack;

#[test]
fn every_block_is_with_one() {
    loom::model(|| {
        let stack = Arc::new(Stack::new(vec![1, 2]));
        let users: Vec<_> = (0..2)
            .map(|_| {
                let stack = stack.clone();
                thread::spawn(move || match stack.pop() {
                    Some(block) if stack.push(block) => vec![],
                    Some(block) => vec![block],
                    None => vec![],
                })
            })
            .collect();
        let mut all = stack.try_drain();
        users.into_iter().for_each(|user| all.extend(user.join().unwrap()));
        all.extend(stack.drain());
        all.sort_unstable();
        assert_eq!(all, [1, 2]);
    });
}
