//! What is counted. A program of its own, because other tests would count at the same time.

use oq_protected::Counts;
use tch::{Device, Kind, Tensor};

#[test]
fn copies_and_waits_are_counted() {
    let device = oq_protected::device();
    let here = Tensor::ones([10], (Kind::Float, Device::Cpu));
    let (there, sent) = Counts::of(|| here.to_device(device));
    assert_eq!((sent.to_device, sent.to_device_bytes, sent.to_host, sent.waits), (1, 40, 0, 0));
    let (doubled, computed) = Counts::of(|| &there * 2.0);
    assert_eq!((computed.to_device, computed.to_host, computed.waits), (0, 0, 0));
    assert!(computed.operations > 0);
    let (_, received) = Counts::of(|| doubled.to_device(Device::Cpu));
    assert_eq!((received.to_device, received.to_host, received.to_host_bytes), (0, 1, 40));
    let (sum, read) = Counts::of(|| doubled.sum(Kind::Float).double_value(&[]));
    assert_eq!((sum, read.waits), (20.0, 1));
    let (places, found) = Counts::of(|| doubled.nonzero());
    assert_eq!((places.size(), found.waits), (vec![10, 1], 1), "the shape depends on the values");
}
