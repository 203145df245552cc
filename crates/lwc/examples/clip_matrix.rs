//! Quantizes one matrix to 3 bits, rounded to nearest and with learned clipping, by a loss of one's own: here the error of what the matrix
//! is multiplied to, with the first half of the outputs worth four times as much. The loss may be anything that libtorch differentiates.

#![allow(clippy::print_stdout, reason = "an example prints what it found")]

use oq_lwc::Lwc;
use oq_quant_core::QuantSpec;
use oq_random::SplitMix64;
use tch::{Device, Kind, Tensor};

const OUT: i64 = 64;
const IN: i64 = 128;
const STEPS: usize = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec: QuantSpec = "w3a16g64".parse()?;
    let mut random = SplitMix64::new(1);
    let mut normal = |rows: i64, cols: i64| {
        let values: Vec<f32> = (0..rows * cols).map(|_| random.normal() as f32).collect();
        Tensor::from_slice(&values).view([rows, cols])
    };
    // Cubes of normal numbers: a few weights are much larger than the others.
    let weight = normal(OUT, IN).pow_tensor_scalar(3) * 0.02;
    // Channels that go together, as those of activations do: 16 directions, and some noise. [samples, in]
    let x = normal(256, 16).matmul(&normal(16, IN)) + normal(256, IN) * 0.3;
    let target = x.matmul(&weight.tr());
    let worth = Tensor::cat(
        &[
            Tensor::full([OUT / 2], 4.0, (Kind::Float, Device::Cpu)),
            Tensor::ones([OUT / 2], (Kind::Float, Device::Cpu)),
        ],
        0,
    );
    let loss = |weight: &Tensor| ((x.matmul(&weight.tr()) - &target).square() * &worth).mean(Kind::Float);

    let mut lwc = Lwc::new(OUT as usize, IN as usize, spec.weight, Device::Cpu)?;
    let packed = |lwc: &Lwc| -> Result<f64, oq_lwc::LwcError> {
        let restored = Tensor::from_slice(&lwc.quantize(&weight)?.dequantize()).view([OUT, IN]);
        Ok(loss(&restored).double_value(&[]))
    };
    let start = packed(&lwc)?;
    lwc.start_from_search(&weight, &x.square().mean_dim([0].as_slice(), false, None::<Kind>));
    let searched = packed(&lwc)?;
    for step in 0..STEPS {
        // The weight that the codes stand for is a leaf: autograd never sees the quantizer.
        let leaf = lwc.fake_quantize(&weight).set_requires_grad(true);
        loss(&leaf).backward();
        let grad = leaf.grad();
        let strengths = lwc.gradients(&weight, &grad);
        // Rates fall linearly; all of them together are half a step of the grid.
        let rate = (1.0 - step as f64 / STEPS as f64) / STEPS as f64;
        lwc.gamma -= strengths.gamma.sign() * rate;
        lwc.beta -= strengths.beta.sign() * rate;
        // Which way each weight is rounded, beside it.
        lwc.move_offsets(&weight, &grad, rate);
    }
    println!("clipped at 98 %, rounded to nearest: {start:.4}");
    println!("clipped by a search:                 {searched:.4}");
    println!("clipping and rounding learned:       {:.4}", packed(&lwc)?);
    Ok(())
}
