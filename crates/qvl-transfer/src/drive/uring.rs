//! Reads through the kernel's ring: many are under way at once without a thread for each.
//!
//! The kernel writes to memory while nobody waits for it. So a read owns, in `K`, whatever keeps its memory there: it
//! is given back with the read's end and not before. Dropped, a ring waits for what is under way. Should the ring
//! itself fail, reads that the kernel has still end, which is seen in the memory that it shares; if that does not
//! happen, what they own is never freed.

#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "the kernel is given addresses to write to"))]

#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::Ring;
#[cfg(target_os = "linux")]
pub(crate) use linux::Ring;

use crate::Error;

fn refused(why: String) -> Error {
    let expected = format!("{why}: use Io::Threads, or Io::Auto, which does then");
    Error::Setting { name: "io", got: "uring".to_owned(), expected }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::VecDeque;
    use std::os::fd::{AsFd, AsRawFd};
    use std::time::{Duration, Instant};

    use io_uring::{IoUring, Probe, opcode, types};
    use rustix::io::Errno;

    use super::refused;
    use crate::Result;
    use crate::drive::resume::{Resume, Step};
    use crate::drive::{DriveFile, io_error};

    /// A ring of the kernel, and the reads that it has. Each keeps a `K` until its end.
    pub(crate) struct Ring<K> {
        ring: IoUring,
        /// Reads that have not ended, by the number that the kernel gives back.
        reads: Vec<Option<Read<K>>>,
        /// Numbers of no read.
        free: Vec<usize>,
        in_flight: usize,
        /// Reads that were put into the ring and that the kernel has not taken out yet, in that order.
        queued: VecDeque<usize>,
        /// What made the ring unusable.
        broken: Option<Errno>,
    }

    struct Read<K> {
        keep: K,
        file: DriveFile,
        offset: u64,
        into: Target,
        bytes: usize,
        resume: Resume,
        needed: usize,
        /// How often the kernel said that it is to be asked again, in a row.
        again: u32,
    }

    /// Memory that the kernel writes to.
    #[derive(Clone, Copy)]
    struct Target(*mut u8);

    // SAFETY: nothing is done with the address but to give it to the kernel. The memory may be written from any
    // thread: who submitted the read promised that nobody else uses it.
    unsafe impl Send for Target {}

    impl<K> Ring<K> {
        /// A ring with up to `depth` reads under way.
        ///
        /// # Errors
        /// [`Error::Setting`](crate::Error::Setting) where the kernel has no ring, refuses it, as in many containers,
        /// or does not read by it.
        pub(crate) fn new(depth: usize) -> Result<Self> {
            let entries =
                u32::try_from(depth).map_err(|_| refused(format!("{depth} entries are too many")))?;
            let why = |error: std::io::Error| match Errno::from_io_error(&error) {
                Some(Errno::NOSYS) => "this kernel has no io_uring (it takes Linux 5.6)".to_owned(),
                Some(Errno::PERM | Errno::ACCESS) => format!("this system does not allow io_uring ({error})"),
                Some(Errno::NOMEM) => format!("io_uring has no memory here; `ulimit -l` limits it ({error})"),
                _ => format!("io_uring cannot be set up here ({error})"),
            };
            // Without interrupting this thread for each end: it asks when it wants to know. From Linux 5.19 on.
            let quiet = IoUring::builder().setup_coop_taskrun().build(entries);
            let ring = quiet.or_else(|_| IoUring::new(entries)).map_err(|error| refused(why(error)))?;
            let mut probe = Probe::new();
            let asked = ring.submitter().register_probe(&mut probe);
            asked.map_err(|error| refused(format!("io_uring does not say what it can do ({error})")))?;
            if !probe.is_supported(opcode::Read::CODE) {
                return Err(refused("this kernel's io_uring does not read (it takes Linux 5.6)".to_owned()));
            }
            Ok(Self {
                ring,
                reads: (0..depth).map(|_| None).collect(),
                free: (0..depth).rev().collect(),
                in_flight: 0,
                queued: VecDeque::with_capacity(depth),
                broken: None,
            })
        }

        /// Reads that have not ended.
        pub(crate) fn in_flight(&self) -> usize {
            self.in_flight
        }

        #[cfg(test)]
        pub(super) fn descriptor(&self) -> std::os::fd::RawFd {
            self.ring.as_raw_fd()
        }

        /// Puts a read of `bytes` bytes at `offset` into the ring, of which `needed` must be there, more than none;
        /// the kernel gets it with the next [`wait`](Self::wait). Allocates nothing while no more than the depth are
        /// under way.
        ///
        /// # Safety
        /// The `bytes` bytes at `into` can be written to and nobody else uses them, until `keep` was given back by
        /// `wait`. While `keep` is there they stay where they are, also when it is moved.
        pub(crate) unsafe fn submit(
            &mut self,
            keep: K,
            file: &DriveFile,
            offset: u64,
            into: *mut u8,
            bytes: usize,
            needed: usize,
        ) {
            let resume = Resume::new(needed, file.block_bytes());
            let file = file.clone();
            let read = Read { keep, file, offset, into: Target(into), bytes, resume, needed, again: 0 };
            let number = self.free.pop().unwrap_or_else(|| {
                self.reads.push(None);
                self.reads.len() - 1
            });
            self.reads[number] = Some(read);
            self.in_flight += 1;
            self.queue(number);
        }

        /// Puts what a read lacks into the ring.
        fn queue(&mut self, number: usize) {
            let Some(read) = self.reads.get(number).and_then(Option::as_ref) else { return };
            if self.broken.is_some() {
                return self.queued.push_back(number);
            }
            let from = read.resume.from();
            // SAFETY: `from` is less than `needed`, and that at most `bytes`, for which the caller of `submit` gave
            // memory.
            let into = unsafe { read.into.0.add(from) };
            let bytes = u32::try_from(read.bytes - from).unwrap_or(READ_BYTES_MAX).min(READ_BYTES_MAX);
            let entry = opcode::Read::new(types::Fd(read.file.as_fd().as_raw_fd()), into, bytes)
                .offset(read.offset + from as u64)
                .build()
                .user_data(number as u64);
            // SAFETY: the descriptor is open and the memory there until the end of the read, which `self.reads` has
            // until then.
            while unsafe { self.ring.submission().push(&entry) }.is_err() {
                // More are queued than the ring has room for.
                self.enter(0);
                if self.broken.is_some() {
                    break;
                }
            }
            self.queued.push_back(number);
        }

        /// Waits until at least one read has ended, if there is any, and gives back what those kept that have.
        pub(crate) fn wait(&mut self, done: &mut Vec<(K, Result<()>)>) {
            let before = done.len();
            while self.in_flight > 0 && done.len() == before {
                self.step(done);
            }
        }

        /// Waits for something to happen, and takes it in.
        fn step(&mut self, done: &mut Vec<(K, Result<()>)>) {
            match self.broken {
                None => self.enter(1),
                Some(_) => std::thread::sleep(BROKEN_WAIT),
            }
            while let Some(entry) = { self.ring.completion().next() } {
                self.landed(entry.user_data() as usize, entry.result(), done);
            }
            if let Some(errno) = self.broken {
                // The kernel takes reads out of the ring only when it is entered, which does not happen any more.
                while let Some(number) = self.queued.pop_front() {
                    self.end(number, |read| Err(read.lost(errno)), done);
                }
            }
        }

        /// Hands what is queued to the kernel, and waits for at least `want` ends.
        fn enter(&mut self, want: usize) {
            match self.ring.submit_and_wait(want) {
                Ok(_) => {}
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    // It has no memory for the reads just now, or has ends that are to be taken in first.
                    Some(Errno::AGAIN | Errno::BUSY) => std::thread::yield_now(),
                    errno => self.broken = Some(errno.unwrap_or(Errno::IO)),
                },
            }
            let left = self.ring.submission().len();
            while self.queued.len() > left {
                self.queued.pop_front();
            }
        }

        /// The kernel has done with a read.
        fn landed(&mut self, number: usize, result: i32, done: &mut Vec<(K, Result<()>)>) {
            let Some(read) = self.reads.get_mut(number).and_then(Option::as_mut) else { return };
            let Ok(bytes) = usize::try_from(result) else {
                let errno = Errno::from_raw_os_error(result.saturating_neg());
                let again = matches!(errno, Errno::INTR | Errno::AGAIN) && read.again < AGAIN_MAX;
                if again && self.broken.is_none() {
                    read.again += 1;
                    std::thread::yield_now();
                    return self.queue(number);
                }
                return self.end(number, |read| Err(read.failed(errno.into())), done);
            };
            read.again = 0;
            match (read.resume.took(bytes), self.broken) {
                (Step::Done, _) => self.end(number, |_| Ok(()), done),
                (Step::Ended, _) => {
                    self.end(number, |read| Err(read.file.truncated(read.offset, read.needed)), done);
                }
                (Step::More, None) => self.queue(number),
                (Step::More, Some(errno)) => self.end(number, |read| Err(read.lost(errno)), done),
            }
        }

        fn end(
            &mut self,
            number: usize,
            result: impl FnOnce(&Read<K>) -> Result<()>,
            done: &mut Vec<(K, Result<()>)>,
        ) {
            let Some(read) = self.reads.get_mut(number).and_then(Option::take) else { return };
            self.free.push(number);
            self.in_flight -= 1;
            let result = result(&read);
            done.push((read.keep, result));
        }
    }

    impl<K> Read<K> {
        fn failed(&self, error: std::io::Error) -> crate::Error {
            let from = self.resume.from();
            self.file.failed(self.offset + from as u64, self.needed - from, error)
        }

        /// That the ring cannot be used any more, which says nothing about the file.
        fn lost(&self, errno: Errno) -> crate::Error {
            let path = self.file.path();
            io_error(path, "read by io_uring, which failed,", self.offset, self.needed as u64, errno.into())
        }
    }

    impl<K> Drop for Ring<K> {
        fn drop(&mut self) {
            let mut done = Vec::new();
            let mut broken_since = None;
            while self.in_flight > 0 {
                if self.broken.is_some()
                    && broken_since.get_or_insert_with(Instant::now).elapsed() > BROKEN_WAIT_MAX
                {
                    // The kernel may write there at any time.
                    std::mem::forget(std::mem::take(&mut self.reads));
                    return;
                }
                self.step(&mut done);
                done.clear();
            }
        }
    }

    /// What the kernel reads at most at once, in whole blocks.
    const READ_BYTES_MAX: u32 = 1 << 30;
    /// How often in a row a read is tried again that the kernel has no room for.
    const AGAIN_MAX: u32 = 10_000;
    /// How long a broken ring is left alone between two looks at it.
    const BROKEN_WAIT: Duration = Duration::from_millis(1);
    /// How long a broken ring that is dropped is looked at: longer than a drive takes for a read that succeeds.
    const BROKEN_WAIT_MAX: Duration = Duration::from_secs(30);
}

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use super::refused;
    use crate::Result;
    use crate::drive::DriveFile;

    /// There is none here: this is never made.
    pub(crate) struct Ring<K> {
        never: std::convert::Infallible,
        keeps: std::marker::PhantomData<K>,
    }

    impl<K> Ring<K> {
        pub(crate) fn new(_: usize) -> Result<Self> {
            Err(refused("io_uring is Linux's".to_owned()))
        }

        pub(crate) fn in_flight(&self) -> usize {
            match self.never {}
        }

        #[expect(unsafe_code, reason = "as on Linux")]
        pub(crate) unsafe fn submit(&mut self, _: K, _: &DriveFile, _: u64, _: *mut u8, _: usize, _: usize) {
            match self.never {}
        }

        pub(crate) fn wait(&mut self, _: &mut Vec<(K, Result<()>)>) {
            match self.never {}
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::os::fd::AsRawFd;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use memmap2::MmapMut;

    use super::*;
    use crate::drive::{DriveFile, ReadMode};

    /// Memory that is read to, and counts how often it was freed.
    struct Keep {
        number: usize,
        memory: MmapMut,
        freed: Arc<AtomicUsize>,
    }

    impl Drop for Keep {
        fn drop(&mut self) {
            self.freed.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Setup {
        ring: Ring<Keep>,
        file: DriveFile,
        bytes: Vec<u8>,
        freed: Arc<AtomicUsize>,
        _folder: tempfile::TempDir,
    }

    /// Nothing where the kernel has no ring: then that is what `new` says.
    fn setup(depth: usize, len: usize) -> Option<Setup> {
        let ring = match Ring::new(depth) {
            Ok(ring) => ring,
            Err(error) => {
                assert!(error.to_string().contains("io_uring"), "{error}");
                return None;
            }
        };
        let folder = tempfile::tempdir().unwrap();
        let path: PathBuf = folder.path().join("file");
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = DriveFile::with_mode(&path, ReadMode::Direct)
            .unwrap_or_else(|_| DriveFile::with_mode(&path, ReadMode::Buffered).unwrap());
        Some(Setup { ring, file, bytes, freed: Arc::default(), _folder: folder })
    }

    impl Setup {
        fn submit(&mut self, number: usize, needed: usize) {
            let mut memory = MmapMut::map_anon(BYTES).unwrap();
            let into = memory.as_mut_ptr();
            let keep = Keep { number, memory, freed: self.freed.clone() };
            // SAFETY: the memory is mapped, as long as that and kept.
            unsafe { self.ring.submit(keep, &self.file, (number * BYTES) as u64, into, BYTES, needed) };
        }
    }

    #[test]
    fn more_reads_than_the_ring_has_room_for_end_and_have_their_bytes() {
        let Some(mut setup) = setup(3, 20 * BYTES) else { return };
        (0..20).for_each(|number| setup.submit(number, BYTES));
        let mut done = Vec::new();
        while setup.ring.in_flight() > 0 {
            let before = done.len();
            setup.ring.wait(&mut done);
            assert!(done.len() > before);
        }
        assert_eq!(done.len(), 20);
        for (keep, result) in done {
            result.unwrap();
            assert!(keep.memory[..] == setup.bytes[keep.number * BYTES..][..BYTES]);
        }
        setup.ring.wait(&mut Vec::new());
    }

    #[test]
    fn a_file_that_ends_within_a_read_is_enough_or_an_error() {
        let len = 2 * BYTES - 100;
        let Some(mut setup) = setup(4, len) else { return };
        for (needed, enough) in [(BYTES - 100, true), (BYTES - 99, false), (1, true)] {
            setup.submit(1, needed);
            let mut done = Vec::new();
            setup.ring.wait(&mut done);
            let (keep, result) = done.pop().unwrap();
            assert_eq!(result.is_ok(), enough, "{needed}: {result:?}");
            assert!(!enough || keep.memory[..needed] == setup.bytes[BYTES..][..needed]);
            if let Err(error) = result {
                assert!(error.to_string().contains(&format!("ends at {len} bytes")), "{error}");
            }
        }
    }

    #[test]
    fn a_dropped_ring_waits_for_what_is_under_way_and_frees_it() {
        let Some(mut setup) = setup(8, 8 * BYTES) else { return };
        (0..8).for_each(|number| setup.submit(number, BYTES));
        let freed = setup.freed.clone();
        drop(setup);
        assert_eq!(freed.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn a_broken_ring_gives_back_what_it_has_with_an_error_or_its_bytes() {
        let Some(mut setup) = setup(8, 8 * BYTES) else { return };
        (0..4).for_each(|number| setup.submit(number, BYTES));
        let mut done = Vec::new();
        setup.ring.wait(&mut done);
        // Puts another file in the place of the ring: the kernel goes on with what it has, and takes nothing more.
        let null = std::fs::File::open("/dev/null").unwrap();
        let taken = setup.ring.descriptor();
        // SAFETY: the descriptor is the ring's, which is ready for anything to go wrong with it.
        assert!(unsafe { libc::dup2(null.as_raw_fd(), taken) } >= 0);
        (4..8).for_each(|number| setup.submit(number, BYTES));
        while setup.ring.in_flight() > 0 {
            setup.ring.wait(&mut done);
        }
        assert_eq!(done.len(), 8);
        assert_eq!(setup.freed.load(Ordering::Relaxed), 0);
        for (keep, result) in &done {
            match result {
                Ok(()) => assert!(keep.memory[..] == setup.bytes[keep.number * BYTES..][..BYTES]),
                Err(error) => {
                    assert!(keep.number >= 4, "{}: {error}", keep.number);
                    assert!(error.to_string().contains("cannot read by io_uring, which failed"), "{error}");
                }
            }
        }
        assert!(done.iter().filter(|(_, result)| result.is_err()).count() == 4);
        // What comes after that ends at once.
        setup.submit(0, BYTES);
        setup.ring.wait(&mut done);
        assert!(done.pop().unwrap().1.is_err());
    }

    const BYTES: usize = 65_536;
}
