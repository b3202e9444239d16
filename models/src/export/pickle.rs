//! Writing pickles: the few opcodes that checkpoints of arrays need. Nothing is memoised; the values are trees.

/// A pickle under construction.
pub(super) struct Pickle {
    bytes: Vec<u8>,
}

impl Pickle {
    /// Protocol 2 is read by every Python since 2.3, protocol 3 by Python 3 and has byte strings.
    pub(super) fn new(protocol: u8) -> Pickle {
        Pickle { bytes: vec![0x80, protocol] }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'.');
        self.bytes
    }

    pub(super) fn mark(&mut self) {
        self.bytes.push(b'(');
    }

    pub(super) fn none(&mut self) {
        self.bytes.push(b'N');
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.bytes.push(if value { 0x88 } else { 0x89 });
    }

    pub(super) fn int(&mut self, value: i64) {
        match i32::try_from(value) {
            Ok(short) => {
                self.bytes.push(b'J');
                self.bytes.extend(short.to_le_bytes());
            }
            Err(_) => {
                self.bytes.extend([0x8a, 8]);
                self.bytes.extend(value.to_le_bytes());
            }
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        let len = u32::try_from(text.len()).expect("names are short");
        self.bytes.push(b'X');
        self.bytes.extend(len.to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    /// A byte string of at most 4 GiB; protocol 3.
    pub(super) fn binary(&mut self, len: u32, data: &[u8]) {
        debug_assert_eq!(len as usize, data.len());
        self.bytes.push(b'B');
        self.bytes.extend(len.to_le_bytes());
        self.bytes.extend(data);
    }

    pub(super) fn global(&mut self, module: &str, name: &str) {
        self.bytes.extend(format!("c{module}\n{name}\n").into_bytes());
    }

    /// A tuple of all that was pushed since the mark.
    pub(super) fn tuple(&mut self) {
        self.bytes.push(b't');
    }

    pub(super) fn sizes(&mut self, sizes: &[usize]) {
        self.mark();
        sizes.iter().for_each(|size| self.int(*size as i64));
        self.tuple();
    }

    pub(super) fn empty_dict(&mut self) {
        self.bytes.push(b'}');
    }

    pub(super) fn empty_tuple(&mut self) {
        self.bytes.push(b')');
    }

    /// Sets all that was pushed since the mark, keys and values in turn, on the dict below it.
    pub(super) fn set_items(&mut self) {
        self.bytes.push(b'u');
    }

    pub(super) fn reduce(&mut self) {
        self.bytes.push(b'R');
    }

    pub(super) fn build(&mut self) {
        self.bytes.push(b'b');
    }

    pub(super) fn persistent_id(&mut self) {
        self.bytes.push(b'Q');
    }
}
