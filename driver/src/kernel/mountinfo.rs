//! /proc/self/mountinfo, read whole: octal escapes, optional fields, stacked mounts.
//!
//! The format is that of proc_pid_mountinfo(5).
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::KernelError;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: u64,
    /// The mount below it.
    pub parent: u64,
    /// Major number of the filesystem's device.
    pub major: u32,
    /// Minor number of the filesystem's device.
    pub minor: u32,
    /// Which part of the filesystem is mounted.
    pub root: PathBuf,
    /// Whether that part has lost its name since; the kernel says so with `//deleted`, which no path has.
    pub deleted: bool,
    /// Where.
    pub target: PathBuf,
    /// Options of this mount: ro, nosuid, ...
    pub options: Vec<String>,
    /// Filesystem type.
    pub fs: String,
    /// Options of the filesystem itself.
    pub super_options: Vec<String>,
}

impl Mount {
    /// Whether nothing can be written through this mount.
    pub fn is_read_only(&self) -> bool {
        let ro = |options: &[String]| options.iter().any(|o| o == "ro");
        ro(&self.options) || ro(&self.super_options)
    }
}

/// Parses the whole file.
///
/// # Errors
/// [`KernelError::Unexpected`] with the line: a mount that cannot be read must not count as absent.
pub fn parse(text: &[u8]) -> Result<Vec<Mount>, KernelError> {
    text.split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(line)
        .collect()
}

fn line(line: &[u8]) -> Result<Mount, KernelError> {
    fields(line).ok_or_else(|| KernelError::Unexpected {
        what: "mountinfo",
        text: String::from_utf8_lossy(line).into_owned(),
    })
}

fn fields(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|b| *b == b' ');
    let mut text = || words.next().and_then(|w| std::str::from_utf8(w).ok());
    let id = text()?.parse().ok()?;
    let parent = text()?.parse().ok()?;
    let (major, minor) = text()?.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let root = unescape(words.next()?);
    let (root, deleted) = match root.strip_suffix(b"//deleted".as_slice()) {
        Some([]) => (b"/".to_vec(), true),
        Some(named) => (named.to_vec(), true),
        None => (root, false),
    };
    let root = PathBuf::from(OsString::from_vec(root));
    let target = PathBuf::from(OsString::from_vec(unescape(words.next()?)));
    let options = list(words.next()?);
    // Any number of optional fields (shared:N, master:N, ...) end with a single dash.
    words.by_ref().find(|w| *w == b"-")?;
    let fs = String::from_utf8_lossy(words.next()?).into_owned();
    let _source = words.next()?;
    let super_options = list(words.next().unwrap_or_default());
    Some(Mount {
        id,
        parent,
        major,
        minor,
        root,
        deleted,
        target,
        options,
        fs,
        super_options,
    })
}

fn list(word: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(word)
        .split(',')
        .map(str::to_owned)
        .collect()
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = |b: &u8| (b'0'..=b'7').contains(b);
        match tail {
            [a, b, c, after @ ..] if first == b'\\' && octal(a) && octal(b) && octal(c) && *a < b'4' => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// The mounts at exactly `target`, the topmost last. Their order in the file is that of their making, and a mount that was
/// made elsewhere and moved here can lie on a younger one: which lies on which is said by their parents alone.
pub fn at<'a>(mounts: &'a [Mount], target: &Path) -> Vec<&'a Mount> {
    let mut left: Vec<&Mount> = mounts.iter().filter(|m| m.target == target).collect();
    let mut sorted: Vec<&Mount> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let lowest = left
            .iter()
            .position(|m| left.iter().all(|other| other.id != m.parent || other.id == m.id))
            .unwrap_or(0);
        sorted.push(left.remove(lowest));
    }
    sorted
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain(
        "36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue",
        "/mnt",
        98
    )]
    #[case::no_optional_field("36 35 7:3 / /mnt ro - ext4 /dev/loop3 rw", "/mnt", 7)]
    #[case::three_optional_fields(
        "36 35 7:3 / /m rw shared:1 master:2 propagate_from:3 - ext4 d rw",
        "/m",
        7
    )]
    #[case::space(r"36 35 7:3 / /a\040b rw - ext4 d rw", "/a b", 7)]
    #[case::backslash(r"36 35 7:3 / /a\134040 rw - ext4 d rw", r"/a\040", 7)]
    #[case::newline(r"36 35 7:3 / /a\012b rw - ext4 d rw", "/a\nb", 7)]
    #[case::empty_source("36 35 0:9 / /m rw -  tmpfs  rw", "/m", 0)]
    fn lines(#[case] text: &str, #[case] target: &str, #[case] major: u32) {
        // A filesystem may have an empty type or source: both are then just nothing between two spaces.
        let mounts = parse(text.as_bytes()).unwrap();
        assert_eq!(
            (mounts[0].target.to_str().unwrap(), mounts[0].major),
            (target, major)
        );
    }

    #[test]
    fn a_line_that_is_not_understood_is_an_error_not_an_absence() {
        assert!(parse(b"36 35 7:3 / /a rw - ext4 d rw\ngarbage\n").is_err());
    }

    #[test]
    fn stacked_mounts_come_topmost_last() {
        let text =
            b"1 0 7:1 / /a rw - ext4 d rw\n2 1 7:2 / /a rw - ext4 d rw\n3 0 7:3 / /ab rw - ext4 d rw\n";
        let mounts = parse(text).unwrap();
        let minors: Vec<u32> = at(&mounts, Path::new("/a")).iter().map(|m| m.minor).collect();
        assert_eq!(minors, [1, 2]);
    }

    #[test]
    fn a_moved_mount_lies_on_a_younger_one() {
        let text = b"9 7 7:1 / /a rw - ext4 d rw\n7 0 7:2 / /a rw - ext4 d rw\n";
        let mounts = parse(text).unwrap();
        let minors: Vec<u32> = at(&mounts, Path::new("/a")).iter().map(|m| m.minor).collect();
        assert_eq!(minors, [2, 1]);
        let text = b"7 9 7:1 / /a rw - ext4 d rw\n9 0 7:2 / /a rw - ext4 d rw\n";
        let mounts = parse(text).unwrap();
        let minors: Vec<u32> = at(&mounts, Path::new("/a")).iter().map(|m| m.minor).collect();
        assert_eq!(minors, [2, 1]);
    }

    #[rstest]
    #[case::device(r"/loop5//deleted", "/loop5", true)]
    #[case::folder(r"/a\040b//deleted", "/a b", true)]
    #[case::whole(r"//deleted", "/", true)]
    #[case::only_named_so(r"/a/deleted", "/a/deleted", false)]
    #[case::plain("/", "/", false)]
    fn deleted_sources(#[case] text: &str, #[case] root: &str, #[case] deleted: bool) {
        let mounts = parse(format!("1 0 0:5 {text} /t rw - devtmpfs d rw").as_bytes()).unwrap();
        assert_eq!(
            (mounts[0].root.to_str().unwrap(), mounts[0].deleted),
            (root, deleted)
        );
    }

    #[test]
    fn tabs_and_other_alphabets_survive() {
        let mounts = parse("1 0 7:1 / /t\\011ab/\u{e4}\u{1f4be} rw - ext4 d rw\n".as_bytes()).unwrap();
        assert_eq!(mounts[0].target.to_str().unwrap(), "/t\tab/\u{e4}\u{1f4be}");
    }

    #[test]
    fn non_utf8_paths_survive() {
        let mounts = parse(b"1 0 7:1 / /a\xff rw - ext4 d rw\n").unwrap();
        assert_eq!(mounts[0].target.as_os_str().as_encoded_bytes(), b"/a\xff");
    }
}
