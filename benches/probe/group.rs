//! A limit of memory for this process alone.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// A control group of memory with only this process in it, removed at the end; or none where one cannot be made.
pub(crate) struct Group {
    path: Option<PathBuf>,
    kind: &'static str,
}

impl Group {
    /// Makes the group and moves this process into it.
    ///
    /// # Errors
    /// If none can be made here.
    pub(crate) fn enter(limit: u64) -> Result<Self> {
        let name = format!("qvl-bench-{}", std::process::id());
        let roots = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "control group of version 1"),
            ("/sys/fs/cgroup", "memory.max", "control group of version 2"),
        ];
        for (root, file, kind) in roots {
            let path = Path::new(root).join(&name);
            if std::fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self { path: Some(path.clone()), kind };
            let set = std::fs::write(path.join(file), limit.to_string())
                .and_then(|()| std::fs::write(path.join("cgroup.procs"), std::process::id().to_string()));
            if set.is_ok() {
                return Ok(group);
            }
        }
        bail!("no control group of memory can be made here: run as root, or where one is delegated")
    }

    /// What it is, for a remark.
    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Some(root) = path.parent()
        {
            // Back to where processes are by default; a group with a process in it cannot be removed.
            let _ = std::fs::write(root.join("cgroup.procs"), std::process::id().to_string());
            let _ = std::fs::remove_dir(path);
        }
    }
}
