//! A cold tier in an object store: S3, Google, Azure, a web server, a folder, memory; whatever `object_store` speaks.
//!
//! The store's futures run on one thread with a runtime of its own; callers block, with a time-out. The caller may be
//! inside another runtime or none.
//!
//! `file:///` and `memory:///` work as they are. For others enable the feature of `object_store` itself in your
//! `Cargo.toml`, which brings an HTTP client and TLS; features are shared by all who use the crate:
//!
//! ```toml
//! object_store = { version = "0.14", default-features = false, features = ["aws"] }  # or gcp, azure, http
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;
use url::Url;

use super::folder::id_of;
use super::format::{self, Compression, Header};
use super::ledger::{Ledger, Room};
use super::tally::Tally;
use super::{Cold, ColdStats, Kept, Refusal};
use crate::buffers::Buffers;
use crate::error::{Cause, Error, Result};
use crate::health::{Gate, Health, HealthSettings};
use crate::key::KeyId;
use crate::policy::Policy;

/// How long `close` waits for calls of the store that block a thread.
const SHUTDOWN: Duration = Duration::from_secs(1);

/// How much longer than its time-out a call is waited for, in case the store blocks the runtime's thread.
const GRACE: Duration = Duration::from_millis(250);

/// Settings of an [`ObjectTier`].
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct ObjectSettings {
    /// What one call may take, from asking to the last byte. 10 seconds by default.
    pub timeout: Duration,
    /// When the store is held to be down.
    pub health: HealthSettings,
    /// How long a key that the store does not have is taken to be absent without asking again. 5 seconds by default; 0
    /// asks every time.
    pub absent_for: Duration,
    /// How many such keys are remembered, at some 100 bytes each. 100,000 by default.
    pub absent_max: u64,
    /// What the values are of: model, settings. Tiers with different fingerprints lie beside each other and do not see
    /// each other's values. Empty by default.
    pub fingerprint: String,
    /// Larger values are refused, and not read. 1 GiB by default.
    pub value_bytes_max: u64,
    /// Bytes of buffers that are kept for the next value to be decompressed. 64 MiB by default.
    pub buffer_bytes_max: usize,
    /// What compression is decided by; `None` stores all values as they are. [`Link::NETWORK`](super::compress::Link) by
    /// default.
    #[cfg(feature = "compression")]
    pub link: Option<super::compress::Link>,
    /// What [`ObjectTier::open`] hands to the store: keys and values as `object_store` documents them for S3 and others,
    /// like `("aws_region", "eu-central-1")`. For credentials from the environment give it `std::env::vars()`: what it
    /// does not know it leaves alone. Empty by default.
    pub options: Vec<(String, String)>,
}

impl Default for ObjectSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            health: HealthSettings::default(),
            absent_for: Duration::from_secs(5),
            absent_max: 100_000,
            fingerprint: String::new(),
            value_bytes_max: 1 << 30,
            buffer_bytes_max: 64 << 20,
            #[cfg(feature = "compression")]
            link: Some(super::compress::Link::NETWORK),
            options: Vec::new(),
        }
    }
}

/// A cold tier in an object store.
///
/// A value is one object, `PREFIX/v1-FINGERPRINT/ID`, in the same format as in a folder. Without a
/// [budget](Self::with_budget) nothing is ever removed to make room: old objects are for a lifecycle rule of the bucket.
///
/// A call that fails or takes longer than its time-out is an error that names the URL. After some in a row the tier is
/// held to be down and calls fail at once, until a back-off has passed and one is tried again.
///
/// ```
/// use qvl_cache::cold::Cold;
/// use qvl_cache::cold::object::{ObjectSettings, ObjectTier};
///
/// let tier = ObjectTier::open("memory:///embeddings", ObjectSettings::default())?;
/// tier.put(b"picture", &bytes::Bytes::from_static(b"numbers"), 0.5)?;
/// assert_eq!(tier.get(b"picture")?.as_deref(), Some(&b"numbers"[..]));
/// # Ok::<(), qvl_cache::Error>(())
/// ```
pub struct ObjectTier {
    name: String,
    store: Arc<dyn ObjectStore>,
    folder: Path,
    settings: ObjectSettings,
    runtime: Mutex<Option<Runtime>>,
    handle: tokio::runtime::Handle,
    opened: Instant,
    health: Mutex<Health>,
    absent: moka::sync::Cache<KeyId, ()>,
    /// Values put so far: tells a get whether one came while it was asking.
    puts: AtomicU64,
    /// Whether the store can put an object only if there is none.
    creates: AtomicBool,
    ledger: Option<Mutex<Ledger>>,
    buffers: Buffers,
    tally: Tally,
    closed: AtomicBool,
}

impl ObjectTier {
    /// Opens the store that a URL names: `memory:///prefix`, `file:///folder`, `s3://bucket/prefix` and so on.
    ///
    /// Asks the store nothing: one that cannot be reached is found at the first call.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if the URL is none, or no store that this program was built with.
    pub fn open(url: &str, settings: ObjectSettings) -> Result<Self> {
        let refused = |reason: String| Error::Setting { name: "url", value: without_password(url), reason };
        let parsed = Url::parse(url).map_err(|error| {
            refused(format!("{error}; expected something like s3://bucket/prefix or file:///folder"))
        })?;
        let options = settings.options.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let (store, prefix) = object_store::parse_url_opts(&parsed, options).map_err(|error| {
            refused(format!(
                "{error}; stores other than file:/// and memory:/// are features of object_store"
            ))
        })?;
        Self::start(without_password(url), Arc::from(store), prefix, settings)
    }

    /// A store that the caller built, and a prefix in it.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if the prefix is no path of an object; [`Error::Tier`] if no thread can be started.
    pub fn with_store(store: Arc<dyn ObjectStore>, prefix: &str, settings: ObjectSettings) -> Result<Self> {
        let path = Path::parse(prefix).map_err(|error| Error::Setting {
            name: "prefix",
            value: prefix.to_owned(),
            reason: format!("{error}"),
        })?;
        Self::start(format!("{store}, {prefix}"), store, path, settings)
    }

    /// Gives the tier a budget in bytes, and lists what is there to count it. `policy` decides who leaves; the values
    /// found are given to it in the order in which they were written.
    ///
    /// Only what this process puts and removes is counted after that, so give each process a prefix of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Tier`] if the store cannot be listed within the time-out.
    pub fn with_budget(mut self, budget_bytes: u64, policy: Box<dyn Policy>) -> Result<Self> {
        let folder = self.folder.clone();
        let listed =
            self.call("list", move |store| async move { store.list_with_delimiter(Some(&folder)).await })?;
        let listed = listed.map_err(|error| self.tier_error("list", error.into()))?;
        let mut objects: Vec<_> = listed
            .objects
            .into_iter()
            .filter_map(|object| {
                Some((id_of(object.location.filename()?)?, object.size, object.last_modified))
            })
            .collect();
        objects.sort_by_key(|&(id, _, written)| (written, id));
        let mut ledger = Ledger::new(policy, budget_bytes);
        let leaving = ledger.load(objects.iter().map(|&(id, bytes, _)| (id, bytes, 0.0)));
        self.ledger = Some(Mutex::new(ledger));
        self.remove_objects(&leaving)?;
        Ok(self)
    }

    /// Whether calls fail at once at the moment, since the store failed.
    pub fn down(&self) -> bool {
        self.health.lock().down()
    }

    fn start(
        name: String,
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        settings: ObjectSettings,
    ) -> Result<Self> {
        let no_thread = |source: std::io::Error| Error::Tier {
            tier: name.clone(),
            operation: "starting its thread",
            source: source.into(),
        };
        let (runtime, handle) = Runtime::start().map_err(no_thread)?;
        let fingerprint = twox_hash::XxHash3_64::oneshot(settings.fingerprint.as_bytes());
        let folder = prefix.join(format!("v{}-{fingerprint:016x}", format::VERSION));
        let absent = moka::sync::Cache::builder()
            .max_capacity(if settings.absent_for.is_zero() { 0 } else { settings.absent_max })
            .time_to_live(settings.absent_for.max(Duration::from_millis(1)))
            .build();
        Ok(Self {
            folder,
            runtime: Mutex::new(Some(runtime)),
            handle,
            opened: Instant::now(),
            health: Mutex::new(Health::new(settings.health)),
            absent,
            puts: AtomicU64::new(0),
            creates: AtomicBool::new(true),
            ledger: None,
            buffers: Buffers::new(settings.buffer_bytes_max),
            tally: Tally::default(),
            closed: AtomicBool::new(false),
            name,
            store,
            settings,
        })
    }

    /// Runs a call on the store's thread and waits for its answer; whatever the store answers is an answer, and
    /// `answer` says whether it is one of a store that works.
    fn call<T, F>(
        &self,
        operation: &'static str,
        ask: impl FnOnce(Arc<dyn ObjectStore>) -> F,
    ) -> Result<object_store::Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = object_store::Result<T>> + Send + 'static,
    {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let gate = self.health.lock().ask(self.opened.elapsed());
        if let Gate::Skip { retry_in } = gate {
            self.tally.skipped();
            let failures = self.health.lock().failures();
            return Err(self.tier_error(operation, Skipped { failures, retry_in }.into()));
        }
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let timeout = self.settings.timeout;
        let asked = ask(Arc::clone(&self.store));
        self.handle.spawn(async move {
            // Nobody waits for the answer any more if sending fails.
            if let Ok(answer) = tokio::time::timeout(timeout, asked).await {
                let _ = sender.send(answer);
            }
        });
        // The sender is dropped without an answer when the time-out passed, or the store panicked.
        let answer = receiver.recv_timeout(timeout.saturating_add(GRACE));
        match &answer {
            Ok(Ok(_)) => self.health.lock().succeeded(),
            Ok(Err(error)) if is_answer(error) => self.health.lock().succeeded(),
            Ok(Err(_)) | Err(_) => {
                self.health.lock().failed(self.opened.elapsed());
                self.tally.error();
            }
        }
        answer.map_err(|_| {
            self.tally.timeout();
            self.tier_error(operation, NoAnswer { timeout }.into())
        })
    }

    fn tier_error(&self, operation: &'static str, source: Cause) -> Error {
        Error::Tier { tier: self.name.clone(), operation, source }
    }

    fn location(&self, id: KeyId) -> Path {
        self.folder.clone().join(id.to_string())
    }

    fn delete(&self, id: KeyId) -> Result<()> {
        let location = self.location(id);
        match self.call("remove", move |store| async move { store.delete(&location).await })? {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.tier_error("remove", error.into())),
        }
    }

    /// Removes the objects of values that left. The first failure is returned after all were tried.
    fn remove_objects(&self, leaving: &[KeyId]) -> Result<()> {
        self.tally.evicted(leaving.len() as u64);
        let mut first = Ok(());
        for &id in leaving {
            let removed = self.delete(id);
            first = first.and(removed);
        }
        first
    }

    /// The object of an id: `Some(None)` if it is larger than a value may be.
    fn fetch(&self, id: KeyId, key_bytes: usize) -> Result<Option<Option<Bytes>>> {
        let location = self.location(id);
        let lead_max = (format::HEADER_BYTES + key_bytes).next_multiple_of(format::ALIGN_BYTES) as u64;
        let bytes_max = self.settings.value_bytes_max.saturating_add(lead_max);
        let answer = self.call("get", move |store| async move {
            let found = store.get(&location).await?;
            // Checked before a byte of it is fetched.
            if found.meta.size > bytes_max { Ok(None) } else { found.bytes().await.map(Some) }
        })?;
        match answer {
            Ok(object) => Ok(Some(object)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.tier_error("get", error.into())),
        }
    }

    /// Writes an object. `false` if there was one.
    fn write(&self, id: KeyId, payload: PutPayload) -> Result<bool> {
        let create = self.creates.load(Ordering::Relaxed);
        let mode = if create { PutMode::Create } else { PutMode::Overwrite };
        let (location, again) = (self.location(id), payload.clone());
        let answer = self.call("put", move |store| async move {
            store.put_opts(&location, again, PutOptions::from(mode)).await
        })?;
        match answer {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. })
                if create =>
            {
                // Some stores cannot do that; writing the same value again is right too, and only slower.
                self.creates.store(false, Ordering::Relaxed);
                self.write(id, payload)
            }
            Err(error) => Err(self.tier_error("put", error.into())),
        }
    }

    fn remember_absent(&self, id: KeyId, puts_before: u64) {
        if self.settings.absent_for.is_zero() {
            return;
        }
        self.absent.insert(id, ());
        // A put counts itself, then forgets the key: whichever of the two comes second sees the other.
        if self.puts.load(Ordering::SeqCst) != puts_before {
            self.absent.invalidate(&id);
        }
    }

    #[cfg(feature = "compression")]
    fn compress(&self, value: &[u8]) -> Option<(Compression, Vec<u8>)> {
        super::compress::compress_if_it_pays(value, Default::default(), self.settings.link?)
    }

    #[cfg(not(feature = "compression"))]
    fn compress(&self, _: &[u8]) -> Option<(Compression, Vec<u8>)> {
        None
    }

    fn refused(&self, why: Refusal) -> Result<Kept> {
        self.tally.refused();
        Ok(Kept::Refused(why))
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }
}

impl Cold for ObjectTier {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.check_open()?;
        let id = KeyId::of(key);
        let entry = self.ledger.as_ref().map(|ledger| ledger.lock().ask(id));
        if matches!(entry, Some(None)) || self.absent.contains_key(&id) {
            self.tally.known_absent();
            self.tally.miss();
            return Ok(None);
        }
        let generation = entry.flatten().map(|entry| entry.generation);
        let puts_before = self.puts.load(Ordering::SeqCst);
        let Some(object) = self.fetch(id, key.len())? else {
            if let Some(ledger) = &self.ledger {
                ledger.lock().forget(id, generation);
            }
            self.remember_absent(id, puts_before);
            self.tally.miss();
            return Ok(None);
        };
        let opened = object
            .ok_or(format::Damage::TooLarge)
            .and_then(|object| format::open(&object, key, self.settings.value_bytes_max, &self.buffers));
        match opened {
            Ok((value, cost)) => {
                if let (Some(ledger), Some(generation)) = (&self.ledger, generation) {
                    ledger.lock().learn(id, generation, cost);
                }
                self.tally.hit(value.len() as u64);
                Ok(Some(value))
            }
            Err(_damage) => {
                self.tally.damaged();
                self.tally.miss();
                if let Some(ledger) = &self.ledger {
                    ledger.lock().forget(id, generation);
                }
                // If it cannot be removed, the next get finds it damaged again.
                let _ = self.delete(id);
                Ok(None)
            }
        }
    }

    fn put(&self, key: &[u8], value: &Bytes, cost: f32) -> Result<Kept> {
        self.check_open()?;
        let id = KeyId::of(key);
        let value_bytes = value.len() as u64;
        if value_bytes > self.settings.value_bytes_max {
            return self.refused(Refusal::TooLarge);
        }
        if self.ledger.as_ref().is_some_and(|ledger| ledger.lock().contains(id)) {
            return Ok(Kept::AlreadyThere);
        }
        let (compression, stored) = match self.compress(value) {
            Some((compression, stored)) => (compression, Bytes::from(stored)),
            None => (Compression::None, value.clone()),
        };
        let Some(header) = Header::new(key, compression, &stored, value_bytes, cost) else {
            return self.refused(Refusal::TooLarge);
        };
        let payload: PutPayload = [Bytes::from(header.encode(key)), stored].into_iter().collect();
        let mut generation = None;
        if let Some(ledger) = &self.ledger {
            let room = ledger.lock().make_room(id, header.file_bytes(), cost);
            match room {
                Room::Taken { generation: taken, leaving } => {
                    generation = Some(taken);
                    if let Err(error) = self.remove_objects(&leaving) {
                        ledger.lock().forget(id, generation);
                        return Err(error);
                    }
                }
                Room::AlreadyThere => return Ok(Kept::AlreadyThere),
                Room::TooLarge => return self.refused(Refusal::TooLarge),
                Room::NotWorthIt { leaving } => {
                    self.remove_objects(&leaving)?;
                    return self.refused(Refusal::NotWorthIt);
                }
            }
        }
        let written = self.write(id, payload);
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.absent.invalidate(&id);
        if let (Some(ledger), Some(generation)) = (&self.ledger, generation) {
            match &written {
                Ok(_) => match ledger.lock().commit(id, generation) {
                    Some(leaving) => self.remove_objects(&leaving)?,
                    // Removed while it was written: by its key, so the object goes too.
                    None => self.delete(id)?,
                },
                Err(_) => _ = ledger.lock().forget(id, Some(generation)),
            }
        }
        if !written? {
            return Ok(Kept::AlreadyThere);
        }
        self.tally.put(value_bytes, header.file_bytes());
        Ok(Kept::Stored)
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        self.check_open()?;
        let id = KeyId::of(key);
        if let Some(ledger) = &self.ledger {
            ledger.lock().forget(id, None);
        }
        self.delete(id)
    }

    fn writable(&self) -> bool {
        true
    }

    fn contains(&self, key: &[u8]) -> Result<bool> {
        self.check_open()?;
        let id = KeyId::of(key);
        if let Some(ledger) = &self.ledger {
            return Ok(ledger.lock().contains(id));
        }
        if self.absent.contains_key(&id) {
            return Ok(false);
        }
        let location = self.location(id);
        let puts_before = self.puts.load(Ordering::SeqCst);
        match self.call("look up", move |store| async move { store.head(&location).await })? {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => {
                self.remember_absent(id, puts_before);
                Ok(false)
            }
            Err(error) => Err(self.tier_error("look up", error.into())),
        }
    }

    /// Does nothing: a put returns when the store has the object.
    fn flush(&self) -> Result<()> {
        self.check_open()
    }

    /// Without a budget, does nothing.
    fn resize(&self, budget_bytes: u64) -> Result<()> {
        self.check_open()?;
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let leaving = ledger.lock().shrink(Some(budget_bytes));
        self.remove_objects(&leaving)
    }

    fn stats(&self) -> ColdStats {
        let counted = self.tally.snapshot();
        let Some(ledger) = &self.ledger else { return counted };
        let ledger = ledger.lock();
        ColdStats {
            values: ledger.values(),
            bytes: ledger.bytes(),
            budget_bytes: Some(ledger.budget_bytes()),
            ..counted
        }
    }

    fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        // Ends the thread, and waits for it.
        drop(self.runtime.lock().take());
        Ok(())
    }
}

/// Whether a store that works says this.
fn is_answer(error: &object_store::Error) -> bool {
    use object_store::Error::{AlreadyExists, NotFound, NotImplemented, NotSupported, Precondition};
    matches!(
        error,
        AlreadyExists { .. }
            | NotFound { .. }
            | NotImplemented { .. }
            | NotSupported { .. }
            | Precondition { .. }
    )
}

/// A URL as messages show it. One that does not parse is cut before what may be a password.
fn without_password(url: &str) -> String {
    match Url::parse(url) {
        Ok(mut parsed) => {
            if parsed.password().is_some() {
                // Fails only for URLs that have none.
                let _ = parsed.set_password(Some("***"));
            }
            parsed.set_query(None);
            parsed.into()
        }
        Err(_) => url.rsplit_once('@').map_or(url, |(_, host)| host).to_owned(),
    }
}

/// A call was not answered.
#[derive(Debug, thiserror::Error)]
#[error(
    "no answer within {timeout:?}; check that the store can be reached from here, or give it longer with `timeout`"
)]
struct NoAnswer {
    timeout: Duration,
}

/// A call was not made.
#[derive(Debug, thiserror::Error)]
#[error("not tried: {failures} calls in a row failed; the next is tried in {retry_in:.1?}")]
struct Skipped {
    failures: u32,
    retry_in: Duration,
}

/// The thread that the store's futures run on; ends when dropped.
struct Runtime {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Runtime {
    fn start() -> std::io::Result<(Self, tokio::runtime::Handle)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("qvl-cache-object".into()).spawn(move || {
            // An error is that the sender is gone, which says the same.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_timeout(SHUTDOWN);
        })?;
        Ok((Self { stop: Some(stop), thread: Some(thread) }, handle))
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It ends by itself; a panic in it has nobody to tell.
            let _ = thread.join();
        }
    }
}
