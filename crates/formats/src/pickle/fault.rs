//! Errors in a `pytorch_model.bin`.

use safetensors::Dtype;

/// What is wrong with a file that `torch.save` should have written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleFault {
    /// Not a zip archive.
    #[error(
        "not a zip archive, as PyTorch writes since 1.6: if it is an older file, load it with torch and save it again"
    )]
    NotZip,
    /// The archive is damaged.
    #[error("damaged archive: {why}: fetch the file again")]
    Archive {
        /// The reader's message.
        why: String,
    },
    /// An entry cannot be mapped.
    #[error("entry {entry} is compressed or encrypted, which PyTorch never does")]
    Compressed {
        /// Its name.
        entry: String,
    },
    /// The archive does not have exactly one pickle.
    #[error("the archive holds {found} of data.pkl, one is needed: this is no state dict of PyTorch")]
    Pickles {
        /// How many it has.
        found: &'static str,
    },
    /// The wrong byte order.
    #[error("written on a big-endian machine: load it with torch and save it again on a little-endian one")]
    BigEndian,
    /// The pickle is too long.
    #[error("data.pkl has {len} bytes, more than the {limit} that are allowed")]
    TooLong {
        /// Its length.
        len: usize,
        /// Longest allowed.
        limit: usize,
    },
    /// The pickle refers to an object that no state dict needs.
    #[error("data.pkl asks for `{module}.{name}`: only tensors in dictionaries are read, and nothing is run")]
    Global {
        /// A Python module.
        module: String,
        /// An object in it.
        name: String,
    },
    /// An instruction that no state dict needs.
    #[error("data.pkl: instruction 0x{opcode:02x} at byte {at} has no place in a state dict")]
    Opcode {
        /// Its opcode.
        opcode: u8,
        /// Its offset.
        at: usize,
    },
    /// The pickle is malformed.
    #[error("data.pkl is damaged at byte {at}: {expected} was expected")]
    Malformed {
        /// The offset.
        at: usize,
        /// What should be there.
        expected: &'static str,
    },
    /// A value of the state dict that is not a tensor.
    #[error("`{key}` is not a tensor: a state dict of tensors by name is needed")]
    NotATensor {
        /// Its key.
        key: String,
    },
    /// The storage of a tensor is missing.
    #[error("tensor `{tensor}` lies in data/{key}, which the archive does not hold")]
    NoStorage {
        /// Name of the tensor.
        tensor: String,
        /// Name of its storage.
        key: String,
    },
    /// A tensor exceeds its storage.
    #[error(
        "tensor `{tensor}`: shape {shape:?} of {dtype} from element {offset} does not fit the {storage} bytes of its storage"
    )]
    Bounds {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        dtype: Dtype,
        /// First element in the storage.
        offset: usize,
        /// Bytes of the storage.
        storage: usize,
    },
    /// A tensor that is not contiguous.
    #[error(
        "tensor `{tensor}`: shape {shape:?} with strides {strides:?} is not row-major: save it after .contiguous()"
    )]
    NotContiguous {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Strides in elements, by dimension.
        strides: Vec<usize>,
    },
}
