//! The driver: its functions, looked up once, and what its codes mean.
//!
//! cudarc's bindings look a function up when it is first called and panic if it is missing, and they take codes for an
//! enum, which a code of a newer driver is not. So what this crate calls it looks up itself, in the library that
//! cudarc loads, and takes codes for the numbers they are. Handles and contexts are cudarc's, so that both can be used
//! together.

#![expect(unsafe_code, reason = "functions of a library that is loaded at run time")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::sync::OnceLock;

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUmemPoolProps, CUmemoryPool, CUstream,
};

use crate::{Error, Result};

/// What a function of the driver returns.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(c_int);

impl Code {
    pub(super) const SUCCESS: Self = Self(0);
    pub(super) const INVALID_VALUE: Self = Self(1);
    pub(super) const OUT_OF_MEMORY: Self = Self(2);
    const NO_DEVICE: Self = Self(100);
    const STUB_LIBRARY: Self = Self(34);
    const SYSTEM_DRIVER_MISMATCH: Self = Self(803);
    pub(super) const NOT_READY: Self = Self(600);

    /// Whether every later call fails as well: the context is broken, or the device is gone.
    ///
    /// These are the codes whose documentation says so, those of a driver that shuts down, of a context that somebody
    /// destroyed, and "unknown", which says nothing but is never said of one call alone.
    pub(super) fn is_lost(self) -> bool {
        matches!(self.0, 4 | 201 | 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 911 | 999)
    }
}

impl From<cudarc::driver::DriverError> for Code {
    fn from(error: cudarc::driver::DriverError) -> Self {
        Self(error.0 as c_int)
    }
}

macro_rules! functions {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $symbol:literal($($argument:ty),* $(,)?);)* }) => {
        $(#[$doc])*
        pub(super) struct $name {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl $name {
            /// Looks all of them up; names the one that is missing.
            fn look_up(library: &Library) -> Result<Self, &'static str> {
                Ok(Self { $($field: library.function(concat!($symbol, "\0"))?,)* })
            }
        }
    };
}

/// The proof that the driver's library is there.
struct Library(());

impl Library {
    fn find() -> Option<Self> {
        // SAFETY: loads the driver's library by its name, as every program that uses CUDA does.
        unsafe { sys::is_culib_present() }.then_some(Self(()))
    }

    /// A function by its name, which ends in a zero; the name without it if there is none. Only the tables below call
    /// this: they give each name the arguments that the driver documents.
    fn function<F: Copy>(&self, symbol: &'static str) -> Result<F, &'static str> {
        // SAFETY: the library is there, as `self` proves, and the type is right, as the tables see to.
        let found = unsafe { sys::culib().get::<F>(symbol.as_bytes()) };
        found.map(|function| *function).map_err(|_| symbol.trim_end_matches('\0'))
    }
}

functions! {
    /// What every driver must have that is to be used. The last group is what cudarc calls besides, to make and to drop
    /// a context.
    Functions {
        init: "cuInit"(c_uint);
        driver_version: "cuDriverGetVersion"(*mut c_int);
        error_name: "cuGetErrorName"(Code, *mut *const c_char);
        error_string: "cuGetErrorString"(Code, *mut *const c_char);

        device_count: "cuDeviceGetCount"(*mut c_int);
        device: "cuDeviceGet"(*mut CUdevice, c_int);
        device_name: "cuDeviceGetName"(*mut c_char, c_int, CUdevice);
        device_attribute: "cuDeviceGetAttribute"(*mut c_int, c_int, CUdevice);

        current: "cuCtxGetCurrent"(*mut CUcontext);
        set_current: "cuCtxSetCurrent"(CUcontext);

        memory_info: "cuMemGetInfo_v2"(*mut usize, *mut usize);
        allocate: "cuMemAlloc_v2"(*mut CUdeviceptr, usize);
        free: "cuMemFree_v2"(CUdeviceptr);
        host_allocate: "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
        host_free: "cuMemFreeHost"(*mut c_void);
        host_register: "cuMemHostRegister_v2"(*mut c_void, usize, c_uint);
        host_unregister: "cuMemHostUnregister"(*mut c_void);
        copy_in: "cuMemcpyHtoDAsync_v2"(CUdeviceptr, *const c_void, usize, CUstream);
        copy_out: "cuMemcpyDtoHAsync_v2"(*mut c_void, CUdeviceptr, usize, CUstream);

        stream_create: "cuStreamCreate"(*mut CUstream, c_uint);
        stream_destroy: "cuStreamDestroy_v2"(CUstream);
        stream_synchronize: "cuStreamSynchronize"(CUstream);
        stream_wait: "cuStreamWaitEvent"(CUstream, CUevent, c_uint);
        event_create: "cuEventCreate"(*mut CUevent, c_uint);
        event_destroy: "cuEventDestroy_v2"(CUevent);
        event_record: "cuEventRecord"(CUevent, CUstream);
        event_query: "cuEventQuery"(CUevent);
        event_synchronize: "cuEventSynchronize"(CUevent);

        _context_retain: "cuDevicePrimaryCtxRetain"(*mut CUcontext, CUdevice);
        _context_release: "cuDevicePrimaryCtxRelease_v2"(CUdevice);
    }
}

functions! {
    /// Allocation in the order of a stream: drivers of CUDA 11.2 and newer.
    Pools {
        create: "cuMemPoolCreate"(*mut CUmemoryPool, *const CUmemPoolProps);
        destroy: "cuMemPoolDestroy"(CUmemoryPool);
        trim: "cuMemPoolTrimTo"(CUmemoryPool, usize);
        set: "cuMemPoolSetAttribute"(CUmemoryPool, c_int, *mut c_void);
        get: "cuMemPoolGetAttribute"(CUmemoryPool, c_int, *mut c_void);
        allocate: "cuMemAllocFromPoolAsync"(*mut CUdeviceptr, usize, CUmemoryPool, CUstream);
        free: "cuMemFreeAsync"(CUdeviceptr, CUstream);
    }
}

/// The driver of this process.
pub(super) struct Driver {
    pub(super) f: Functions,
    /// `None`: an older driver.
    pub(super) pools: Option<Pools>,
    /// 1000 times the major version of CUDA, and 10 times the minor.
    version: c_int,
}

impl Driver {
    /// Finds the driver, and makes it ready.
    ///
    /// # Errors
    /// [`Error::NoDevice`].
    pub(super) fn get() -> Result<&'static Self> {
        // Only success is kept: a driver may be installed while the process runs.
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        match DRIVER.get() {
            Some(driver) => Ok(driver),
            None => {
                let driver = Self::load()?;
                Ok(DRIVER.get_or_init(|| driver))
            }
        }
    }

    fn load() -> Result<Self> {
        let Some(library) = Library::find() else {
            return Err(no_device(
                "the driver's library (libcuda.so.1, nvcuda.dll) is not found".to_owned(),
                "Install NVIDIA's driver, or add the library's folder to LD_LIBRARY_PATH; a container needs the \
                 NVIDIA runtime (docker run --gpus all)",
            ));
        };
        let old = |what: String| {
            no_device(what, "Install a newer driver: that of CUDA 11.0 (450.36) or any later one")
        };
        let f = Functions::look_up(&library)
            .map_err(|missing| old(format!("its driver has no function {missing}")))?;
        // SAFETY: initialises the driver; may be called any number of times.
        let code = unsafe { (f.init)(0) };
        if code != Code::SUCCESS {
            let why = format!("the driver cannot be initialised: {}", f.describe(code));
            let remedy = match code {
                Code::NO_DEVICE => {
                    "Check that the card is there and that nvidia-smi lists it; CUDA_VISIBLE_DEVICES may hide it"
                }
                Code::STUB_LIBRARY => {
                    "The library that was found is the toolkit's, to link with: remove its folder of stubs from \
                     LD_LIBRARY_PATH, and install NVIDIA's driver"
                }
                Code::SYSTEM_DRIVER_MISMATCH => {
                    "The driver's library and its kernel module have different versions: restart the machine after \
                     an update"
                }
                _ => "Check that nvidia-smi works",
            };
            return Err(no_device(why, remedy));
        }
        let mut version = 0;
        // SAFETY: writes a number to `version`.
        let code = unsafe { (f.driver_version)(&mut version) };
        if code != Code::SUCCESS {
            return Err(no_device(
                format!("the driver does not say its version: {}", f.describe(code)),
                "Check that nvidia-smi works",
            ));
        }
        if version < VERSION_MIN {
            return Err(old(format!(
                "its driver is that of CUDA {}, needed is {} or a later one",
                shown(version),
                shown(VERSION_MIN)
            )));
        }
        let pools = Pools::look_up(&library).ok();
        Ok(Self { f, pools, version })
    }

    /// The version of CUDA that the driver knows.
    pub(super) fn version(&self) -> String {
        shown(self.version)
    }
}

impl Functions {
    /// A code's name, number and meaning.
    pub(super) fn describe(&self, code: Code) -> String {
        let text = |function: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| {
            let mut text: *const c_char = std::ptr::null();
            // SAFETY: writes the address of a text that is never freed, or null, to `text`.
            let found = unsafe { function(code, &mut text) };
            if found != Code::SUCCESS || text.is_null() {
                return None;
            }
            // SAFETY: not null, so it is the address of a text of the driver that ends in a zero.
            Some(unsafe { CStr::from_ptr(text) }.to_string_lossy())
        };
        match (text(self.error_name), text(self.error_string)) {
            (Some(name), Some(meaning)) => format!("{name} ({}): {meaning}", code.0),
            _ => format!("code {}, which the driver does not explain", code.0),
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("version", &self.version())
            .field("pools", &self.pools.is_some())
            .finish_non_exhaustive()
    }
}

pub(super) fn no_device(why: String, remedy: &'static str) -> Error {
    Error::NoDevice { why, remedy }
}

fn shown(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The first driver of CUDA 11: older ones lack read-only registration, and nobody tests them any more.
const VERSION_MIN: c_int = 11_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_a_context_is_told_from_what_fails_once() {
        for lost in [700, 719, 716, 214, 999] {
            assert!(Code(lost).is_lost(), "{lost}");
        }
        for once in [0, 1, 2, 46, 400, 600, 712, 713, 720, 801] {
            assert!(!Code(once).is_lost(), "{once}");
        }
        assert_eq!(shown(12_040), "12.4");
    }
}
