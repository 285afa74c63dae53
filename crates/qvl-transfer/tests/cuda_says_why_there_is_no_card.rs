//! Without a driver, a card, or one that can be used, there is an error that says so and what to do; nothing panics.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod stand_in;

use qvl_transfer::device::cuda::CudaSettings;
use qvl_transfer::{CudaDevice, Device, Error, Fence};
use stand_in::{is_child, library, noise};

fn refused() -> String {
    match CudaDevice::new(0, CudaSettings::default()) {
        Err(error @ Error::NoDevice { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Runs with a stand-in that lacks one function.
fn without(symbol: &str, test: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    is_child(test, |command| {
        let mut bytes = std::fs::read(library()).unwrap();
        // Another name of the same length in the table of names: who looks for the right one finds a wrong one.
        let name = format!("\0{symbol}\0").into_bytes();
        let places: Vec<usize> =
            (0..bytes.len() - name.len()).filter(|&i| bytes[i..].starts_with(&name)).collect();
        assert!(!places.is_empty(), "the stand-in has no {symbol}");
        for place in places {
            bytes[place + 1] = b'x';
        }
        std::fs::write(folder.path().join("libcuda.so.1"), &bytes).unwrap();
        std::fs::write(folder.path().join("libcuda.so"), &bytes).unwrap();
        command.env("LD_LIBRARY_PATH", folder.path());
    })
}

#[test]
fn without_a_driver() {
    let child = is_child("without_a_driver", |command| {
        command.env_remove("LD_LIBRARY_PATH").env_remove("QVL_CUDA_STAND_IN");
    });
    if !child {
        return;
    }
    if CudaDevice::new(0, CudaSettings::default()).is_ok() {
        return println!("skipped: this machine has a driver and a card");
    }
    let text = refused();
    assert!(text.contains("libcuda.so.1"), "{text}");
    assert!(text.contains("LD_LIBRARY_PATH") || text.contains("nvidia-smi"), "{text}");
    // And again: nothing was left half done.
    assert_eq!(refused(), text);
}

#[test]
fn with_a_driver_that_lacks_a_function() {
    if stand_in::stand_in().is_none()
        || !without("cuMemHostRegister_v2", "with_a_driver_that_lacks_a_function")
    {
        return;
    }
    let text = refused();
    assert!(text.contains("cuMemHostRegister_v2") && text.contains("newer driver"), "{text}");
}

#[test]
fn with_an_old_driver() {
    let old = |command: &mut std::process::Command| _ = command.env("QVL_STAND_IN_VERSION", "10020");
    if stand_in::stand_in().is_none() || !is_child("with_an_old_driver", old) {
        return;
    }
    let text = refused();
    assert!(text.contains("10.2") && text.contains("11.0"), "{text}");
}

#[test]
fn with_no_card() {
    let none = |command: &mut std::process::Command| _ = command.env("QVL_STAND_IN_CARDS", "0");
    if stand_in::stand_in().is_none() || !is_child("with_no_card", none) {
        return;
    }
    let text = refused();
    assert!(text.contains("CUDA_ERROR_NO_DEVICE (100)") && text.contains("CUDA_VISIBLE_DEVICES"), "{text}");
}

#[test]
fn with_a_card_that_is_too_old() {
    let kepler = |command: &mut std::process::Command| _ = command.env("QVL_STAND_IN_CAPABILITY", "35");
    if stand_in::stand_in().is_none() || !is_child("with_a_card_that_is_too_old", kepler) {
        return;
    }
    let text = refused();
    assert!(text.contains("compute capability 3.5, needed is 5.0"), "{text}");
}

#[test]
fn with_a_number_that_no_card_has() {
    let Some(_device) = stand_in::device(CudaSettings::default()) else { return };
    match CudaDevice::new(99, CudaSettings::default()) {
        Err(error @ Error::NoDevice { .. }) => assert!(error.to_string().contains("no card 99"), "{error}"),
        other => panic!("{other:?}"),
    }
    let error = CudaDevice::new(usize::MAX, CudaSettings::default()).unwrap_err();
    assert!(matches!(error, Error::NoDevice { .. }), "{error}");
}

#[test]
fn an_older_driver_without_pools_serves_as_well() {
    let test = "an_older_driver_without_pools_serves_as_well";
    if stand_in::stand_in().is_none() || !without("cuMemAllocFromPoolAsync", test) {
        return;
    }
    round_trip();
}

#[test]
fn a_card_without_pools_serves_as_well() {
    let none = |command: &mut std::process::Command| _ = command.env("QVL_STAND_IN_POOLS", "0");
    if stand_in::stand_in().is_none() || !is_child("a_card_without_pools_serves_as_well", none) {
        return;
    }
    round_trip();
}

#[expect(unsafe_code, reason = "copies without an engine")]
fn round_trip() {
    let device = CudaDevice::new(0, CudaSettings::default()).unwrap();
    let memory = device.allocate(10_000).unwrap();
    let mut staging = device.staging(10_000).unwrap();
    let bytes = noise(10_000, 1);
    staging.copy_from_slice(&bytes);
    // SAFETY: both sides are kept until the fence.
    unsafe { device.copy_in(staging.as_ptr(), 10_000, &memory, 0) }.unwrap().wait().unwrap();
    staging.fill(0);
    // SAFETY: as above.
    unsafe { device.copy_out(&memory, 0, staging.as_mut_ptr(), 10_000) }.unwrap().wait().unwrap();
    assert!(staging[..] == bytes[..]);
    drop(memory);
    assert_eq!(stand_in::StandIn.get("device_bytes"), 0);
    assert_eq!(stand_in::StandIn.get("pools"), 0);
    stand_in::assert_no_violation();
}
