//! Reads that the system fulfils in parts: where the next one begins, and when the file has ended. Pure.

/// How far a read is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Resume {
    needed: usize,
    /// What reads begin at multiples of.
    block: usize,
    /// Where the next read begins.
    from: usize,
    /// Bytes that are there.
    filled: usize,
}

/// What is to be done after a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: what is needed is there.
    Done,
    /// Another read, from [`Resume::from`].
    More,
    /// The file has ended before what is needed.
    Ended,
}

impl Resume {
    /// A read of which `needed` bytes must be there, in reads that begin at multiples of `block`.
    pub(crate) fn new(needed: usize, block: usize) -> Self {
        Self { needed, block, from: 0, filled: 0 }
    }

    /// Where the next part begins.
    pub(crate) fn from(&self) -> usize {
        self.from
    }

    /// A read from there gave so many bytes.
    pub(crate) fn took(&mut self, bytes: usize) -> Step {
        let end = self.from + bytes;
        if end >= self.needed {
            return Step::Done;
        }
        // A read past the page cache that ends within a block most likely ended at the file's end. That block is read
        // once more, since going on behind it is not aligned: if it has nothing new, the file has ended.
        if end <= self.filled {
            return Step::Ended;
        }
        self.filled = end;
        self.from = end - end % self.block;
        Step::More
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_read_within_a_block_reads_the_block_again_and_then_has_ended() {
        let mut resume = Resume::new(10_000, 4096);
        assert_eq!(resume.took(5000), Step::More);
        assert_eq!(resume.from(), 4096);
        assert_eq!(resume.took(904), Step::Ended);
    }

    #[test]
    fn a_file_that_grows_meanwhile_goes_on() {
        let mut resume = Resume::new(10_000, 4096);
        assert_eq!(resume.took(5000), Step::More);
        assert_eq!(resume.took(905), Step::More);
        assert_eq!(resume.took(5904), Step::Done);
    }

    #[test]
    fn nothing_at_all_is_the_end() {
        assert_eq!(Resume::new(1, 1).took(0), Step::Ended);
        assert_eq!(Resume::new(1, 4096).took(0), Step::Ended);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a file of `len` bytes that gives at most `most` bytes a read, in whole blocks but at its end.
        #[test]
        fn what_the_file_has_arrives_and_what_it_has_not_is_noticed(
            len in 0usize..40_000,
            needed in 1usize..40_000,
            block in prop::sample::select(vec![1usize, 512, 4096]),
            most in 1usize..5,
        ) {
            let mut resume = Resume::new(needed, block);
            let mut got = 0;
            for round in 0.. {
                prop_assert!(round < 100_000);
                prop_assert_eq!(resume.from() % block, 0);
                let bytes = len.saturating_sub(resume.from()).min(most * block * 8);
                prop_assert!(resume.from() <= got);
                got = got.max(resume.from() + bytes);
                match resume.took(bytes) {
                    Step::Done => { prop_assert!(got >= needed && len >= needed); break }
                    Step::Ended => { prop_assert!(len < needed); break }
                    Step::More => {}
                }
            }
        }
    }
}
