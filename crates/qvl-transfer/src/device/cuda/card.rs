//! A card and its context: made current where it is called from, with its streams and events, and the knowledge of
//! whether it is lost.

#![expect(unsafe_code, reason = "calls the driver")]

use std::ffi::c_int;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute_enum as Attribute, CUevent, CUstream};
use parking_lot::Mutex;

use super::driver::{Code, Driver, Functions, Pools, no_device};
use crate::{Error, Result};

/// A card that can be used.
pub(super) struct Card {
    driver: &'static Driver,
    context: Arc<CudaContext>,
    name: String,
    /// What the first call said that found the context broken. Nothing is called after that.
    lost: OnceLock<String>,
    /// Events that nobody waits for.
    events: Mutex<Vec<Event>>,
}

impl Card {
    /// The card of that number, with the context that all of the process share.
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let driver = Driver::get()?;
        let mut count: c_int = 0;
        // SAFETY: writes a number to `count`; the driver is initialised.
        let code = unsafe { (driver.f.device_count)(&mut count) };
        check_usable(driver, "be counted", code)?;
        let ordinal = match c_int::try_from(ordinal) {
            Ok(ordinal) if ordinal < count => ordinal,
            _ => {
                return Err(no_device(
                    format!("there is no card {ordinal}, the driver lists {count}, from 0 on"),
                    "Choose one that nvidia-smi -L lists; CUDA_VISIBLE_DEVICES may hide some and number the others",
                ));
            }
        };
        let mut device: CUdevice = 0;
        // SAFETY: writes a number to `device`.
        let code = unsafe { (driver.f.device)(&mut device, ordinal) };
        check_usable(driver, "be opened", code)?;
        let name = name(driver, device, ordinal);
        check_capability(driver, device, &name)?;
        // What this calls of the driver is there: `Driver::get` looked for it.
        let context = CudaContext::new(ordinal as usize).map_err(|error| {
            no_device(
                format!("{name} gives no context: {}", driver.f.describe(error.into())),
                "Check that its memory is not full and that its compute mode lets several programs use it \
                 (nvidia-smi)",
            )
        })?;
        Ok(Self::with(driver, context, name))
    }

    /// The card of a context that somebody else uses as well.
    pub(super) fn of(context: Arc<CudaContext>) -> Result<Self> {
        let driver = Driver::get()?;
        let device = context.cu_device();
        let name = name(driver, device, context.ordinal() as c_int);
        check_capability(driver, device, &name)?;
        Ok(Self::with(driver, context, name))
    }

    fn with(driver: &'static Driver, context: Arc<CudaContext>, name: String) -> Self {
        Self { driver, context, name, lost: OnceLock::new(), events: Mutex::new(Vec::new()) }
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn f(&self) -> &'static Functions {
        &self.driver.f
    }

    pub(super) fn pools(&self) -> Option<&'static Pools> {
        self.driver.pools.as_ref()
    }

    pub(super) fn driver_version(&self) -> String {
        self.driver.version()
    }

    /// A property of the card, 0 if the driver does not know it.
    pub(super) fn attribute(&self, attribute: Attribute) -> c_int {
        let mut value = 0;
        // SAFETY: writes a number to `value`; an attribute that the driver does not know is an error.
        let code =
            unsafe { (self.f().device_attribute)(&mut value, attribute as c_int, self.context.cu_device()) };
        if code == Code::SUCCESS { value } else { 0 }
    }

    /// Whether nothing can be done with it any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// Makes the context current on this thread until the guard is dropped, which puts another one back that was.
    ///
    /// # Errors
    /// [`Error::Device`] if the card is lost or the driver refuses.
    pub(super) fn bind(&self) -> Result<Bound<'_>> {
        if let Some(what) = self.lost.get() {
            return Err(self.error("use", what.clone(), true));
        }
        let mut before: CUcontext = std::ptr::null_mut();
        // SAFETY: writes the current context, or null, to `before`.
        self.check("look for a context", unsafe { (self.f().current)(&mut before) })?;
        let ours = self.context.cu_ctx();
        if before != ours {
            // SAFETY: `context` keeps it.
            self.check("make its context current", unsafe { (self.f().set_current)(ours) })?;
        }
        Ok(Bound { card: self, before, on_this_thread: PhantomData })
    }

    /// An error if the driver says so; notes whether the card is lost.
    pub(super) fn check(&self, operation: &'static str, code: Code) -> Result<()> {
        if code == Code::SUCCESS {
            return Ok(());
        }
        let what = self.f().describe(code);
        if code.is_lost() {
            self.lose(what.clone());
        }
        Err(self.error(operation, what, code.is_lost()))
    }

    /// Notes that the card is lost.
    pub(super) fn lose(&self, what: String) {
        // The first cause is the one to be told.
        let _ = self.lost.set(what);
    }

    fn error(&self, operation: &'static str, what: String, lost: bool) -> Error {
        Error::Device { device: self.name.clone(), operation, what, lost }
    }

    /// An event, a new one if all are in use.
    pub(super) fn event(&self, bound: &Bound<'_>) -> Result<Event> {
        if let Some(event) = self.events.lock().pop() {
            return Ok(event);
        }
        let mut event: CUevent = std::ptr::null_mut();
        // Whoever waits sleeps: a thread for each direction that spins would take two cores from the computing.
        // SAFETY: writes a handle to `event`; the context is current.
        let code = unsafe { (self.f().event_create)(&mut event, DISABLE_TIMING | BLOCKING_SYNC) };
        bound.card.check("make an event", code)?;
        Ok(Event(event))
    }

    /// Gives an event back that nobody waits for. It may be recorded still: the next one records it anew.
    pub(super) fn recycle(&self, event: Event) {
        self.events.lock().push(event);
    }

    /// Destroys the events that are not in use.
    pub(super) fn destroy_events(&self, _: &Bound<'_>) {
        for event in self.events.lock().drain(..) {
            // SAFETY: nobody else has this handle; the context is current. A refusal leaks it.
            let _ = unsafe { (self.f().event_destroy)(event.0) };
        }
    }
}

/// The proof that the context of a card is current on this thread.
pub(super) struct Bound<'a> {
    card: &'a Card,
    before: CUcontext,
    on_this_thread: PhantomData<*mut ()>,
}

impl Bound<'_> {
    /// Whether an event was reached.
    pub(super) fn is_reached(&self, event: &Event) -> Result<bool> {
        // SAFETY: the event is one of this context's, which is current.
        match unsafe { (self.card.f().event_query)(event.0) } {
            Code::NOT_READY => Ok(false),
            code => self.card.check("ask for an event", code).map(|()| true),
        }
    }

    /// Waits until an event was reached.
    pub(super) fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: as in `is_reached`.
        self.card.check("wait for an event", unsafe { (self.card.f().event_synchronize)(event.0) })
    }

    /// Records an event behind what a stream has now.
    pub(super) fn record(&self, event: &Event, stream: CUstream) -> Result<()> {
        // SAFETY: both are of this context, which is current.
        self.card.check("record an event", unsafe { (self.card.f().event_record)(event.0, stream) })
    }

    /// Makes a stream wait for an event.
    pub(super) fn hold_back(&self, stream: CUstream, event: &Event) -> Result<()> {
        // SAFETY: both are of this context, which is current.
        let code = unsafe { (self.card.f().stream_wait)(stream, event.0, 0) };
        self.card.check("make a stream wait", code)
    }

    /// Waits until a stream has done what it has.
    pub(super) fn drain(&self, stream: CUstream) -> Result<()> {
        // SAFETY: the stream is of this context, which is current.
        self.card.check("wait for a stream", unsafe { (self.card.f().stream_synchronize)(stream) })
    }

    /// What the card has free and in all, in bytes.
    pub(super) fn memory_info(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers; the context is current.
        let code = unsafe { (self.card.f().memory_info)(&mut free, &mut total) };
        self.card.check("ask for its memory", code)?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if !self.before.is_null() && self.before != self.card.context.cu_ctx() {
            // SAFETY: it was current on this thread, and is its owner's to keep. A refusal leaves ours.
            let _ = unsafe { (self.card.f().set_current)(self.before) };
        }
    }
}

/// An event of a card.
pub(super) struct Event(CUevent);

// SAFETY: a handle; the driver's functions may be called from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

/// A stream of a card that waits for no other, not even for the default one.
pub(super) struct Stream(CUstream);

// SAFETY: a handle; the driver's functions may be called from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    pub(super) fn new(card: &Card, bound: &Bound<'_>) -> Result<Self> {
        let mut stream: CUstream = std::ptr::null_mut();
        // SAFETY: writes a handle to `stream`; the context is current.
        let code = unsafe { (card.f().stream_create)(&mut stream, NON_BLOCKING) };
        bound.card.check("make a stream", code)?;
        Ok(Self(stream))
    }

    pub(super) fn handle(&self) -> CUstream {
        self.0
    }

    /// Waits for what it has and destroys it.
    pub(super) fn destroy(&self, card: &Card, bound: &Bound<'_>) {
        if bound.drain(self.0).is_ok() {
            // SAFETY: nothing is on it, and its owner is being dropped. A refusal leaks it.
            let _ = unsafe { (card.f().stream_destroy)(self.0) };
        }
    }
}

fn check_usable(driver: &Driver, what: &str, code: Code) -> Result<()> {
    if code == Code::SUCCESS {
        return Ok(());
    }
    let why = format!("the cards cannot {what}: {}", driver.f.describe(code));
    Err(no_device(why, "Check that nvidia-smi lists the card"))
}

fn check_capability(driver: &Driver, device: CUdevice, name: &str) -> Result<()> {
    let attribute = |attribute: Attribute| {
        let mut value: c_int = 0;
        // SAFETY: writes a number to `value`.
        let code = unsafe { (driver.f.device_attribute)(&mut value, attribute as c_int, device) };
        check_usable(driver, "be asked for what they can do", code).map(|()| value)
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if (major, minor) < CAPABILITY_MIN {
        return Err(no_device(
            format!(
                "{name} has compute capability {major}.{minor}, needed is {}.{} or more",
                CAPABILITY_MIN.0, CAPABILITY_MIN.1
            ),
            "Use a card of the Maxwell generation (GeForce 750, 2014) or a later one, or the host as the device",
        ));
    }
    Ok(())
}

fn name(driver: &Driver, device: CUdevice, ordinal: c_int) -> String {
    let mut bytes = [0u8; 256];
    // SAFETY: writes a text of at most so many bytes, with its zero.
    let code = unsafe { (driver.f.device_name)(bytes.as_mut_ptr().cast(), bytes.len() as c_int - 1, device) };
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    match std::str::from_utf8(text) {
        Ok(name) if code == Code::SUCCESS && !name.is_empty() => format!("{name} (cuda:{ordinal})"),
        _ => format!("cuda:{ordinal}"),
    }
}

/// Compute capability 5.0: what drivers of CUDA 12 still run on.
const CAPABILITY_MIN: (c_int, c_int) = (5, 0);

const BLOCKING_SYNC: u32 = 1;
const DISABLE_TIMING: u32 = 2;
const NON_BLOCKING: u32 = 1;
