//! The pickle machine: the opcodes of protocols 2 to 5 that `torch.save` writes. It builds plain values only.

use std::collections::HashMap;

use super::globals;
use super::heap::{Heap, Id, Node};
use super::plain;

/// Longest name of a module or class.
const MAX_NAME: usize = 256;

/// Runs one pickle that starts at `start`; gives its value and the place behind it.
pub(super) fn run(bytes: &[u8], start: usize, heap: &mut Heap) -> Result<(Id, usize), String> {
    let mut machine = Machine { bytes, at: start, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), heap };
    loop {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(value)) => return Ok((value, machine.at)),
            Err(reason) => return Err(format!("{reason} (pickle, byte {at})")),
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    heap: &'a mut Heap,
}

impl Machine<'_> {
    /// One opcode; the value of the pickle at its end. Names are those of Python's `pickletools`.
    fn step(&mut self) -> Result<Option<Id>, String> {
        match self.byte()? {
            0x80 => match self.byte()? {
                2..=5 => {}
                other => return Err(format!("pickle protocol {other} is not supported, 2 to 5 are")),
            },
            b'.' => return self.pop().map(Some),
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.marks.push(self.stack.len()),
            b'0' => self.pop_or_mark()?,
            b'1' => drop(self.above_mark()?), // POP_MARK
            b'2' => self.stack.push(self.top()?),

            b'N' => self.push(Node::None)?,
            opcode @ (0x88 | 0x89) => self.push(Node::Bool(opcode == 0x88))?,
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))?;
            }
            b'K' => {
                let value = self.byte()?;
                self.push(Node::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))?;
            }
            0x8a => {
                let len = self.byte()?;
                self.long(len.into())?;
            }
            0x8b => {
                let len = self.length32()?;
                self.long(len)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Node::Float)?;
            }
            b'X' => {
                let len = self.length32()?;
                self.text(len)?;
            }
            0x8c => {
                let len = self.byte()?;
                self.text(len.into())?;
            }
            0x8d => {
                let len = self.length64()?;
                self.text(len)?;
            }
            // Python 2 writes its byte strings, which are the keys of its dicts, with these two.
            b'T' => {
                let len = self.length32()?;
                self.text_or_bytes(len)?;
            }
            b'U' => {
                let len = self.byte()?;
                self.text_or_bytes(len.into())?;
            }
            b'C' => {
                let len = self.byte()?;
                self.binary(len.into())?;
            }
            b'B' => {
                let len = self.length32()?;
                self.binary(len)?;
            }
            0x8e | 0x96 => {
                let len = self.length64()?;
                self.binary(len)?;
            }

            b']' => self.push(Node::List(Vec::new()))?,
            b')' => self.push(Node::Tuple([].into()))?,
            b'}' => self.push(Node::Dict(Vec::new()))?,
            0x8f => self.push(Node::Set)?,
            b'l' => {
                let items = self.above_mark()?;
                self.push(Node::List(items))?;
            }
            b't' => {
                let items = self.above_mark()?;
                self.push(Node::Tuple(items.into()))?;
            }
            n @ 0x85..=0x87 => {
                let count = usize::from(n - 0x84);
                let floor = self.marks.last().copied().unwrap_or(0);
                let from = self.stack.len().checked_sub(count).filter(|from| *from >= floor).ok_or(UNDERFLOW)?;
                let items = self.stack.split_off(from);
                self.push(Node::Tuple(items.into()))?;
            }
            b'd' => {
                let pairs = pairs(self.above_mark()?)?;
                self.push(Node::Dict(pairs))?;
            }
            0x91 => {
                self.above_mark()?;
                self.push(Node::Set)?; // FROZENSET
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.above_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(vec![(key, value)])?;
            }
            b'u' => {
                let pairs = pairs(self.above_mark()?)?;
                self.insert(pairs)?;
            }
            0x90 => {
                self.above_mark()?; // ADDITEMS
                let target = self.top()?;
                if !matches!(self.heap.get(target), Node::Set | Node::Object) {
                    return Err(format!("items are added to {}", self.heap.get(target).kind()));
                }
            }

            b'q' => {
                let index = self.byte()?;
                self.remember(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.array()?);
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let index = self.byte()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.array()?);
                self.recall(index)?;
            }

            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                let global = globals::lookup(&module, &name)?;
                self.push(Node::Global(global))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(module), Some(name)) = (self.heap.text(module), self.heap.text(name)) else {
                    return Err("a class is named by something that is not a text".into());
                };
                let global = globals::lookup(module, name)?;
                self.push(Node::Global(global))?;
            }
            b'Q' => {
                let id = self.pop()?;
                let node = globals::persistent(self.heap, id)?;
                self.push(node)?;
            }
            b'R' | 0x81 => {
                let (args, callee) = (self.pop()?, self.pop()?);
                self.call(callee, args)?;
            }
            0x92 => {
                let (_keywords, args, callee) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(callee, args)?; // NEWOBJ_EX
            }
            b'b' => self.build()?,

            0x82..=0x84 => return Err("an extension code; such a pickle is not made by torch.save".into()),
            b'i' | b'o' => return Err("an object made the old way (INST, OBJ); torch.save does not write that".into()),
            0x97 | 0x98 => return Err("an out-of-band buffer; torch.save does not write that".into()),
            b'P' | b'I' | b'L' | b'F' | b'S' | b'V' | b'p' | b'g' => {
                return Err("a pickle of protocol 0 or 1; save the checkpoint with protocol 2 or later".into());
            }
            other => return Err(format!("unknown opcode {other:#04x}; the file is damaged")),
        }
        Ok(None)
    }

    fn call(&mut self, callee: Id, args: Id) -> Result<(), String> {
        let Node::Global(global) = *self.heap.get(callee) else {
            return Err(format!("{} is called like a function", self.heap.get(callee).kind()));
        };
        let node = globals::call(self.heap, global, args)?;
        self.push(node)
    }

    /// Attributes of an object. Those of an `OrderedDict` (`_metadata`: versions of modules) or of a tensor are not
    /// needed.
    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        let target = self.top()?;
        match self.heap.get(target) {
            Node::Array => {
                *self.heap.get_mut(target) = plain::filled(self.heap, state)?;
                Ok(())
            }
            Node::NumpyDtype(_) => {
                // (version, byte order, …)
                let order = self.heap.items(state)?.get(1).and_then(|order| self.heap.text(*order));
                if order == Some(">") {
                    *self.heap.get_mut(target) = Node::NumpyDtype(None);
                }
                Ok(())
            }
            Node::Object | Node::Dict(_) | Node::Tensor(_) | Node::Set => Ok(()),
            other => Err(format!("attributes are set on {}", other.kind())),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), String> {
        let target = self.top()?;
        match self.heap.get_mut(target) {
            Node::List(list) => list.extend(items),
            Node::Object => {}
            other => return Err(format!("items are appended to {}", other.kind())),
        }
        Ok(())
    }

    fn insert(&mut self, pairs: Vec<(Id, Id)>) -> Result<(), String> {
        let target = self.top()?;
        match self.heap.get_mut(target) {
            Node::Dict(dict) => dict.extend(pairs),
            Node::Object => {}
            other => return Err(format!("items are set on {}", other.kind())),
        }
        Ok(())
    }

    fn long(&mut self, len: usize) -> Result<(), String> {
        let digits = self.take(len)?;
        let node = if len <= 8 {
            let negative = digits.last().is_some_and(|b| b & 0x80 != 0);
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..len].copy_from_slice(digits);
            Node::Int(i64::from_le_bytes(wide))
        } else {
            Node::Big(digits.into())
        };
        self.push(node)
    }

    fn text(&mut self, len: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| "a text is not UTF-8")?.into();
        self.push(Node::Text(text))
    }

    fn text_or_bytes(&mut self, len: usize) -> Result<(), String> {
        let start = self.at;
        let text = std::str::from_utf8(self.take(len)?);
        let node = text.map_or(Node::Bytes { start, len }, |text| Node::Text(text.into()));
        self.push(node)
    }

    fn binary(&mut self, len: usize) -> Result<(), String> {
        let start = self.at;
        self.take(len)?;
        self.push(Node::Bytes { start, len })
    }

    fn push(&mut self, node: Node) -> Result<(), String> {
        let id = self.heap.push(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(UNDERFLOW.into());
        }
        self.stack.pop().ok_or_else(|| UNDERFLOW.into())
    }

    fn pop_or_mark(&mut self) -> Result<(), String> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| UNDERFLOW.into())
    }

    fn above_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("a mark is missing; the file is damaged")?;
        Ok(self.stack.split_off(mark))
    }

    fn remember(&mut self, index: u32) -> Result<(), String> {
        let value = self.top()?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let value = *self.memo.get(&index).ok_or_else(|| format!("entry {index} of the memo is missing"))?;
        self.stack.push(value);
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.take(N)?.try_into().expect("take gives as many bytes as asked"))
    }

    fn length32(&mut self) -> Result<usize, String> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn length64(&mut self) -> Result<usize, String> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| ENDS_EARLY.into())
    }

    fn take(&mut self, len: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(len).ok_or(ENDS_EARLY)?;
        let part = self.bytes.get(self.at..end).ok_or(ENDS_EARLY)?;
        self.at = end;
        Ok(part)
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = self.bytes.get(self.at..).ok_or(ENDS_EARLY)?;
        let len = rest
            .iter()
            .take(MAX_NAME)
            .position(|b| *b == b'\n')
            .ok_or("a name does not end; the file is truncated or damaged")?;
        let text = std::str::from_utf8(&rest[..len]).map_err(|_| "a name is not UTF-8")?.to_owned();
        self.at += len + 1;
        Ok(text)
    }
}

const UNDERFLOW: &str = "a value is missing on the stack; the file is damaged";
const ENDS_EARLY: &str = "the file ends in the middle of a value; it is truncated";

fn pairs(items: Vec<Id>) -> Result<Vec<(Id, Id)>, String> {
    if !items.len().is_multiple_of(2) {
        return Err("a dict has a key without a value; the file is damaged".into());
    }
    Ok(items.as_chunks::<2>().0.iter().map(|[key, value]| (*key, *value)).collect())
}
