use oq_lwc::Lwc;
use oq_quant_core::QuantSpec;
use tch::{Device, Kind, Tensor};
use std::time::Instant;
#[test]
fn speed() {
    for (o, i) in [(4096, 4096)] {
    for text in ["w4a16g128", "w3a16", "w2a16g64", "w4a16g128sym"] {
        let spec: QuantSpec = text.parse().unwrap();
        let l = Lwc::new(o, i, spec.weight, Device::Cpu).unwrap();
        let w = Tensor::randn([o as i64, i as i64], (Kind::Float, Device::Cpu));
        let g = Tensor::randn([o as i64, i as i64], (Kind::Float, Device::Cpu));
        let bytes = (o * i * 4) as f64;
        let n = if o == 4096 { 10 } else { 2 };
        let time = |f: &dyn Fn()| { f(); let mut best = f64::MAX; for _ in 0..2*n { let t = cpu(); f(); std::thread::sleep(std::time::Duration::from_millis(1)); best = best.min((cpu()-t)/2.0); } best };
        let f = time(&|| { l.fake_quantize(&w); });
        let b = time(&|| { l.gradients(&w, &g); });
        let bw = time(&|| { l.gradients_with_weight(&w, &g); });
        let copy = time(&|| { let _ = w.copy(); });
        let sum = time(&|| { let _ = w.sum(Kind::Float); });
        println!("{o}x{i} {text}: fwd {:.1}ms {:.1} GB/s | bwd {:.1}ms {:.1} GB/s | bwd+w {:.1} ms {:.1} GB/s | copy {:.1} GB/s | read {:.1}", f*1e3, 2.*bytes/f/1e9, b*1e3, 2.*bytes/b/1e9, bw*1e3, 3.*bytes/bw/1e9, 2.*bytes/copy/1e9, bytes/sum/1e9);
        if o == 4096 {
        let gm = l.gamma.set_requires_grad(true); let bt = l.beta.set_requires_grad(true);
        let e = 0.0*time(&|| { return; let y = l.fake_quantize_autograd(&w); let loss = (y * &g).sum(Kind::Float); let _ = Tensor::run_backward(&[loss], &[&gm, &bt], false, false); });
        println!("  eager autograd {:.1} ms", e * 1e3);
        }
    }}
}

fn cpu() -> f64 {
    let _ = Instant::now();
    std::fs::read_dir("/proc/self/task").unwrap().map(|d| std::fs::read_to_string(d.unwrap().path().join("schedstat")).unwrap().split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9).sum()
}
