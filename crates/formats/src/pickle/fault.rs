//! What can be wrong with a `pytorch_model.bin`.

use safetensors::Dtype;

/// What is wrong with a file that `torch.save` should have written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleFault {
    /// Not a zip archive.
    #[error(
        "not a zip archive, as PyTorch writes since 1.6: if it is an older file, load it with torch and save it again"
    )]
    NotZip,
    /// The archive is damaged.
    #[error("damaged archive: {why}: fetch the file again")]
    Archive {
        /// What the reader says.
        why: String,
    },
    /// An entry cannot be mapped.
    #[error("entry {entry} is compressed or encrypted, which PyTorch never does")]
    Compressed {
        /// Its name.
        entry: String,
    },
    /// There must be one pickle.
    #[error("the archive holds {found} of data.pkl, one is needed: this is no state dict of PyTorch")]
    Pickles {
        /// How many there are.
        found: &'static str,
    },
    /// The other order of bytes.
    #[error("written on a big-endian machine: load it with torch and save it again on a little-endian one")]
    BigEndian,
    /// The pickle is absurdly long.
    #[error("data.pkl has {len} bytes, more than the {limit} that are allowed")]
    TooLong {
        /// Its length.
        len: usize,
        /// Longest allowed.
        limit: usize,
    },
    /// The pickle asks for something that no state dict needs.
    #[error("data.pkl asks for `{module}.{name}`: only tensors in dictionaries are read, and nothing is run")]
    Global {
        /// A Python module.
        module: String,
        /// Something in it.
        name: String,
    },
    /// An instruction that no state dict needs.
    #[error("data.pkl: instruction 0x{opcode:02x} at byte {at} has no place in a state dict")]
    Opcode {
        /// Its code.
        opcode: u8,
        /// Where it stands.
        at: usize,
    },
    /// The pickle contradicts itself.
    #[error("data.pkl is damaged at byte {at}: {expected} was expected")]
    Malformed {
        /// Where.
        at: usize,
        /// What should be there.
        expected: &'static str,
    },
    /// Something in the state dict is not a tensor.
    #[error("`{key}` is not a tensor: a state dict of tensors by name is needed")]
    NotATensor {
        /// Its name.
        key: String,
    },
    /// A tensor's numbers are not in the archive.
    #[error("tensor `{tensor}` lies in data/{key}, which the archive does not hold")]
    NoStorage {
        /// Name of the tensor.
        tensor: String,
        /// Name of its storage.
        key: String,
    },
    /// A tensor reaches out of its storage.
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
    /// A tensor's elements do not follow each other.
    #[error(
        "tensor `{tensor}`: shape {shape:?} with strides {strides:?} is not row-major: save it after .contiguous()"
    )]
    NotContiguous {
        /// Name of the tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Elements from one index to the next, by dimension.
        strides: Vec<usize>,
    },
}
