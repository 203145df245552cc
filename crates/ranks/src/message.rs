//! Tensors as flat messages of one type and a bounded size, and back.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

/// Elements of a message. In f32 it takes 64 MiB, and a few of them exist at once.
const LONGEST: i64 = 16 << 20;

/// A flat tensor on the CPU, of which each part belongs to a tensor.
pub(crate) struct Message {
    pub(crate) flat: Tensor,
    /// Which tensor, and how many elements, in order.
    pub(crate) parts: Vec<(usize, i64)>,
}

/// Tensors as messages, made one at a time: each tensor is dropped with the last message that it is in. Those of one type come together.
pub(crate) fn messages(tensors: Vec<Tensor>) -> impl Iterator<Item = Message> {
    messages_of(LONGEST, tensors)
}

fn messages_of(longest: i64, tensors: Vec<Tensor>) -> impl Iterator<Item = Message> {
    let mut kinds: Vec<Kind> = Vec::new();
    for tensor in &tensors {
        if !kinds.contains(&tensor.kind()) {
            kinds.push(tensor.kind());
        }
    }
    let place = |tensor: &Tensor| kinds.iter().position(|kind| *kind == tensor.kind());
    let mut waiting: Vec<(usize, Tensor)> = tensors.into_iter().enumerate().filter(|(_, x)| x.numel() > 0).collect();
    waiting.sort_by_key(|(_, tensor)| place(tensor));
    // The next one is the last.
    waiting.reverse();
    std::iter::from_fn(move || {
        let kind = waiting.last()?.1.kind();
        let (mut pieces, mut parts, mut room) = (Vec::new(), Vec::new(), longest);
        while room > 0 && waiting.last().is_some_and(|(_, tensor)| tensor.kind() == kind) {
            let (index, tensor) = waiting.pop().expect("there is one");
            let flat = tensor.detach().reshape([-1]);
            let len = flat.size()[0].min(room);
            pieces.push(flat.narrow(0, 0, len).to_device(Device::Cpu));
            parts.push((index, len));
            room -= len;
            if len < flat.size()[0] {
                waiting.push((index, flat.narrow(0, len, flat.size()[0] - len)));
            }
        }
        Some(Message { flat: Tensor::cat(&pieces, 0), parts })
    })
}

/// What a tensor is, besides its elements.
pub(crate) struct Form {
    shape: Vec<i64>,
    kind: Kind,
    device: Device,
}

impl Form {
    pub(crate) fn of(tensor: &Tensor) -> Self {
        Self { shape: tensor.size(), kind: tensor.kind(), device: tensor.device() }
    }
}

/// The tensors that messages were made of.
pub(crate) fn restored(messages: Vec<Message>, forms: &[Form]) -> Vec<Tensor> {
    let mut pieces: BTreeMap<usize, Vec<Tensor>> = BTreeMap::new();
    for Message { flat, parts } in messages {
        let lengths: Vec<i64> = parts.iter().map(|&(_, len)| len).collect();
        for (piece, (index, _)) in flat.split_with_sizes(lengths, 0).into_iter().zip(parts) {
            pieces.entry(index).or_default().push(piece);
        }
    }
    let tensors = forms.iter().enumerate().map(|(index, Form { shape, kind, device })| match pieces.remove(&index) {
        Some(pieces) if pieces.len() == 1 => pieces[0].to_device(*device).view(shape.as_slice()),
        Some(pieces) => Tensor::cat(&pieces, 0).to_device(*device).view(shape.as_slice()),
        None => Tensor::empty(shape.as_slice(), (*kind, *device)),
    });
    tensors.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_bounded_and_come_back() {
        let tensors = || {
            let x = |n: i64, kind| Tensor::arange(n, (kind, Device::Cpu));
            vec![
                x(6, Kind::Float).view([2, 3]),
                x(4, Kind::Double),
                // Not contiguous.
                x(8, Kind::Float).view([2, 4]).transpose(0, 1),
                x(0, Kind::Float),
                x(1, Kind::Float),
                x(3, Kind::BFloat16),
            ]
        };
        let forms: Vec<Form> = tensors().iter().map(Form::of).collect();
        for (longest, count) in [(100, 3), (7, 5), (1, 22)] {
            let messages: Vec<Message> = messages_of(longest, tensors()).collect();
            assert_eq!(messages.len(), count, "of {longest}");
            assert!(messages.iter().all(|message| message.flat.size()[0] <= longest));
            let restored = restored(messages, &forms);
            for (restored, tensor) in restored.iter().zip(tensors()) {
                assert!(restored.kind() == tensor.kind() && restored.equal(&tensor), "{longest}");
            }
        }
    }
}
