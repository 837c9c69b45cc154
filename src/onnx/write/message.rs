//! A message to be written: a list of parts whose lengths are known, never one buffer.

use bytes::Bytes;

use super::copy::{Content, Destination, MaskedCount};
use crate::onnx::{OnnxError, Source, wire};

/// Stretches of the source at least this long are copied by the kernel, shorter ones through the write buffer.
const COPIED_BY_KERNEL: u64 = 64 << 10;
/// How much is collected before it is written.
const BUFFER: usize = 256 << 10;

/// A message in parts.
#[derive(Debug)]
pub struct Message<'s> {
    source: &'s Source,
    parts: Vec<Part>,
    len: u64,
}

#[derive(Debug)]
enum Part {
    /// A stretch of the source file. Neighbours are joined, so an untouched graph is one stretch.
    Source { at: u64, len: u64 },
    /// Encoded here.
    Own(Vec<u8>),
    /// Elements of a tensor.
    Content { len: u64, content: Content },
}

impl<'s> Message<'s> {
    /// Returns an empty message; what is pushed may lie in `source`.
    pub fn new(source: &'s Source) -> Self {
        Self { source, parts: Vec::new(), len: 0 }
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Appends encoded bytes.
    pub fn push(&mut self, bytes: &Bytes) {
        match self.source.offset_of(bytes) {
            Some(at) => self.add(Part::Source { at, len: bytes.len() as u64 }),
            None => self.push_own(bytes),
        }
    }

    /// Appends bytes that were encoded here.
    pub fn push_own(&mut self, bytes: &[u8]) {
        self.add(Part::Own(bytes.to_vec()));
    }

    /// Appends the `len` bytes of a tensor's elements.
    pub fn push_content(&mut self, len: u64, content: Content) {
        self.add(Part::Content { len, content });
    }

    /// Appends a length-delimited field.
    pub fn push_field(&mut self, number: u32, content: &Bytes) {
        self.push_own(&wire::message_head(number, content.len() as u64));
        self.push(content);
    }

    /// Appends a length-delimited field whose content is `message`.
    pub fn push_message(&mut self, number: u32, message: Self) {
        self.push_own(&wire::message_head(number, message.len));
        for part in message.parts {
            self.add(part);
        }
    }

    fn add(&mut self, part: Part) {
        let added = match &part {
            Part::Source { len, .. } | Part::Content { len, .. } => *len,
            Part::Own(bytes) => bytes.len() as u64,
        };
        self.len += added;
        match (self.parts.last_mut(), part) {
            (Some(Part::Source { at, len }), Part::Source { at: next, .. }) if *at + *len == next => {
                *len += added
            }
            (Some(Part::Own(bytes)), Part::Own(more)) => bytes.extend(more),
            (_, part) => self.parts.push(part),
        }
    }

    /// Writes the message from the start of the file on; returns how many elements of each masked tensor in it were
    /// masked.
    ///
    /// # Errors
    /// [`OnnxError`] if weights cannot be read or the file cannot be written.
    pub fn write(&self, to: Destination<'_>) -> Result<Vec<MaskedCount>, OnnxError> {
        let mut out = Buffered { to, at: 0, pending: Vec::with_capacity(BUFFER) };
        let mut counts = Vec::new();
        for part in &self.parts {
            match part {
                Part::Own(bytes) => out.put(bytes)?,
                Part::Source { at, len } => match &self.source.file {
                    Some(file) if *len >= COPIED_BY_KERNEL => {
                        let to_at = out.skip(*len)?;
                        to.copy(file, *at, to_at, *len)?;
                    }
                    _ => out.put(&self.source.bytes[*at as usize..(*at + *len) as usize])?,
                },
                Part::Content { len, content } => {
                    let at = out.skip(*len)?;
                    counts.extend(content.write(to, at, *len)?);
                }
            }
        }
        out.flush()?;
        Ok(counts)
    }
}

/// A writer that collects small writes.
struct Buffered<'a> {
    to: Destination<'a>,
    /// Where `pending` goes.
    at: u64,
    pending: Vec<u8>,
}

impl Buffered<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), OnnxError> {
        if self.pending.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() > BUFFER {
            self.to.put(self.at, bytes)?;
            self.at += bytes.len() as u64;
        } else {
            self.pending.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), OnnxError> {
        self.to.put(self.at, &self.pending)?;
        self.at += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Leaves room for `len` bytes that are written otherwise; returns where they go.
    fn skip(&mut self, len: u64) -> Result<u64, OnnxError> {
        self.flush()?;
        let at = self.at;
        self.at += len;
        Ok(at)
    }
}
