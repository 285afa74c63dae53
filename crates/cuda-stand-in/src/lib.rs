//! A stand-in for the driver of CUDA: the functions of libcuda that cudarc and qvl-transfer call, on a card that is
//! host memory.
//!
//! It is made to find mistakes, not to be fast. Streams are threads, so copies do go on after their call; memory of the
//! card has addresses that are nobody else's, so that a wild or late copy is found; and whoever uses memory that
//! another stream may still use, or frees it too early, is counted (see [`work`]). Memory that the card is to write to
//! is spoiled when the copy is called, so that a look before its end sees nothing right.
//!
//! What the card is comes from the environment (see [`world::Config`]); faults are set and counts are read through the
//! three functions at the end, which a real driver does not have.

#![expect(unsafe_code, reason = "a C interface: callers hand in addresses to write to")]

mod memory;
mod work;
mod world;

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use memory::HostKind;
use work::Way;
use world::{Code, Outcome, State, world};

type Handle = *mut c_void;

thread_local! {
    /// The context that is current on a thread: the number of its card and one.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Contexts are addresses of nothing.
const CONTEXT: usize = 0x1000;

fn code(outcome: Outcome) -> c_int {
    outcome.err().map_or(0, |code| code.0)
}

/// Runs a call that needs no context.
fn plain(call: impl FnOnce(&mut State) -> Outcome) -> c_int {
    code(world().and_then(|world| call(&mut world.lock())))
}

/// Runs a call in the context that is current; gives it the number of the card.
fn with_card(call: impl FnOnce(&mut State, usize) -> Outcome) -> c_int {
    plain(|state| {
        let card = current(state)?;
        call(state, card)
    })
}

fn current(state: &State) -> Outcome<usize> {
    state.check()?;
    match CURRENT.get() {
        0 => Err(Code::INVALID_CONTEXT),
        current if state.is_retained(current - 1) => Ok(current - 1),
        _ => Err(Code::CONTEXT_IS_DESTROYED),
    }
}

/// Writes a result to where the caller wants it.
///
/// # Safety
/// `to` is null or can be written.
unsafe fn give<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

// Of the driver

#[unsafe(no_mangle)]
extern "C" fn cuInit(_: c_uint) -> c_int {
    plain(|state| if state.config().cards == 0 { Err(Code::NO_DEVICE) } else { Ok(()) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    plain(|state| unsafe { give(version, state.config().version) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: c_int, name: *mut *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    code(unsafe { give(name, Code(error).name().as_ptr()) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(_: c_int, text: *mut *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    code(unsafe { give(text, c"said by the stand-in".as_ptr()) })
}

// Of cards and contexts

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    plain(|state| unsafe { give(count, state.config().cards as c_int) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> c_int {
    plain(|state| {
        if usize::try_from(ordinal).is_ok_and(|ordinal| ordinal < state.config().cards) {
            // SAFETY: the caller's promise.
            unsafe { give(device, ordinal) }
        } else {
            Err(Code::INVALID_DEVICE)
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, _: c_int) -> c_int {
    let text = c"Stand-in".to_bytes_with_nul();
    let len = text.len().min(len.max(0) as usize);
    // SAFETY: the caller's promise that `len` bytes can be written.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, len) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _: c_int) -> c_int {
    plain(|state| {
        let config = state.config();
        let found = match attribute {
            75 => config.capability.0,
            76 => config.capability.1,
            113 => c_int::from(config.read_only_registration),
            115 => c_int::from(config.pools),
            _ => 0,
        };
        // SAFETY: the caller's promise.
        unsafe { give(value, found) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _: c_int) -> c_int {
    // SAFETY: the caller's promise.
    plain(|state| unsafe { give(bytes, state.config().memory_bytes) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) -> c_int {
    plain(|state| {
        let card = usize::try_from(device).map_err(|_| Code::INVALID_DEVICE)?;
        state.retain(card)?;
        // SAFETY: the caller's promise.
        unsafe { give(context, ((card + 1) * CONTEXT) as Handle) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> c_int {
    plain(|state| state.release(usize::try_from(device).map_err(|_| Code::INVALID_DEVICE)?))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> c_int {
    // SAFETY: the caller's promise.
    code(unsafe { give(context, (CURRENT.get() * CONTEXT) as Handle) })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: Handle) -> c_int {
    plain(|state| {
        let number = context as usize / CONTEXT;
        if number > 0 && !state.is_retained(number - 1) {
            return Err(Code::INVALID_CONTEXT);
        }
        CURRENT.set(number);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> c_int {
    code(world().and_then(|world| {
        let mut state = world.lock();
        let card = current(&state)?;
        for mark in state.last_marks(card) {
            state = world.wait_for(state, &mark)?;
        }
        Ok(())
    }))
}

// Of the card's memory

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> c_int {
    with_card(|state, card| {
        let all = state.config().memory_bytes;
        // SAFETY: the caller's promise.
        unsafe { give(free, all - state.card_bytes(card))? };
        // SAFETY: the caller's promise.
        unsafe { give(total, all) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> c_int {
    // SAFETY: the caller's promise.
    with_card(|state, card| unsafe { give(address, state.allocate(card, bytes, None)?) })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> c_int {
    with_card(|state, _| state.free(address))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolCreate(pool: *mut Handle, properties: *const c_void) -> c_int {
    with_card(|state, card| {
        if properties.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller's promise.
        unsafe { give(pool, state.pool_create(card) as Handle) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolDestroy(pool: Handle) -> c_int {
    with_card(|state, _| state.pool_destroy(pool as usize))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolTrimTo(pool: Handle, keep: usize) -> c_int {
    with_card(|state, _| state.pool_trim(pool as usize, keep))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolSetAttribute(pool: Handle, attribute: c_int, value: *const c_void) -> c_int {
    with_card(|state, _| {
        if attribute != RELEASE_THRESHOLD || value.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: this attribute is a number of 64 bits, and the caller's promise.
        state.pool(pool as usize)?.threshold = unsafe { value.cast::<u64>().read_unaligned() };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemPoolGetAttribute(pool: Handle, attribute: c_int, value: *mut c_void) -> c_int {
    with_card(|state, _| {
        let pool = state.pool(pool as usize)?;
        let found = match attribute {
            RELEASE_THRESHOLD => pool.threshold,
            RESERVED_CURRENT => pool.reserved_bytes as u64,
            USED_CURRENT => pool.used_bytes as u64,
            _ => return Err(Code::INVALID_VALUE),
        };
        // SAFETY: these attributes are numbers of 64 bits, and the caller's promise.
        unsafe { give(value.cast::<u64>(), found) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocFromPoolAsync(
    address: *mut u64,
    bytes: usize,
    pool: Handle,
    stream: Handle,
) -> c_int {
    with_card(|state, card| {
        let stream = state.stream_of(card, stream as usize)?;
        let found = state.allocate(card, bytes, Some((pool as usize, stream)))?;
        // SAFETY: the caller's promise.
        unsafe { give(address, found) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: Handle) -> c_int {
    with_card(|state, card| {
        let stream = state.stream_of(card, stream as usize)?;
        let pool = state.default_pool(card);
        let found = state.allocate(card, bytes, Some((pool, stream)))?;
        // SAFETY: the caller's promise.
        unsafe { give(address, found) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> c_int {
    with_card(|state, card| {
        let stream = state.stream_of(card, stream as usize)?;
        state.free_on(address, stream)
    })
}

// Of the host's memory

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(address: *mut Handle, bytes: usize, flags: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    with_card(|state, _| unsafe { give(address, state.host_allocate(bytes, flags)? as Handle) })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: Handle) -> c_int {
    with_card(|state, _| state.host_forget(address as usize, |kind| matches!(kind, HostKind::Made { .. })))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(address: Handle, bytes: usize, flags: c_uint) -> c_int {
    with_card(|state, _| state.host_register(address as usize, bytes, flags))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(address: Handle) -> c_int {
    with_card(|state, _| state.host_forget(address as usize, |kind| matches!(kind, HostKind::Registered)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostGetFlags(flags: *mut c_uint, address: Handle) -> c_int {
    // SAFETY: the caller's promise.
    with_card(|state, _| unsafe { give(flags, state.host_flags(address as usize)?) })
}

// Copies

/// Copies `bytes` bytes; waits for the end where a driver would, or if it is told to.
///
/// # Safety
/// The host's side can be read or written, until the copy has ended.
unsafe fn copy(way: Way, host: usize, address: u64, bytes: usize, stream: Handle, wait: bool) -> c_int {
    code(world().and_then(|world| {
        let mut state = world.lock();
        let card = current(&state)?;
        let stream = state.stream_of(card, stream as usize)?;
        // SAFETY: the caller's promise.
        let (mark, ends_first) = unsafe { state.copy(way, host, address, bytes, stream)? };
        if wait || ends_first {
            drop(world.wait_for(state, &mark)?);
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    stream: Handle,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { copy(Way::In, from as usize, to, bytes, stream, false) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Handle) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { copy(Way::Out, to as usize, from, bytes, stream, false) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { copy(Way::In, from as usize, to, bytes, std::ptr::null_mut(), true) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { copy(Way::Out, to as usize, from, bytes, std::ptr::null_mut(), true) }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) -> c_int {
    with_card(|state, card| {
        let stream = state.stream_of(card, stream as usize)?;
        state.copy_within(to, from, bytes, stream)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: Handle) -> c_int {
    with_card(|state, card| {
        let stream = state.stream_of(card, stream as usize)?;
        state.fill(to, value, bytes, stream)
    })
}

// Streams and events

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, _: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    with_card(|state, card| unsafe { give(stream, state.stream_create(card)? as Handle) })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: Handle) -> c_int {
    with_card(|state, card| {
        let stream = state.stream_of(card, stream as usize)?;
        state.stream_destroy(stream)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: Handle) -> c_int {
    code(world().and_then(|world| {
        let mut state = world.lock();
        let card = current(&state)?;
        let stream = state.stream_of(card, stream as usize)?;
        let mark = state.last_mark(stream);
        drop(world.wait_for(state, &mark)?);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: Handle) -> c_int {
    with_card(|state, card| {
        let stream = state.stream_of(card, stream as usize)?;
        let mark = state.last_mark(stream);
        if state.see(&mark) { Ok(()) } else { Err(Code::NOT_READY) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _: c_uint) -> c_int {
    with_card(|state, card| {
        let stream = state.stream_of(card, stream as usize)?;
        state.hold_back(stream, event as usize)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut Handle, _: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    with_card(|state, card| unsafe { give(event, state.event_create(card) as Handle) })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> c_int {
    with_card(|state, card| {
        let stream = state.stream_of(card, stream as usize)?;
        state.event_record(event as usize, stream)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: Handle) -> c_int {
    with_card(|state, _| match state.event_mark(event as usize)? {
        Some(mark) if !state.see(&mark) => Err(Code::NOT_READY),
        _ => Ok(()),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: Handle) -> c_int {
    code(world().and_then(|world| {
        let state = world.lock();
        current(&state)?;
        if let Some(mark) = state.event_mark(event as usize)? {
            drop(world.wait_for(state, &mark)?);
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: Handle) -> c_int {
    with_card(|state, _| state.event_destroy(event as usize))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, start: Handle, end: Handle) -> c_int {
    with_card(|state, _| {
        let elapsed = state.event_time(end as usize)? - state.event_time(start as usize)?;
        // SAFETY: the caller's promise.
        unsafe { give(ms, elapsed.as_secs_f32() * 1e3) }
    })
}

// Beyond the driver

/// Sets a fault or a speed; [`State::set`] lists the names. Returns an error for another name.
#[unsafe(no_mangle)]
unsafe extern "C" fn qvl_stand_in_set(name: *const c_char, value: u64) -> c_int {
    // SAFETY: the caller's promise that it is a text with its zero.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    plain(|state| state.set(&name, value))
}

/// A count; [`State::get`] lists the names. The largest number for another name.
#[unsafe(no_mangle)]
unsafe extern "C" fn qvl_stand_in_get(name: *const c_char) -> u64 {
    // SAFETY: the caller's promise that it is a text with its zero.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    world().ok().and_then(|world| world.lock().get(&name)).unwrap_or(u64::MAX)
}

/// Writes what one of the first violations was, as a text without a zero, to `len` bytes at `text`; returns its length,
/// 0 if there is none.
#[unsafe(no_mangle)]
unsafe extern "C" fn qvl_stand_in_violation(index: usize, text: *mut u8, len: usize) -> usize {
    let Ok(world) = world() else { return 0 };
    let state = world.lock();
    let Some(violation) = state.violation(index) else { return 0 };
    let len = violation.len().min(len);
    // SAFETY: the caller's promise that `len` bytes can be written.
    unsafe { std::ptr::copy_nonoverlapping(violation.as_ptr(), text, len) };
    len
}

const RELEASE_THRESHOLD: c_int = 4;
const RESERVED_CURRENT: c_int = 5;
const USED_CURRENT: c_int = 7;
