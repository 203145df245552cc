//! The wheels that libtorch 2.13.0 is made from: their versions, sizes and SHA-256, and the files taken from them.
//!
//! The NVIDIA versions are those that torch 2.13.0 requires, as pip resolves them.

use crate::wheel::{Take, Wheel};

/// The libtorch version that this workspace's `tch` crate is written for.
pub const TORCH: &str = "2.13.0";

/// A wheel, its SHA-256, and the files taken from it.
pub struct Part {
    pub wheel: Wheel<'static>,
    pub sha256: &'static str,
    pub take: &'static [Take<'static>],
}

const fn part(
    package: &'static str,
    version: &'static str,
    bytes: u64,
    sha256: &'static str,
    take: &'static [Take<'static>],
) -> Part {
    Part { wheel: Wheel { package, version, bytes: Some(bytes) }, sha256, take }
}

const fn torch(take: &'static [Take<'static>]) -> Part {
    part("torch", TORCH, 526_605_292, "796633c4cdf0fe2cdced72d8f88f22e73dbcfce83132763162f6d4bff13b820b", take)
}

// libtorch_cpu.so links to both, even without a GPU.
const CUDA_RUNTIME: Part = part(
    "nvidia-cuda-runtime",
    "13.0.96",
    2_243_632,
    "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    &[Take { from: "nvidia/cu13/lib/libcudart.so.13", to: "lib/libcudart.so.13" }],
);
const CUPTI: Part = part(
    "nvidia-cuda-cupti",
    "13.0.85",
    10_715_597,
    "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
    &[Take { from: "nvidia/cu13/lib/libcupti.so.13", to: "lib/libcupti.so.13" }],
);

/// The compiler of CUDA C++. Tests compile the kernels with it, with or without a GPU.
pub const NVRTC: Part = part(
    "nvidia-cuda-nvrtc",
    "13.0.88",
    90_215_200,
    "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
    &[
        Take { from: "nvidia/cu13/lib/libnvrtc.so.13", to: "lib/libnvrtc.so.13" },
        Take { from: "nvidia/cu13/lib/libnvrtc-builtins.so.13.0", to: "lib/libnvrtc-builtins.so.13.0" },
    ],
);

/// The parts of a libtorch without a GPU.
pub const CPU: &[Part] = &[
    torch(&[
        Take { from: "torch/include/", to: "include/" },
        Take { from: "torch/lib/libc10.so", to: "lib/libc10.so" },
        Take { from: "torch/lib/libgomp.so.1", to: "lib/libgomp.so.1" },
        Take { from: "torch/lib/libtorch_cpu.so", to: "lib/libtorch_cpu.so" },
    ]),
    CUDA_RUNTIME,
    CUPTI,
];

/// The parts of a libtorch for CUDA 13. Its libraries also look for each other in their own folder, so one folder holds all of them.
pub const CUDA: &[Part] = &[
    torch(&[
        Take { from: "torch/include/", to: "include/" },
        Take { from: "torch/lib/libc10.so", to: "lib/libc10.so" },
        Take { from: "torch/lib/libc10_cuda.so", to: "lib/libc10_cuda.so" },
        Take { from: "torch/lib/libcaffe2_nvrtc.so", to: "lib/libcaffe2_nvrtc.so" },
        Take { from: "torch/lib/libgomp.so.1", to: "lib/libgomp.so.1" },
        Take { from: "torch/lib/libtorch.so", to: "lib/libtorch.so" },
        Take { from: "torch/lib/libtorch_cpu.so", to: "lib/libtorch_cpu.so" },
        Take { from: "torch/lib/libtorch_cuda.so", to: "lib/libtorch_cuda.so" },
        Take { from: "torch/lib/libtorch_cuda_linalg.so", to: "lib/libtorch_cuda_linalg.so" },
        Take { from: "torch/lib/libtorch_nvshmem.so", to: "lib/libtorch_nvshmem.so" },
    ]),
    CUDA_RUNTIME,
    CUPTI,
    part(
        "nvidia-cublas",
        "13.1.1.3",
        423_138_758,
        "37936a16db8fe4ac1f065c2139360608a543a09275cb1a1af612e08cfa065436",
        &[
            Take { from: "nvidia/cu13/lib/libcublas.so.13", to: "lib/libcublas.so.13" },
            Take { from: "nvidia/cu13/lib/libcublasLt.so.13", to: "lib/libcublasLt.so.13" },
        ],
    ),
    NVRTC,
    part(
        "nvidia-cudnn-cu13",
        "9.20.0.48",
        366_173_588,
        "0c45dd8eeb50b603f07995b1b300c62ffe6a1980482b82b3bcf94a4ca9d49304",
        &[Take { from: "nvidia/cudnn/lib/", to: "lib/" }],
    ),
    part(
        "nvidia-cufft",
        "12.0.0.61",
        214_085_489,
        "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
        &[Take { from: "nvidia/cu13/lib/libcufft.so.12", to: "lib/libcufft.so.12" }],
    ),
    part(
        "nvidia-cufile",
        "1.15.1.6",
        1_223_672,
        "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
        &[Take { from: "nvidia/cu13/lib/libcufile.so.0", to: "lib/libcufile.so.0" }],
    ),
    part(
        "nvidia-curand",
        "10.4.0.35",
        59_544_258,
        "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
        &[Take { from: "nvidia/cu13/lib/libcurand.so.10", to: "lib/libcurand.so.10" }],
    ),
    part(
        "nvidia-cusolver",
        "12.0.4.66",
        200_941_980,
        "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
        &[Take { from: "nvidia/cu13/lib/libcusolver.so.12", to: "lib/libcusolver.so.12" }],
    ),
    part(
        "nvidia-cusparse",
        "12.6.3.3",
        145_942_937,
        "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
        &[Take { from: "nvidia/cu13/lib/libcusparse.so.12", to: "lib/libcusparse.so.12" }],
    ),
    part(
        "nvidia-cusparselt-cu13",
        "0.8.1",
        170_148_586,
        "786ce87568c303fadb5afcc7102d454cd3040d75f6f8626f5db460d1871f4dd0",
        &[
            Take { from: "nvidia/cusparselt/lib/libcusparseLt.so.0", to: "lib/libcusparseLt.so.0" },
            Take { from: "nvidia/cusparselt/LICENSE.txt", to: "licenses/nvidia-cusparselt-cu13/LICENSE.txt" },
        ],
    ),
    part(
        "nvidia-nccl-cu13",
        "2.29.7",
        205_976_000,
        "edd81538446786ec3b73972543e53bb43bcaf0bfc8ef76cb679fcc390ffe136d",
        &[Take { from: "nvidia/nccl/lib/libnccl.so.2", to: "lib/libnccl.so.2" }],
    ),
    part(
        "nvidia-nvjitlink",
        "13.5.37",
        46_642_491,
        "280d7cb9649704145f074b8dbde500de04ce02d0872e066e20a83c17bcaa93eb",
        &[Take { from: "nvidia/cu13/lib/libnvJitLink.so.13", to: "lib/libnvJitLink.so.13" }],
    ),
    part(
        "nvidia-nvshmem-cu13",
        "3.4.5",
        60_412_546,
        "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
        &[Take { from: "nvidia/nvshmem/lib/libnvshmem_host.so.3", to: "lib/libnvshmem_host.so.3" }],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_is_a_whole_sha256_in_lower_case() {
        for part in CPU.iter().chain(CUDA) {
            let hex = part.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            assert!(hex && part.sha256.len() == 64, "{}: {}", part.wheel.package, part.sha256);
        }
    }

    #[test]
    fn no_two_wheels_write_the_same_file() {
        for parts in [CPU, CUDA] {
            let mut files: Vec<_> = parts.iter().flat_map(|part| part.take).map(|take| take.to).collect();
            files.sort_unstable();
            let all = files.len();
            files.dedup();
            assert_eq!(files.len(), all);
        }
    }
}
