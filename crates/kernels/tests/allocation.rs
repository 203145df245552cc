//! A call allocates nothing, once one of its size was made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use allocation_counter::measure;
use half::bf16;
use oq_kernels::{KERNELS, PackedLinear};
use oq_quant_core::{QuantSpec, QuantizedTensor};

#[test]
fn nothing_is_allocated_by_a_second_call() {
    let spec: QuantSpec = "w3a16g32".parse().unwrap();
    let weight: Vec<f32> = (0..300 * 96).map(|i| (i as f32 * 0.37).sin()).collect();
    let tensor = QuantizedTensor::quantize(&weight, 300, 96, spec.weight).unwrap();
    // What is counted are the allocations of one thread.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for kernel in KERNELS.iter().filter(|kernel| kernel.is_available()) {
        let linear = PackedLinear::new(&tensor, Some(&[0.5; 300])).unwrap().with_kernel(kernel).unwrap();
        for rows in [1, 3, 40, 600] {
            let x = vec![bf16::ONE; rows * 96];
            let mut out = vec![bf16::ZERO; rows * 300];
            pool.install(|| {
                linear.forward(&x, rows, &mut out).unwrap();
                let counted = measure(|| linear.forward(&x, rows, &mut out).unwrap());
                assert_eq!(counted.count_total, 0, "{} at {rows} rows", kernel.name);
            });
        }
    }
}
