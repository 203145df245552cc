//! Why kernels were not compiled or did not run.

/// Why kernels were not compiled or did not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// A library cannot be loaded.
    #[error("the CUDA kernels need {what}, which cannot be loaded{because}; {mend}")]
    Library {
        /// Its name.
        what: &'static str,
        /// What the loader says, behind a colon.
        because: String,
        /// What to do about it.
        mend: &'static str,
    },
    /// NVRTC refuses.
    #[error("NVRTC cannot compile the CUDA kernels for {architecture}: {log}")]
    Compile {
        /// Such as sm_80.
        architecture: String,
        /// What NVRTC says.
        log: String,
    },
    /// The driver refuses.
    #[error("the CUDA driver refuses {what}: {error}")]
    Driver {
        /// What it was asked for.
        what: String,
        /// Its error.
        error: String,
    },
    /// The kernels are in use on another card.
    #[error("this process uses the CUDA kernels on another card, so it cannot use them on card {asked}")]
    OtherCard {
        /// The one that was asked for.
        asked: usize,
    },
}
