//! Numbered, checksummed blocks: written with an fsync each and acknowledged after it, read back and judged.
//!
//! Block `n` (from 1) lies at `(n - 1) * BLOCK`: magic, number, writer, and a SHA-256 over all of it. A writer goes on after
//! the last whole block that it finds, so the blocks of one life of a pod follow those of the one before.
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of a block.
pub const BLOCK: usize = 4096;
const MAGIC: &[u8; 8] = b"HOLDFAST";
const WRITER: usize = 64;
const SUM: usize = 32;

/// What a verifier found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Blocks that are whole and in order, from the first on.
    pub blocks: u64,
    /// Who wrote them, in their order; one who wrote again after another stands there again.
    pub writers: Vec<String>,
    /// The last block of each of them.
    #[serde(default)]
    pub ends: Vec<u64>,
    /// What is wrong behind them, if anything is.
    pub fault: Option<String>,
    /// Bytes of the filesystem that the file is on, or of the device.
    #[serde(default)]
    pub capacity_bytes: u64,
    /// The filesystem that the file is on; none for a device, or where it is none that is told.
    #[serde(default)]
    pub filesystem: Option<String>,
}

/// The bytes of block `number` by `writer`.
fn encode(number: u64, writer: &str) -> Vec<u8> {
    let mut block = vec![0u8; BLOCK];
    block[..8].copy_from_slice(MAGIC);
    block[8..16].copy_from_slice(&number.to_le_bytes());
    let name = writer.as_bytes();
    let length = name.len().min(WRITER);
    block[16..16 + length].copy_from_slice(&name[..length]);
    let sum = Sha256::digest(&block[..BLOCK - SUM]);
    block[BLOCK - SUM..].copy_from_slice(&sum);
    block
}

/// Number and writer of a block, if it is whole.
fn decode(block: &[u8]) -> Option<(u64, String)> {
    if block.len() != BLOCK || &block[..8] != MAGIC {
        return None;
    }
    let sum = Sha256::digest(&block[..BLOCK - SUM]);
    if block[BLOCK - SUM..] != sum[..] {
        return None;
    }
    let number = u64::from_le_bytes(block[8..16].try_into().ok()?);
    let name = &block[16..16 + WRITER];
    let end = name.iter().position(|b| *b == 0).unwrap_or(WRITER);
    Some((number, String::from_utf8_lossy(&name[..end]).into_owned()))
}

/// Reads blocks until the first that is blank or beyond the end.
///
/// # Errors
/// If the file cannot be read.
pub fn verify(path: &Path) -> std::io::Result<Report> {
    let file = match File::open(path) {
        Ok(file) => file,
        // Whoever wrote blocks made it: their loss is a finding, no trouble of the reader's.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Report {
                fault: Some(format!("there is no {}", path.display())),
                ..Report::default()
            });
        }
        Err(error) => return Err(error),
    };
    let mut report = Report {
        capacity_bytes: capacity(&file)?,
        filesystem: filesystem(&file)?,
        ..Report::default()
    };
    let mut block = vec![0u8; BLOCK];
    loop {
        let read = read_full(&file, &mut block, report.blocks * BLOCK as u64)?;
        if read == 0 || block[..read].iter().all(|byte| *byte == 0) {
            return Ok(report);
        }
        match decode(&block[..read]) {
            Some((number, writer)) if number == report.blocks + 1 => {
                report.blocks = number;
                if report.writers.last() != Some(&writer) {
                    report.writers.push(writer);
                    report.ends.push(number);
                }
                if let Some(end) = report.ends.last_mut() {
                    *end = number;
                }
            }
            found => {
                report.fault = Some(format!("block {} is {found:?}", report.blocks + 1));
                return Ok(report);
            }
        }
    }
}

fn is_device(file: &File) -> std::io::Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    Ok(file.metadata()?.file_type().is_block_device())
}

/// By the number that statfs(2) has for it; ext2 and ext3 have that of ext4.
fn filesystem(file: &File) -> std::io::Result<Option<String>> {
    use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};
    if is_device(file)? {
        return Ok(None);
    }
    Ok(match fstatfs(file)?.filesystem_type() {
        EXT4_SUPER_MAGIC => Some(String::from("ext4")),
        XFS_SUPER_MAGIC => Some(String::from("xfs")),
        _ => None,
    })
}

fn capacity(file: &File) -> std::io::Result<u64> {
    use std::io::Seek;
    if is_device(file)? {
        return (&*file).seek(std::io::SeekFrom::End(0));
    }
    let stats = nix::sys::statvfs::fstatvfs(file)?;
    Ok(stats.blocks() * stats.fragment_size())
}

/// A filesystem gives less than it was asked for only at the end, a device may at any point.
fn read_full(file: &File, block: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < block.len() {
        match file.read_at(&mut block[done..], offset + done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(done)
}

/// A file that blocks are appended to.
#[derive(Debug)]
pub struct Writer {
    file: File,
    name: String,
    next: u64,
}

impl Writer {
    /// Opens `path` (made if it is a file that is not there) behind its last whole block.
    ///
    /// # Errors
    /// If it cannot be opened, or what is there is not whole.
    pub fn open(path: &Path, name: &str) -> std::io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let report = verify(path)?;
        match report.fault {
            // A torn last block was never acknowledged, so it is written again; two in a row cannot come from one crash.
            Some(fault) if !torn_tail(&file, report.blocks)? => return Err(std::io::Error::other(fault)),
            Some(_) | None => {}
        }
        // Nothing but blocks was ever written to a device of ours: whatever else it holds was somebody's before.
        if is_device(&file)?
            && let Some(offset) = first_byte(&file, (report.blocks + 1) * BLOCK as u64)?
        {
            let blocks = report.blocks;
            return Err(std::io::Error::other(format!(
                "data that nobody wrote at byte {offset}, behind {blocks} blocks"
            )));
        }
        Ok(Self {
            file,
            name: name.to_owned(),
            next: report.blocks + 1,
        })
    }

    /// How many whole blocks there are.
    pub fn blocks(&self) -> u64 {
        self.next - 1
    }

    /// Writes the next block, makes it durable, and gives its number: only now may it be acknowledged.
    ///
    /// # Errors
    /// The kernel's; a block that failed is not acknowledged.
    pub fn append(&mut self) -> std::io::Result<u64> {
        let number = self.next;
        self.file
            .write_all_at(&encode(number, &self.name), (number - 1) * BLOCK as u64)?;
        self.file.sync_all()?;
        self.next += 1;
        Ok(number)
    }
}

fn torn_tail(file: &File, whole: u64) -> std::io::Result<bool> {
    let mut block = vec![0u8; BLOCK];
    let read = read_full(file, &mut block, (whole + 1) * BLOCK as u64)?;
    Ok(block[..read].iter().all(|byte| *byte == 0))
}

/// Where from `offset` on the first byte is that is not zero.
fn first_byte(file: &File, offset: u64) -> std::io::Result<Option<u64>> {
    let blank = vec![0u8; 1 << 20];
    let mut chunk = blank.clone();
    let mut at = offset;
    loop {
        let read = read_full(file, &mut chunk, at)?;
        // Whole chunks are compared at once: a device has a gigabyte.
        if chunk[..read] != blank[..read]
            && let Some(index) = chunk[..read].iter().position(|byte| *byte != 0)
        {
            return Ok(Some(at + index as u64));
        }
        if read < chunk.len() {
            return Ok(None);
        }
        at += read as u64;
    }
}

/// The line in which a writer tells how many blocks it found.
pub fn beginning(blocks: u64) -> String {
    format!("found {blocks}")
}

/// The number in such a line.
pub fn found(line: &str) -> Option<u64> {
    line.trim().strip_prefix("found ")?.parse().ok()
}

/// The line by which a writer acknowledges a block.
pub fn acknowledgement(number: u64) -> String {
    format!("ack {number}")
}

/// The number in such a line.
pub fn acknowledged(line: &str) -> Option<u64> {
    line.trim().strip_prefix("ack ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(blocks: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = Writer::open(file.path(), "w").unwrap();
        for _ in 0..blocks {
            writer.append().unwrap();
        }
        file
    }

    #[test]
    fn a_writer_goes_on_where_the_last_one_ended() {
        let file = written(3);
        assert_eq!(Writer::open(file.path(), "v").unwrap().append().unwrap(), 4);
        let report = verify(file.path()).unwrap();
        assert_eq!(
            (report.blocks, report.writers),
            (4, vec![String::from("w"), String::from("v")])
        );
    }

    #[test]
    fn a_lost_block_in_the_middle_is_seen() {
        let file = written(3);
        file.as_file().write_all_at(&[0u8; BLOCK], BLOCK as u64).unwrap();
        assert_eq!(verify(file.path()).unwrap().blocks, 1);
    }

    #[test]
    fn a_file_that_is_gone_has_no_blocks() {
        let file = written(3);
        let path = file.path().to_owned();
        file.close().unwrap();
        let report = verify(&path).unwrap();
        assert!(report.blocks == 0 && report.fault.is_some(), "{report:?}");
    }

    #[test]
    fn a_flipped_bit_is_seen() {
        let file = written(3);
        file.as_file().write_all_at(&[1], BLOCK as u64 + 100).unwrap();
        let report = verify(file.path()).unwrap();
        assert_eq!(report.blocks, 1);
        assert!(report.fault.is_some());
    }

    #[test]
    fn a_torn_last_block_is_written_again() {
        let file = written(2);
        file.as_file()
            .write_all_at(&encode(3, "w")[..100], 2 * BLOCK as u64)
            .unwrap();
        assert_eq!(Writer::open(file.path(), "w").unwrap().append().unwrap(), 3);
    }

    #[test]
    fn two_who_write_in_turns_are_told() {
        let file = written(1);
        for writer in ["v", "w", "w"] {
            Writer::open(file.path(), writer).unwrap().append().unwrap();
        }
        let report = verify(file.path()).unwrap();
        assert_eq!(report.writers, ["w", "v", "w"]);
        assert_eq!(report.ends, [1, 2, 4]);
    }

    #[test]
    fn the_first_byte_that_is_not_zero_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(5 << 20).unwrap();
        assert_eq!(first_byte(file.as_file(), 0).unwrap(), None);
        file.as_file().write_all_at(&[1], (3 << 20) + 5).unwrap();
        assert_eq!(
            first_byte(file.as_file(), BLOCK as u64).unwrap(),
            Some((3 << 20) + 5)
        );
        assert_eq!(first_byte(file.as_file(), 4 << 20).unwrap(), None);
    }

    #[test]
    fn what_a_writer_found_reads_back() {
        assert_eq!(found(&beginning(3)), Some(3));
        assert_eq!(found(&acknowledgement(3)), None);
    }

    #[test]
    fn an_acknowledgement_reads_back() {
        assert_eq!(acknowledged(&acknowledgement(7)), Some(7));
        assert_eq!(acknowledged("ack x"), None);
    }
}
