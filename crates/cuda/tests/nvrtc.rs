//! The sources compile for every architecture that is in use, from A100 to the newest cards.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says what it skipped")]

const ARCHITECTURES: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];

#[test]
fn compile_for_every_architecture() {
    if std::env::var_os(oq_cuda::NVRTC).is_none() {
        println!("skipped: {} names no NVRTC (`cargo xtask test` fetches one)", oq_cuda::NVRTC);
        return;
    }
    for architecture in ARCHITECTURES {
        let code = oq_cuda::compile(architecture).unwrap();
        // A cubin is an ELF file; kernels are found in it by their names.
        assert!(code.starts_with(b"\x7fELF"), "{architecture}");
        for kernel in ["clip_bf16", "gradients_f32", "move_offsets_bf16", "decode_f32", "multiply_w3_8"] {
            assert!(code.windows(kernel.len()).any(|part| part == kernel.as_bytes()), "{architecture}: {kernel}");
        }
    }
    let unknown = oq_cuda::compile("sm_11").unwrap_err().to_string();
    assert!(unknown.starts_with("NVRTC cannot compile the CUDA kernels for sm_11: "), "{unknown}");
}
