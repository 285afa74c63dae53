//! Reading ahead with threads that block in positioned reads: works on every system and every file system.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::engine::{Done, Engine, Request};
use super::file::Mode;
use super::window;
use crate::{Error, Result};

/// Threads that read. They live as long as the engine does; each reads one request at a time.
pub struct PreadPool {
    /// Gone while it is being dropped, which tells the threads to end.
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    in_flight: usize,
}

struct Job {
    request: Request,
    since: Instant,
}

impl PreadPool {
    /// Starts `threads` threads, 1 to 1024, that read past the page cache if it is to be `direct`.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::Thread`]; [`Error::Storage`] where there are no direct reads at all. A file
    /// that refuses them is an error of its request.
    pub fn new(threads: usize, direct: bool) -> Result<Self> {
        if !(1..=THREADS_MAX).contains(&threads) {
            let expected = format!("1 to {THREADS_MAX}");
            return Err(Error::Setting { setting: "threads", got: threads.to_string(), expected });
        }
        if direct && !cfg!(target_os = "linux") {
            let why = "it is implemented for Linux only".to_owned();
            return Err(Error::Storage { what: "direct reading (O_DIRECT)", why });
        }
        let (jobs, to_read) = unbounded();
        let (ended, done) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        // Dropping it joins what was started, should one of the threads not start.
        let mut pool = Self { jobs: Some(jobs), done, threads: Vec::new(), stop, in_flight: 0 };
        for number in 0..threads {
            let (to_read, ended, stop) = (to_read.clone(), ended.clone(), pool.stop.clone());
            let thread = std::thread::Builder::new()
                .name(format!("qvl-read-{number}"))
                .spawn(move || work(&to_read, &ended, &stop, Mode::of(direct)))
                .map_err(|source| Error::Thread { source })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }
}

fn work(jobs: &Receiver<Job>, done: &Sender<Done>, stop: &AtomicBool, mode: Mode) {
    for Job { request: Request { tag, extent, buffer }, since } in jobs {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let read = || window::read(&extent, mode, buffer, || !stop.load(Ordering::Relaxed));
        let result = window::guarded(&extent, read);
        if done.send(Done { tag, result, elapsed: since.elapsed() }).is_err() {
            return;
        }
    }
}

impl Engine for PreadPool {
    /// One request for each thread to read, and one that it finds when it is done.
    fn depth(&self) -> usize {
        2 * self.threads.len()
    }

    fn submit(&mut self, request: Request) {
        let Some(jobs) = &self.jobs else { return };
        if jobs.send(Job { request, since: Instant::now() }).is_ok() {
            self.in_flight += 1;
        }
    }

    fn complete(&mut self, wait: bool) -> Option<Done> {
        if self.in_flight == 0 {
            return None;
        }
        let done = if wait { self.done.recv().ok() } else { self.done.try_recv().ok() };
        self.in_flight -= usize::from(done.is_some());
        done
    }
}

impl Drop for PreadPool {
    /// Waits for the calls that are being made, not for the requests that wait for their turn.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Its panics were caught; there is nobody to tell of another.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for PreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreadPool")
            .field("threads", &self.threads.len())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// More threads than that are a slip of the keyboard.
const THREADS_MAX: usize = 1024;
