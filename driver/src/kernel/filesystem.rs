//! Filesystems on a device: recognised by their superblocks, made once, checked, grown.
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Kernel, KernelError};

/// The filesystems that volumes can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fs {
    /// ext4, also where no type is given.
    Ext4,
    /// XFS.
    Xfs,
}

impl Fs {
    /// As mount(2) knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Which filesystem.
    pub fs: Fs,
    /// How large it is.
    pub size_bytes: u64,
}

/// The filesystem on `device`, if it has one of ours.
///
/// # Errors
/// The failed call: what cannot be read is not "no filesystem".
pub fn probe(device: &File) -> io::Result<Option<Superblock>> {
    let mut head = [0_u8; 2048];
    let read = device.read_at(&mut head, 0)?;
    Ok(parse(&head[..read]))
}

fn parse(head: &[u8]) -> Option<Superblock> {
    let be32 = |at: usize| {
        head.get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_be_bytes)
    };
    let be64 = |at: usize| {
        head.get(at..at + 8)
            .and_then(|b| b.try_into().ok())
            .map(u64::from_be_bytes)
    };
    let le32 = |at: usize| {
        head.get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes)
    };
    if head.get(..4) == Some(b"XFSB") {
        let size_bytes = u64::from(be32(4)?).checked_mul(be64(8)?)?;
        return Some(Superblock {
            fs: Fs::Xfs,
            size_bytes,
        });
    }
    // The superblock of ext4 begins at 1024; its fields are those of ext4_super_block.
    if head.get(1024 + 56..1024 + 58) == Some(&[0x53, 0xef]) {
        let low = u64::from(le32(1024 + 4)?);
        let wide = le32(1024 + 96)? & 0x80 != 0;
        let high = if wide {
            u64::from(le32(1024 + 336)?) << 32
        } else {
            0
        };
        let block = 1024_u64.checked_shl(le32(1024 + 24)?)?;
        return Some(Superblock {
            fs: Fs::Ext4,
            size_bytes: (high | low).checked_mul(block)?,
        });
    }
    None
}

fn tool(kernel: &dyn Kernel, tool: &str, arguments: &[&str], good: &[i32]) -> Result<(), KernelError> {
    let output = kernel.run(tool, arguments)?;
    if output.code.is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    let code = output
        .code
        .map_or_else(|| String::from("a signal"), |code| format!("exit code {code}"));
    Err(KernelError::Tool {
        tool: tool.to_owned(),
        code,
        output: output.text,
    })
}

/// Makes a filesystem on a device that is proved blank, or whose making was never finished.
///
/// # Errors
/// The tool's.
pub fn make(kernel: &dyn Kernel, fs: Fs, device: &Path) -> Result<(), KernelError> {
    let device = device.to_string_lossy();
    match fs {
        // Everything is a hole already: nothing to discard, and tables may be written when they are needed.
        Fs::Ext4 => {
            let options = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
            tool(
                kernel,
                "mke2fs",
                &["-t", "ext4", "-q", "-F", "-m", "0", "-E", options, &device],
                &[0],
            )
        }
        Fs::Xfs => tool(kernel, "mkfs.xfs", &["-q", "-f", "-K", &device], &[0]),
    }
}

/// Repairs what can be repaired without a decision; only before a mount that may write. XFS replays its log by itself.
///
/// # Errors
/// The tool's, where somebody must decide.
pub fn check(kernel: &dyn Kernel, fs: Fs, device: &Path, thorough: bool) -> Result<(), KernelError> {
    match fs {
        // 0: nothing to do, 1: repaired (e2fsck(8)).
        Fs::Ext4 => {
            let how = if thorough { "-fp" } else { "-p" };
            tool(kernel, "e2fsck", &[how, &device.to_string_lossy()], &[0, 1])
        }
        Fs::Xfs => Ok(()),
    }
}

/// Makes an unmounted ext4 as large as its device, or a mounted one where the kernel lets us (CAP_SYS_RESOURCE).
///
/// # Errors
/// The tool's.
pub fn grow_ext4(kernel: &dyn Kernel, device: &Path) -> Result<(), KernelError> {
    tool(kernel, "resize2fs", &[&device.to_string_lossy()], &[0])
}

/// Makes a mounted XFS as large as its device.
///
/// # Errors
/// The tool's.
pub fn grow_xfs(kernel: &dyn Kernel, mounted_at: &Path) -> Result<(), KernelError> {
    tool(kernel, "xfs_growfs", &["-d", &mounted_at.to_string_lossy()], &[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_are_told_apart() {
        let mut xfs = vec![0_u8; 2048];
        xfs[..4].copy_from_slice(b"XFSB");
        xfs[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        xfs[8..16].copy_from_slice(&100_u64.to_be_bytes());
        assert_eq!(
            parse(&xfs),
            Some(Superblock {
                fs: Fs::Xfs,
                size_bytes: 409_600
            })
        );
        let mut ext4 = vec![0_u8; 2048];
        ext4[1080..1082].copy_from_slice(&[0x53, 0xef]);
        ext4[1028..1032].copy_from_slice(&16_u32.to_le_bytes());
        ext4[1048..1052].copy_from_slice(&2_u32.to_le_bytes());
        assert_eq!(
            parse(&ext4),
            Some(Superblock {
                fs: Fs::Ext4,
                size_bytes: 65_536
            })
        );
        assert_eq!(parse(&[0_u8; 2048]), None);
    }
}
