//! The libraries that the dynamic linker would load for a program.
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::image_error::{ImageError, LIMIT_STEP};
use crate::command::{self, Command};

/// Every library of `program`, the dynamic linker included; none for a static one.
pub(super) async fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>, ImageError> {
    let ldd = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .timeout(LIMIT_STEP);
    match command::run(&ldd).await {
        Ok(output) => parse_ldd(program, &output.stdout),
        // A static program is no error to us, but one to ldd.
        Err(error) if error.to_string().contains("not a dynamic executable") || is_static(program) => {
            drop(error);
            Ok(BTreeSet::new())
        }
        Err(source) => Err(ImageError::Command {
            step: "listing libraries",
            source,
        }),
    }
}

/// Whether an ELF program names no interpreter: its program headers hold no PT_INTERP.
fn is_static(program: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let Ok(bytes) = fs::read(program) else {
        return false;
    };
    let word = |at: usize, len: usize| -> Option<u64> {
        let slice = bytes.get(at..at.checked_add(len)?)?;
        Some(
            slice
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    // 64-bit little-endian only, as every platform that we support is.
    if bytes.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return false;
    }
    let (Some(offset), Some(size), Some(count)) = (word(32, 8), word(54, 2), word(56, 2)) else {
        return false;
    };
    (0..count).all(|index| {
        let at = usize::try_from(offset + index * size).unwrap_or(usize::MAX);
        word(at, 4).is_some_and(|kind| kind != u64::from(PT_INTERP))
    })
}

/// Paths from ldd's lines: `name => /path (0x…)` and `/path (0x…)`; the kernel's vdso has no file.
fn parse_ldd(program: &Path, text: &str) -> Result<BTreeSet<PathBuf>, ImageError> {
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        let target = line.split_once(" => ").map_or(line, |(_, target)| target);
        if target == "not found" {
            let library = line.split(' ').next().unwrap_or(line).to_owned();
            return Err(ImageError::Library {
                program: program.to_owned(),
                library,
            });
        }
        if target.starts_with('/') {
            found.insert(PathBuf::from(target.split(" (0x").next().unwrap_or(target)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LDD: &str = "\tlinux-vdso.so.1 (0x00007ffe)\n\
        \tlibext2fs.so.2 => /lib/x86_64-linux-gnu/libext2fs.so.2 (0x00007f1)\n\
        \t/lib64/ld-linux-x86-64.so.2 (0x00007f2)\n";

    #[test]
    fn ldd_gives_libraries_and_the_linker_but_not_the_vdso() {
        let found = parse_ldd(Path::new("/sbin/mke2fs"), LDD).unwrap();
        let expected = [
            "/lib/x86_64-linux-gnu/libext2fs.so.2",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, expected.iter().map(PathBuf::from).collect());
    }

    #[test]
    fn a_library_that_is_missing_is_named() {
        let error = parse_ldd(Path::new("/sbin/mke2fs"), "\tlibfoo.so.1 => not found\n").unwrap_err();
        assert!(matches!(error, ImageError::Library { library, .. } if library == "libfoo.so.1"));
    }
}
