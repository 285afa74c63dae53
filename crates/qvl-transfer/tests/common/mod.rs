//! What the tests share.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(unsafe_code, reason = "copies from a device's memory that is only borrowed")]

use qvl_transfer::device::{Device, Fence};
use qvl_transfer::{Error, Failed, Priority, Transfer, TransferEngine};

/// Bytes that tell one place from another and one seed from another; the period of 251 is no multiple of any block.
pub(crate) fn bytes(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| ((i * 7 + seed * 131 + i / 251 * (seed + 3)) % 251) as u8).collect()
}

/// What is in a device's memory, brought back by the engine in pieces of any size.
pub(crate) fn back<D: Device>(engine: &TransferEngine<D>, memory: D::Memory) -> (D::Memory, Vec<u8>) {
    let len = engine.device().bytes(&memory);
    let host = engine.device().staging(len).unwrap();
    let ticket = engine.fetch(memory, 0, host, Priority::Normal).unwrap();
    let (memory, host) = ticket.wait().unwrap().memory;
    (memory, host.as_ref().to_vec())
}

/// Submits and waits.
pub(crate) fn carry<D: Device>(
    engine: &TransferEngine<D>,
    transfer: Transfer<D>,
) -> Result<(D::Memory, qvl_transfer::Report), Failed<D::Memory>> {
    let done = engine.submit(transfer)?.wait()?;
    Ok((done.memory, done.report))
}

/// The text of an error and of its causes.
pub(crate) fn text(error: &Error) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// What is in memory that a stream has lent, as a kernel would see it.
pub(crate) fn seen<D: Device>(device: &D, memory: &D::Memory) -> Vec<u8> {
    let bytes = device.bytes(memory);
    let mut host = device.staging(bytes).unwrap();
    // SAFETY: `host` has so many bytes and is looked at after the fence; nothing writes to the memory meanwhile.
    let fence = unsafe { device.copy_out(memory, 0, host.as_mut().as_mut_ptr(), bytes) }.unwrap();
    fence.wait().unwrap();
    host.as_ref()[..bytes].to_vec()
}
