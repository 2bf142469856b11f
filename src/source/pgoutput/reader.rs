//! Checked reading of one message: every access is bounded, every failure says where and what.

use std::fmt;

/// A message is not what the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The message's first byte, if it has one.
    pub tag: Option<u8>,
    /// Where in the message, in bytes from its tag.
    pub offset: usize,
    /// What the protocol says stands there.
    pub expected: &'static str,
    /// What does.
    pub found: Found,
}

/// What stands where a [`DecodeError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The message ends too early.
    End {
        /// Bytes that are missing from `offset` on, at least.
        needed: usize,
        /// Bytes that are there.
        left: usize,
    },
    /// A byte that has no meaning there.
    Byte(u8),
    /// A number out of range.
    Number(i64),
    /// A string without its terminating NUL.
    Unterminated,
    /// A string that is not UTF-8.
    NotUtf8,
    /// Bytes after the end of the message.
    Trailing(usize),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::End { needed, left } => write!(f, "{left} of at least {needed} bytes"),
            Found::Byte(byte) => write!(f, "{}", Shown(*byte)),
            Found::Number(number) => write!(f, "{number}"),
            Found::Unterminated => f.write_str("a string without an end"),
            Found::NotUtf8 => f.write_str("bytes that are not UTF-8"),
            Found::Trailing(count) => write!(f, "{count} more bytes"),
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tag {
            Some(tag) => write!(f, "message {}", Shown(tag))?,
            None => f.write_str("empty message")?,
        }
        write!(f, ", byte {}: expected {}, found {}", self.offset, self.expected, self.found)
    }
}

impl std::error::Error for DecodeError {}

/// A byte as people read it.
struct Shown(u8);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_ascii_graphic() {
            write!(f, "'{}'", char::from(self.0))
        } else {
            write!(f, "0x{:02x}", self.0)
        }
    }
}

/// A position in one message. Whatever is read borrows from the message.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// Where the next byte stands.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// What was not read yet.
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// How much was not read yet.
    pub(super) fn left(&self) -> usize {
        self.rest().len()
    }

    /// An error at `offset`.
    pub(super) fn error(&self, offset: usize, expected: &'static str, found: Found) -> DecodeError {
        DecodeError { tag: self.bytes.first().copied(), offset, expected, found }
    }

    /// Checks that `needed` bytes follow: before a list of known length is allocated.
    pub(super) fn check_left(&self, needed: usize, expected: &'static str) -> Result<(), DecodeError> {
        let left = self.left();
        if left < needed { Err(self.error(self.at, expected, Found::End { needed, left })) } else { Ok(()) }
    }

    pub(super) fn bytes(&mut self, count: usize, expected: &'static str) -> Result<&'a [u8], DecodeError> {
        self.check_left(count, expected)?;
        let taken = self.rest().get(..count).unwrap_or_default();
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, expected: &'static str) -> Result<[u8; N], DecodeError> {
        let Some(taken) = self.rest().first_chunk::<N>() else {
            return Err(self.error(self.at, expected, Found::End { needed: N, left: self.left() }));
        };
        self.at += N;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self, expected: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(expected).map(|[byte]| byte)
    }

    pub(super) fn i32(&mut self, expected: &'static str) -> Result<i32, DecodeError> {
        self.array(expected).map(i32::from_be_bytes)
    }

    pub(super) fn u32(&mut self, expected: &'static str) -> Result<u32, DecodeError> {
        self.array(expected).map(u32::from_be_bytes)
    }

    pub(super) fn i64(&mut self, expected: &'static str) -> Result<i64, DecodeError> {
        self.array(expected).map(i64::from_be_bytes)
    }

    pub(super) fn u64(&mut self, expected: &'static str) -> Result<u64, DecodeError> {
        self.array(expected).map(u64::from_be_bytes)
    }

    /// A 16-bit count of at most `max`.
    pub(super) fn count16(&mut self, max: i16, expected: &'static str) -> Result<usize, DecodeError> {
        let offset = self.at;
        let count = self.array(expected).map(i16::from_be_bytes)?;
        match usize::try_from(count) {
            Ok(size) if count <= max => Ok(size),
            _ => Err(self.error(offset, expected, Found::Number(count.into()))),
        }
    }

    /// A 32-bit count or length, not negative. It says nothing about what is there.
    pub(super) fn count32(&mut self, expected: &'static str) -> Result<usize, DecodeError> {
        let offset = self.at;
        let count = self.i32(expected)?;
        usize::try_from(count).map_err(|_| self.error(offset, expected, Found::Number(count.into())))
    }

    /// A string that ends with a NUL.
    pub(super) fn string(&mut self, expected: &'static str) -> Result<&'a str, DecodeError> {
        let (offset, rest) = (self.at, self.rest());
        let Some(length) = rest.iter().position(|byte| *byte == 0) else {
            return Err(self.error(offset, expected, Found::Unterminated));
        };
        self.at += length + 1;
        let text = rest.get(..length).unwrap_or_default();
        std::str::from_utf8(text).map_err(|_| self.error(offset, expected, Found::NotUtf8))
    }

    /// Nothing may follow.
    pub(super) fn finish(&self) -> Result<(), DecodeError> {
        match self.left() {
            0 => Ok(()),
            left => Err(self.error(self.at, "the end of the message", Found::Trailing(left))),
        }
    }
}
