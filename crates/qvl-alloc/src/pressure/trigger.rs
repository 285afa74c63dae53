//! What the kernel is asked to wake the watch for.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::event::{EventfdFlags, PollFlags, eventfd};

use super::{Draft, Groups, MEMINFO, PSI, Pressure, parse, used_at};
use crate::{Error, Result};

/// A descriptor that becomes ready when memory gets short.
pub(super) struct Trigger {
    kind: Kind,
    /// What it is, for [`How`](super::How).
    pub(super) what: String,
}

enum Kind {
    /// The kernel forgets a PSI trigger when its file is closed.
    Psi(File),
    Events(File),
    Threshold {
        event: OwnedFd,
        _usage: File,
    },
}

impl Trigger {
    pub(super) fn fd(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.kind {
            Kind::Psi(file) | Kind::Events(file) => (file.as_fd(), PollFlags::PRI),
            Kind::Threshold { event, .. } => (event.as_fd(), PollFlags::IN),
        }
    }

    /// Takes note of what made it ready, so that it is not ready any more. False if it never will be again.
    pub(super) fn taken(&mut self, ready: PollFlags) -> bool {
        match &mut self.kind {
            // An error says that the group is gone.
            Kind::Psi(_) => !ready.intersects(PollFlags::ERR | PollFlags::NVAL),
            // Here an error is part of what a change looks like; it is ready until it was read.
            Kind::Events(file) => {
                let mut text = [0; 512];
                file.seek(SeekFrom::Start(0)).and_then(|_| file.read(&mut text)).is_ok()
            }
            Kind::Threshold { event, .. } => rustix::io::read(&*event, &mut [0; 8]).is_ok(),
        }
    }
}

/// All that can be had here, and why others cannot. `low` and `critical` are shares that should wake.
pub(super) fn triggers(pressure: &Pressure, shares: [f64; 2]) -> (Vec<Trigger>, Vec<Error>) {
    let mut found = Vec::new();
    let mut refused = Vec::new();
    let mut keep = |got: Result<Trigger>| match got {
        Ok(trigger) => found.push(trigger),
        Err(error) => refused.push(error),
    };
    let system = &*pressure.system;
    let mut draft = Draft { system, sources: Vec::new() };
    let machine = draft.take(super::SourceKind::Machine, Path::new(MEMINFO), parse::meminfo);
    let machine_bytes = machine.map_or(u64::MAX, |machine| machine.total_bytes);
    let mut group_psi = None;
    match pressure.groups(&mut draft) {
        Some(Groups::V2(levels)) => {
            if let Some(own) = levels.first() {
                let pressure = own.join("memory.pressure");
                group_psi = system.read(&pressure).is_ok().then_some(pressure);
                for level in levels.iter().filter(|level| system.read(&level.join("memory.events")).is_ok()) {
                    keep(events(system, &level.join("memory.events")));
                }
            }
        }
        Some(Groups::V1(levels)) => {
            for level in levels {
                let file = level.join("memory.limit_in_bytes");
                let limit = system.read(&file).ok();
                let limit =
                    limit.and_then(|text| parse::limit(&file, "memory.limit_in_bytes", &text).ok()).flatten();
                if let Some(limit) = limit.filter(|limit| *limit < machine_bytes) {
                    for share in shares {
                        keep(threshold(system, &level, used_at(limit, share)));
                    }
                }
            }
        }
        None => {}
    }
    keep(psi(system, group_psi.as_deref().unwrap_or(Path::new(PSI))));
    (found, refused)
}

fn real(system: &dyn super::System, path: &Path) -> Result<std::path::PathBuf> {
    system.real(path).ok_or_else(|| {
        let source =
            io::Error::new(io::ErrorKind::Unsupported, "the machine is not the one that this runs on");
        Error::File { path: path.to_owned(), source }
    })
}

fn psi(system: &dyn super::System, path: &Path) -> Result<Trigger> {
    let path = real(system, path)?;
    let mut refused = None;
    for text in PSI_TRIGGERS {
        // Each file takes one trigger.
        let set = OpenOptions::new().read(true).write(true).custom_flags(nonblock()).open(&path).and_then(
            |mut file| {
                // The kernel puts an end over the last byte.
                file.write_all(format!("{text}\0").as_bytes())?;
                Ok(file)
            },
        );
        match set {
            Ok(file) => {
                return Ok(Trigger { kind: Kind::Psi(file), what: format!("{text} in {}", path.display()) });
            }
            Err(error) => refused = Some(error),
        }
    }
    Err(Error::System {
        operation: "a trigger",
        what: path.display().to_string(),
        source: refused.unwrap_or_else(|| io::ErrorKind::Unsupported.into()),
        remedy: "It is looked at intervals instead. Triggers need Linux 6.1, or CAP_SYS_RESOURCE, and a file that can \
                 be written",
    })
}

fn events(system: &dyn super::System, path: &Path) -> Result<Trigger> {
    let path = real(system, path)?;
    let mut file = File::open(&path).map_err(|source| Error::File { path: path.clone(), source })?;
    // Ready from the first change after this.
    let mut text = [0; 512];
    _ = file.read(&mut text).map_err(|source| Error::File { path: path.clone(), source })?;
    Ok(Trigger { kind: Kind::Events(file), what: format!("changes of {}", path.display()) })
}

/// Version 1 tells when the usage of a group crosses a number of bytes.
fn threshold(system: &dyn super::System, level: &Path, bytes: u64) -> Result<Trigger> {
    let usage = real(system, &level.join("memory.usage_in_bytes"))?;
    let control = real(system, &level.join("cgroup.event_control"))?;
    let set = || {
        let file = File::open(&usage)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let text = format!("{} {} {bytes}", event.as_raw_fd(), file.as_raw_fd());
        OpenOptions::new().write(true).open(&control)?.write_all(text.as_bytes())?;
        Ok((event, file))
    };
    match set() {
        Ok((event, usage_file)) => Ok(Trigger {
            kind: Kind::Threshold { event, _usage: usage_file },
            what: format!("{bytes} bytes in {}", usage.display()),
        }),
        Err(source) => Err(Error::System {
            operation: "a threshold",
            what: usage.display().to_string(),
            source,
            remedy: "It is looked at intervals instead. Let this process write cgroup.event_control beside it",
        }),
    }
}

fn nonblock() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits() as i32
}

/// Microseconds that some task waited within a window: the first with the right to any window, the second for all.
const PSI_TRIGGERS: [&str; 2] = ["some 50000 1000000", "some 100000 2000000"];
