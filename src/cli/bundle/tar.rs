//! Writes a tar archive of a few texts: POSIX ustar, which every tar reads.
//!
//! Plain files with short names alone, readable by their owner; nothing else is needed here.

/// An archive in the making.
pub(super) struct Archive {
    bytes: Vec<u8>,
    folder: String,
    unix_s: u64,
}

const BLOCK: usize = 512;
/// The largest size that a header can say.
const SIZE_MAX: usize = 0o77_777_777_777;

impl Archive {
    /// All files will lie in `folder` and be of that moment.
    pub(super) fn new(folder: String, unix_s: u64) -> Archive {
        Archive { bytes: Vec::new(), folder, unix_s }
    }

    /// Adds a file. A name that is too long is cut, and so is what is too large for a header.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) {
        let content = &content[..content.len().min(SIZE_MAX)];
        let mut header = [0; BLOCK];
        let mut put = |at: usize, field: &str, length: usize| {
            let bytes = &field.as_bytes()[..field.len().min(length)];
            header[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &format!("{}/{name}", self.folder), 100);
        put(100, "0000600", 7);
        put(108, "0000000", 7);
        put(116, "0000000", 7);
        put(124, &format!("{:011o}", content.len()), 11);
        put(136, &format!("{:011o}", self.unix_s.min(0o77_777_777_777)), 11);
        // While the sum is taken, its own field is blank.
        put(148, "        ", 8);
        put(156, "0", 1);
        put(257, "ustar\0", 6);
        put(263, "00", 2);
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    /// The whole archive.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_the_standard_has_them() {
        let mut archive = Archive::new("support".into(), 1_793_607_330);
        archive.add("a.txt", b"hello\n");
        archive.add("empty", b"");
        archive.add("exact", &[b'x'; BLOCK]);
        let bytes = archive.end();
        // Header and content, header alone, header and content, and the end.
        assert_eq!(bytes.len(), (2 + 1 + 2 + 2) * BLOCK);
        assert_eq!(&bytes[..13], b"support/a.txt");
        assert_eq!(&bytes[124..136], b"00000000006\0");
        assert_eq!(&bytes[257..265], b"ustar\x0000");
        assert_eq!(&bytes[BLOCK..BLOCK + 6], b"hello\n");
        let sum =
            u32::from_str_radix(std::str::from_utf8(&bytes[148..154]).expect("digits"), 8).expect("octal");
        let mut header = bytes[..BLOCK].to_vec();
        header[148..156].fill(b' ');
        assert_eq!(sum, header.iter().map(|b| u32::from(*b)).sum::<u32>());
        assert!(bytes[bytes.len() - 2 * BLOCK..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_name_that_is_too_long_is_cut() {
        let mut archive = Archive::new("f".repeat(300), 0);
        archive.add("a", b"");
        assert_eq!(archive.end().len(), 3 * BLOCK);
    }
}
