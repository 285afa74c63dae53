//! What the tests of cards share: the driver that is there, and what the stand-in for it can be told.
//!
//! Which driver is found is the system's matter (LD_LIBRARY_PATH). `QVL_CUDA_STAND_IN` says that it is the stand-in,
//! which tests with faults need; `QVL_CUDA_REQUIRED` makes a failure of what is skipped elsewhere.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::print_stdout, reason = "says what is skipped")]
#![expect(unsafe_code, reason = "calls functions of the stand-in by their names")]

use std::ffi::CString;
use std::ffi::c_char;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;
use qvl_transfer::device::cuda::CudaSettings;
use qvl_transfer::{CudaDevice, Error};

/// Held by a test while it runs: faults and counts are those of the process.
pub(crate) struct Turn {
    _guard: MutexGuard<'static, ()>,
}

pub(crate) fn turn() -> Turn {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed has told so itself.
    Turn { _guard: TURN.lock().unwrap_or_else(PoisonError::into_inner) }
}

/// A device on whatever card there is; `None` where there is none, and the test says that it is skipped.
pub(crate) fn device(settings: CudaSettings) -> Option<CudaDevice> {
    match CudaDevice::new(0, settings) {
        Ok(device) => Some(device),
        Err(error @ Error::NoDevice { .. }) if !stands_in() => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The stand-in, if it is what the tests run on.
pub(crate) fn stand_in() -> Option<StandIn> {
    if stands_in() {
        return Some(StandIn);
    }
    skip("no stand-in (QVL_CUDA_STAND_IN is not set)");
    None
}

pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("QVL_CUDA_REQUIRED").is_none() || why.starts_with("no stand-in"), "{why}");
    println!("skipped: {why}");
}

fn stands_in() -> bool {
    std::env::var_os("QVL_CUDA_STAND_IN").is_some()
}

/// What a real driver cannot do.
#[derive(Clone, Copy)]
pub(crate) struct StandIn;

impl StandIn {
    /// Sets a fault or a speed.
    pub(crate) fn set(self, name: &str, value: u64) {
        let text = CString::new(name).unwrap();
        type Set = unsafe extern "C" fn(*const c_char, u64) -> i32;
        // SAFETY: the library is the stand-in, whose function has these arguments.
        let set = unsafe { sys::culib().get::<Set>(b"qvl_stand_in_set\0") }.expect("it is the stand-in");
        // SAFETY: the text ends in a zero.
        assert_eq!(unsafe { set(text.as_ptr(), value) }, 0, "{name}");
    }

    /// A count.
    pub(crate) fn get(self, name: &str) -> u64 {
        let text = CString::new(name).unwrap();
        type Get = unsafe extern "C" fn(*const c_char) -> u64;
        // SAFETY: the library is the stand-in, whose function has these arguments.
        let get = unsafe { sys::culib().get::<Get>(b"qvl_stand_in_get\0") }.expect("it is the stand-in");
        // SAFETY: the text ends in a zero.
        let value = unsafe { get(text.as_ptr()) };
        assert_ne!(value, u64::MAX, "{name}");
        value
    }

    /// Fails with what was done that must not be.
    pub(crate) fn assert_no_violation(self) {
        type Violation = unsafe extern "C" fn(usize, *mut u8, usize) -> usize;
        // SAFETY: the library is the stand-in, whose function has these arguments.
        let violation = unsafe { sys::culib().get::<Violation>(b"qvl_stand_in_violation\0") };
        let violation = violation.expect("it is the stand-in");
        let mut all = Vec::new();
        loop {
            let mut text = [0u8; 256];
            // SAFETY: writes at most so many bytes.
            let len = unsafe { violation(all.len(), text.as_mut_ptr(), text.len()) };
            if len == 0 {
                break;
            }
            all.push(String::from_utf8_lossy(&text[..len]).into_owned());
        }
        assert!(self.get("violations") == 0, "{} violations: {all:#?}", self.get("violations"));
    }
}

/// Fails if the stand-in, where it is, saw something that must not be.
pub(crate) fn assert_no_violation() {
    if stands_in() {
        StandIn.assert_no_violation();
    }
}

/// Runs a test of this file alone in a process of its own. True in that process, where the test then does its work.
pub(crate) fn is_child(test: &str, prepare: impl FnOnce(&mut Command)) -> bool {
    if std::env::var_os("QVL_CUDA_CHILD").is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env("QVL_CUDA_CHILD", "1");
    prepare(&mut command);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "the test of this name ran: {text}");
    if let Some(line) = text.lines().find(|line| line.contains("skipped: ")) {
        println!("{line}");
    }
    false
}

/// The file of the stand-in.
pub(crate) fn library() -> PathBuf {
    let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap();
    let found =
        std::env::split_paths(&folders).map(|folder| folder.join("libcuda.so.1")).find(|path| path.is_file());
    found.expect("the stand-in is in a folder of LD_LIBRARY_PATH")
}

/// Bytes that look like nothing else.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0u8; len];
    for byte in &mut bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    bytes
}

/// Numbers that look random, the same in each run.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1)
    }

    /// Below `end`.
    pub(crate) fn roll(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}
