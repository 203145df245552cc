//! The kernels that a process asked for.

use std::sync::OnceLock;

use tch::Device;

use crate::card::Card;
use crate::error::CudaError;
use crate::kernels::{Kernels, Launch};

static CARD: OnceLock<Kernels> = OnceLock::new();
static HOST: OnceLock<Kernels> = OnceLock::new();

/// Compiles the kernels for a card, counted as CUDA counts, and uses them on it from now on.
///
/// # Errors
/// When NVRTC or the driver is missing or refuses, or when this process uses the kernels on another card.
pub fn use_card(ordinal: usize) -> Result<(), CudaError> {
    let device = Device::Cuda(ordinal);
    if CARD.get().is_none() {
        let card = Card::new(ordinal)?;
        tracing::info!(ordinal, card = card.name(), "CUDA kernels compiled");
        let _ = CARD.set(Kernels::new(card, device));
    }
    match CARD.get() {
        Some(kernels) if kernels.device() != device => Err(CudaError::OtherCard { asked: ordinal }),
        _ => Ok(()),
    }
}

/// Runs the kernels for tensors on the host from now on, in place of the loops there: for tests.
pub fn use_host(launch: impl Launch + 'static) {
    let _ = HOST.set(Kernels::new(launch, Device::Cpu));
}

/// The kernels for tensors on a device, if this process asked for them.
pub fn of(device: Device) -> Option<&'static Kernels> {
    let kernels = if device == Device::Cpu { HOST.get() } else { CARD.get() };
    kernels.filter(|kernels| kernels.device() == device)
}
