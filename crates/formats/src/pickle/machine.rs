//! A pickle machine that supports state dicts of tensors only.
//!
//! Of the instructions (documented in Python's `pickletools`) it supports those that `torch.save` writes; of the objects that a pickle can
//! refer to, those in [`Global::known`]. Composite values are kept in tables and passed by index. So memory is a small multiple of the
//! pickle's length, whatever its content, and nothing recurses.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::Dtype;

use super::PickleFault;

/// Weights have two. Without a limit, one tuple could be the shape of a million tensors.
const MAX_DIMS: usize = 8;

/// A tensor, as described by the pickle.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PickledTensor<'a> {
    /// Name of its storage.
    pub(super) key: &'a str,
    pub(super) dtype: Dtype,
    /// First element in the storage.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// Strides in elements, by dimension.
    pub(super) strides: Vec<usize>,
}

/// The tensors of the state dict in `pickle`, by name. Of a dictionary of state dicts by number (of layers), names begin with the number.
pub(super) fn state_dict(pickle: &[u8]) -> Result<BTreeMap<String, PickledTensor<'_>>, PickleFault> {
    let mut machine = Machine { pickle, ..Machine::default() };
    let Value::Dict(top) = machine.run()? else { return Err(machine.malformed("a dictionary")) };
    let (mut tensors, mut seen) = (BTreeMap::new(), BTreeSet::new());
    for (key, value) in &machine.dicts[top] {
        match (*key, *value) {
            // Each dictionary once: a pickle can name one many times.
            (Value::Int(layer), Value::Dict(dict)) if seen.insert(dict) => {
                machine.tensors_of(dict, &format!("{layer}."), &mut tensors)?;
            }
            _ => {}
        }
    }
    if seen.is_empty() {
        machine.tensors_of(top, "", &mut tensors)?;
    } else if seen.len() != machine.dicts[top].len() {
        return Err(machine.malformed("a dictionary for every layer"));
    }
    Ok(tensors)
}

/// A value on the stack. Composite values are indices into the machine's tables.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    /// A value that no tensor consists of: None, booleans, floats, lists.
    Other,
    Int(i64),
    Text(&'a str),
    Global(Global),
    Storage {
        key: &'a str,
        dtype: Dtype,
    },
    Tensor(usize),
    Tuple(usize),
    Dict(usize),
}

/// Objects that a state dict refers to.
#[derive(Clone, Copy, Debug)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

impl Global {
    fn known(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", storage) => Self::Storage(match storage.strip_suffix("Storage")? {
                "Float" => Dtype::F32,
                "Half" => Dtype::F16,
                "BFloat16" => Dtype::BF16,
                "Double" => Dtype::F64,
                "Long" => Dtype::I64,
                "Int" => Dtype::I32,
                "Short" => Dtype::I16,
                "Char" => Dtype::I8,
                "Byte" => Dtype::U8,
                "Bool" => Dtype::BOOL,
                _ => return None,
            }),
            _ => return None,
        })
    }
}

#[derive(Default)]
struct Machine<'a> {
    pickle: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// Stack heights at the marks.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value<'a>>,
    tuples: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    tensors: Vec<PickledTensor<'a>>,
}

impl<'a> Machine<'a> {
    /// Runs to the end and returns the resulting value.
    fn run(&mut self) -> Result<Value<'a>, PickleFault> {
        loop {
            let at = self.at;
            let [opcode] = *self.array()?;
            match opcode {
                // PROTO: other protocols have unknown instructions.
                0x80 => {
                    let [_] = *self.array()?;
                }
                // FRAME
                0x95 => {
                    let [_, _, _, _, _, _, _, _] = *self.array()?;
                }
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                // NONE, NEWTRUE, NEWFALSE, EMPTY_LIST
                b'N' | 0x88 | 0x89 | b']' => self.stack.push(Value::Other),
                // BINFLOAT
                b'G' => {
                    let [_, _, _, _, _, _, _, _] = *self.array()?;
                    self.stack.push(Value::Other);
                }
                b'K' => {
                    let [n] = *self.array()?;
                    self.stack.push(Value::Int(n.into()));
                }
                b'M' => {
                    let n = u16::from_le_bytes(*self.array()?);
                    self.stack.push(Value::Int(n.into()));
                }
                b'J' => {
                    let n = i32::from_le_bytes(*self.array()?);
                    self.stack.push(Value::Int(n.into()));
                }
                // LONG1
                0x8a => {
                    let [len] = *self.array()?;
                    let digits = self.take(len.into())?;
                    let n = little_endian(digits).ok_or_else(|| self.malformed("a number of 64 bits at most"))?;
                    self.stack.push(Value::Int(n));
                }
                // SHORT_BINUNICODE, BINUNICODE
                0x8c => {
                    let [len] = *self.array()?;
                    self.text(len.into())?;
                }
                b'X' => {
                    let len = u32::from_le_bytes(*self.array()?);
                    self.text(len as usize)?;
                }
                // GLOBAL, STACK_GLOBAL
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => match (self.pop()?, self.pop()?) {
                    (Value::Text(name), Value::Text(module)) => self.global(module, name)?,
                    _ => return Err(self.malformed("the name of an object")),
                },
                // BINPUT, LONG_BINPUT, MEMOIZE
                b'q' => {
                    let [index] = *self.array()?;
                    self.remember(index.into())?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(*self.array()?);
                    self.remember(index)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?,
                // BINGET, LONG_BINGET
                b'h' => {
                    let [index] = *self.array()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(*self.array()?);
                    self.recall(index)?;
                }
                b')' => self.tuple(self.stack.len())?,
                0x85..=0x87 => {
                    let len = usize::from(opcode - 0x84);
                    let from = self.stack.len().checked_sub(len).ok_or_else(|| self.malformed("a value"))?;
                    self.tuple(from)?;
                }
                b't' => {
                    let from = self.mark()?;
                    self.tuple(from)?;
                }
                b'}' => self.dict(),
                // APPEND, APPENDS
                b'a' => drop(self.pop()?),
                b'e' => {
                    let from = self.mark()?;
                    self.stack.truncate(from);
                }
                // SETITEM, SETITEMS
                b's' => {
                    let from = self.stack.len().checked_sub(2).ok_or_else(|| self.malformed("a key and a value"))?;
                    self.set_items(from)?;
                }
                b'u' => {
                    let from = self.mark()?;
                    self.set_items(from)?;
                }
                // BUILD: attributes besides the tensors, such as versions of modules.
                b'b' => drop(self.pop()?),
                b'Q' => self.storage()?,
                b'R' => self.reduce()?,
                _ => return Err(PickleFault::Opcode { opcode, at }),
            }
        }
    }

    /// Adds the tensors of a dictionary, with a prefix before their names.
    fn tensors_of(
        &self,
        dict: usize,
        prefix: &str,
        tensors: &mut BTreeMap<String, PickledTensor<'a>>,
    ) -> Result<(), PickleFault> {
        for (key, value) in &self.dicts[dict] {
            match (*key, *value) {
                (Value::Text(name), Value::Tensor(tensor)) => {
                    tensors.insert(format!("{prefix}{name}"), self.tensors[tensor].clone());
                }
                (Value::Text(name), _) => return Err(PickleFault::NotATensor { key: name.to_owned() }),
                _ => return Err(self.malformed("a name for every tensor")),
            }
        }
        Ok(())
    }

    fn malformed(&self, expected: &'static str) -> PickleFault {
        PickleFault::Malformed { at: self.at, expected }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PickleFault> {
        let end = self.at.checked_add(len);
        let bytes = end.and_then(|end| self.pickle.get(self.at..end)).ok_or_else(|| self.malformed("more"))?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], PickleFault> {
        Ok(self.take(N)?.first_chunk().expect("it has this length"))
    }

    fn line(&mut self) -> Result<&'a str, PickleFault> {
        let rest = &self.pickle[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or_else(|| self.malformed("the end of a line"))?;
        let line = std::str::from_utf8(self.take(len)?).map_err(|_| self.malformed("UTF-8"))?;
        self.at += 1;
        Ok(line)
    }

    fn text(&mut self, len: usize) -> Result<(), PickleFault> {
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| self.malformed("UTF-8"))?;
        self.stack.push(Value::Text(text));
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), PickleFault> {
        let unknown = || PickleFault::Global { module: module.to_owned(), name: name.to_owned() };
        self.stack.push(Value::Global(Global::known(module, name).ok_or_else(unknown)?));
        Ok(())
    }

    fn pop(&mut self) -> Result<Value<'a>, PickleFault> {
        self.stack.pop().ok_or_else(|| self.malformed("a value"))
    }

    /// Removes the last mark and returns its stack height.
    fn mark(&mut self) -> Result<usize, PickleFault> {
        match self.marks.pop() {
            Some(height) if height <= self.stack.len() => Ok(height),
            _ => Err(self.malformed("a mark")),
        }
    }

    fn remember(&mut self, index: u32) -> Result<(), PickleFault> {
        let top = *self.stack.last().ok_or_else(|| self.malformed("a value"))?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), PickleFault> {
        let value = *self.memo.get(&index).ok_or_else(|| self.malformed("a value that was remembered"))?;
        self.stack.push(value);
        Ok(())
    }

    fn tuple(&mut self, from: usize) -> Result<(), PickleFault> {
        self.tuples.push(self.stack.split_off(from));
        self.stack.push(Value::Tuple(self.tuples.len() - 1));
        Ok(())
    }

    fn dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    /// Moves keys and values from the stack into the dictionary below them.
    fn set_items(&mut self, from: usize) -> Result<(), PickleFault> {
        let items = self.stack.split_off(from);
        let (pairs, rest) = items.as_chunks::<2>();
        match self.stack.last() {
            Some(Value::Dict(dict)) if rest.is_empty() => {
                self.dicts[*dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            _ => Err(self.malformed("a dictionary below keys and values")),
        }
    }

    /// `("storage", type, key, device, elements)` from the stack.
    fn storage(&mut self) -> Result<(), PickleFault> {
        match self.pop_tuple()?[..] {
            [Value::Text("storage"), Value::Global(Global::Storage(dtype)), Value::Text(key), ..] => {
                self.stack.push(Value::Storage { key, dtype });
                Ok(())
            }
            _ => Err(self.malformed("a storage")),
        }
    }

    /// Calls one of the few known objects.
    fn reduce(&mut self) -> Result<(), PickleFault> {
        // The remaining arguments (hooks, requires_grad) do not matter.
        let args: Vec<Value<'a>> = self.pop_tuple()?.iter().take(4).copied().collect();
        match (self.pop()?, &args[..]) {
            (Value::Global(Global::OrderedDict), []) => self.dict(),
            (Value::Global(Global::RebuildParameter), [tensor @ Value::Tensor(_), ..]) => self.stack.push(*tensor),
            (
                Value::Global(Global::RebuildTensor),
                [Value::Storage { key, dtype }, Value::Int(offset), Value::Tuple(shape), Value::Tuple(strides)],
            ) => {
                let size = |n: i64| usize::try_from(n).map_err(|_| self.malformed("a size, 0 or more"));
                let sizes = |tuple: usize| {
                    if self.tuples[tuple].len() > MAX_DIMS {
                        return Err(self.malformed("at most eight dimensions"));
                    }
                    let numbers = self.tuples[tuple].iter().map(|value| match value {
                        Value::Int(n) => size(*n),
                        _ => Err(self.malformed("a size")),
                    });
                    numbers.collect::<Result<Vec<_>, _>>()
                };
                let (offset, shape, strides) = (size(*offset)?, sizes(*shape)?, sizes(*strides)?);
                if shape.len() != strides.len() {
                    return Err(self.malformed("a stride for every dimension"));
                }
                self.tensors.push(PickledTensor { key, dtype: *dtype, offset, shape, strides });
                self.stack.push(Value::Tensor(self.tensors.len() - 1));
            }
            _ => return Err(self.malformed("the arguments of a tensor or of a dictionary")),
        }
        Ok(())
    }

    fn pop_tuple(&mut self) -> Result<&[Value<'a>], PickleFault> {
        match self.pop()? {
            Value::Tuple(tuple) => Ok(&self.tuples[tuple]),
            _ => Err(self.malformed("a tuple")),
        }
    }
}

/// A two's complement number of at most eight bytes.
fn little_endian(digits: &[u8]) -> Option<i64> {
    let sign = if digits.last().is_some_and(|last| last & 0x80 != 0) { 0xff } else { 0 };
    let mut bytes = [sign; 8];
    bytes.get_mut(..digits.len())?.copy_from_slice(digits);
    Some(i64::from_le_bytes(bytes))
}
