//! Reading and writing the fields that all formats of this repository share.
//!
//! Numbers of fixed width are little-endian. A `varint` is an unsigned number in groups of
//! seven bits, least significant first, the high bit set on all bytes but the last (LEB128), and
//! never longer than it must be; a `signed varint` is a zigzag-mapped one. Reading never trusts
//! a length: what is not there is an error with the offset, and nothing is allocated before.

/// The bytes are not what the format says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {offset}")]
pub struct Malformed {
    /// Offset in bytes from the start of the object's content.
    pub offset: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// Takes fields off the front of a byte slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Returns a reader at the first byte.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, offset: 0 }
    }

    /// Returns how many bytes have been taken.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Returns how many bytes are left.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// Returns an error about the current position.
    pub fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { offset: self.offset, what }
    }

    /// Takes `count` bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let end = self.offset.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| self.malformed("the content ends early"))?;
        let taken = &self.bytes[self.offset..end];
        self.offset = end;
        Ok(taken)
    }

    /// Takes `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Takes one byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Takes a 32-bit number.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// Takes a 64-bit number.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// Takes a varint.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let start = self.offset;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(Malformed { offset: start, what: "a varint longer than it must be" });
                }
                return Ok(value);
            }
        }
        Err(Malformed { offset: start, what: "a varint beyond 64 bits" })
    }

    /// Takes a varint that counts things of which each takes at least `min_bytes` of what is left,
    /// so that a list of that many can be allocated.
    pub fn count(&mut self, min_bytes: usize) -> Result<usize, Malformed> {
        let at = self.offset;
        let count = self.varint()?;
        usize::try_from(count)
            .ok()
            .filter(|&count| count.checked_mul(min_bytes).is_some_and(|bytes| bytes <= self.left()))
            .ok_or(Malformed { offset: at, what: "a count beyond the end of the content" })
    }

    /// Takes a signed varint.
    pub fn signed(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64)) // zigzag: both casts keep all bits
    }

    /// Checks that nothing is left.
    pub fn end(&self) -> Result<(), Malformed> {
        if self.left() == 0 { Ok(()) } else { Err(self.malformed("bytes after the end")) }
    }
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80); // the low seven bits
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed varint.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, (value << 1 ^ value >> 63) as u64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_come_back(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            put_signed(&mut bytes, signed);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.signed(), Ok(signed));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn arbitrary_bytes_give_a_value_or_an_error(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.left() > 0 && reader.varint().is_ok() {}
        }
    }

    #[test]
    fn refuses_numbers_that_are_too_long() {
        assert_eq!(Reader::new(&[0x80, 0]).varint().unwrap_err().what, "a varint longer than it must be");
        let beyond = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2];
        assert_eq!(Reader::new(&beyond).varint().unwrap_err().what, "a varint beyond 64 bits");
        assert_eq!(Reader::new(&[9]).count(1).unwrap_err().what, "a count beyond the end of the content");
    }
}
