//! The only unsafe code: loop ioctls, the mount calls that libc does not wrap, a child's death signal.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::mountinfo::{self, Mount};
use super::{
    FileId, Kernel, KernelError, LoopFlags, LoopStatus, MountFlags, OpenLoop, ToolOutput, loop_device,
};

// linux/loop.h and linux/fs.h
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LOOP_MAJOR: u64 = 7;
/// How often another process may take the free number first.
const ATTACH_TRIES: u32 = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

impl LoopInfo64 {
    fn zero() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// The running kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

/// Sets the process's umask and returns the one before.
pub fn set_umask(mask: u32) -> u32 {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask)).bits()
}

fn failed(call: &'static str, subject: impl std::fmt::Display) -> impl FnOnce(io::Error) -> KernelError {
    move |errno| KernelError::Syscall {
        call,
        subject: subject.to_string(),
        errno,
    }
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn ioctl_number(fd: RawFd, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<libc::c_long> {
    // SAFETY: the requests passed here take no argument or a plain number, so the kernel touches no memory of ours.
    checked(unsafe { libc::ioctl(fd, request as _, argument) }.into())
}

fn path(path: &Path) -> Result<CString, KernelError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| KernelError::Unexpected {
        what: "path",
        text: path.display().to_string(),
    })
}

fn status(device: &File) -> io::Result<LoopInfo64> {
    let mut info = LoopInfo64::zero();
    // SAFETY: LOOP_GET_STATUS64 writes one struct loop_info64; LoopInfo64 has its layout and outlives the call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) }.into())?;
    Ok(info)
}

fn open_device(number: u32, write: bool) -> io::Result<File> {
    let path = loop_device::path(number);
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_CLOEXEC)
            .open(&path)
    };
    match open() {
        // The /dev of a container can be a copy made at its start: numbers allocated later are missing in it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o660);
            let device = nix::sys::stat::makedev(LOOP_MAJOR, number.into());
            match nix::sys::stat::mknod(&path, nix::sys::stat::SFlag::S_IFBLK, mode, device) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => open(),
                Err(errno) => Err(errno.into()),
            }
        }
        other => other,
    }
}

impl Kernel for Linux {
    fn mounts(&self) -> Result<Vec<Mount>, KernelError> {
        let text = std::fs::read("/proc/self/mountinfo").map_err(failed("read", "/proc/self/mountinfo"))?;
        mountinfo::parse(&text)
    }

    fn mount(
        &self,
        device: &Path,
        target: &Path,
        fs: &str,
        flags: MountFlags,
        data: &str,
    ) -> Result<(), KernelError> {
        let flags = nix::mount::MsFlags::from_bits_truncate(flags.bits);
        nix::mount::mount(Some(device), target, Some(fs), flags, Some(data))
            .map_err(io::Error::from)
            .map_err(failed(
                "mount",
                format_args!("{} on {} as {fs} ({data})", device.display(), target.display()),
            ))
    }

    fn bind(&self, from: &Path, to: &Path, read_only: bool) -> Result<(), KernelError> {
        // A bind is made detached, made read-only, and only then put in its place: mount(2) with MS_BIND|MS_RDONLY is
        // silently writable, and bind-then-remount leaves a writable mount behind if the process dies in between.
        let (c_from, c_to) = (path(from)?, path(to)?);
        let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint;
        // SAFETY: both arguments are numbers and a NUL-terminated path that outlives the call; it returns a new fd.
        let fd =
            checked(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c_from.as_ptr(), flags) })
                .map_err(failed("open_tree", from.display()))?;
        // SAFETY: the kernel has just given this descriptor to us, and nobody else knows it.
        let tree = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        if read_only {
            let attributes = libc::mount_attr {
                attr_set: libc::MOUNT_ATTR_RDONLY,
                attr_clr: 0,
                propagation: 0,
                userns_fd: 0,
            };
            // SAFETY: the struct outlives the call and its true size is passed; the path is the empty string.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_mount_setattr,
                    tree.as_raw_fd(),
                    c"".as_ptr(),
                    libc::AT_EMPTY_PATH,
                    &raw const attributes,
                    size_of::<libc::mount_attr>(),
                )
            };
            checked(result).map_err(failed("mount_setattr", from.display()))?;
        }
        // SAFETY: all paths are NUL-terminated and outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                c_to.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        checked(result).map(|_| ()).map_err(failed(
            "move_mount",
            format_args!("{} on {}", from.display(), to.display()),
        ))
    }

    fn unmount(&self, target: &Path) -> Result<(), KernelError> {
        nix::mount::umount2(target, nix::mount::MntFlags::UMOUNT_NOFOLLOW)
            .map_err(io::Error::from)
            .map_err(failed("umount2", target.display()))
    }

    fn loops(&self, file_name: &str) -> Result<Vec<LoopStatus>, KernelError> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/sys/block").map_err(failed("read", "/sys/block"))? {
            let entry = entry.map_err(failed("read", "/sys/block"))?;
            let name = entry.file_name();
            let Some(number) = name
                .to_str()
                .and_then(|n| n.strip_prefix("loop"))
                .and_then(|n| n.parse().ok())
            else {
                continue;
            };
            // Only a hint, and free of side effects: opening and closing somebody else's device could free it.
            let backing = self.backing_file(number);
            if backing
                .as_deref()
                .and_then(Path::file_name)
                .and_then(|n| n.to_str())
                != Some(file_name)
            {
                continue;
            }
            let device = match open_device(number, false) {
                Ok(device) => device,
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => continue,
                Err(error) => return Err(failed("open", loop_device::path(number).display())(error)),
            };
            match status(&device) {
                Ok(info) => found.push(LoopStatus {
                    number,
                    file: FileId {
                        dev: info.device,
                        inode: info.inode,
                    },
                    flags: LoopFlags {
                        read_only: info.flags & LO_FLAGS_READ_ONLY != 0,
                        autoclear: info.flags & LO_FLAGS_AUTOCLEAR != 0,
                    },
                    tag: String::from_utf8_lossy(&info.file_name)
                        .trim_end_matches('\0')
                        .to_owned(),
                }),
                // Freed since its name was read.
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
                Err(error) => {
                    return Err(failed("LOOP_GET_STATUS64", loop_device::path(number).display())(
                        error,
                    ));
                }
            }
        }
        Ok(found)
    }

    fn backing_file(&self, number: u32) -> Option<PathBuf> {
        let text = std::fs::read(format!("/sys/block/loop{number}/loop/backing_file")).ok()?;
        let text = text.strip_suffix(b"\n").unwrap_or(&text);
        let text = text.strip_suffix(b" (deleted)").unwrap_or(text);
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(text)))
    }

    fn attach(&self, file: &File, flags: LoopFlags, tag: &str) -> Result<OpenLoop, KernelError> {
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")
            .map_err(failed("open", "/dev/loop-control"))?;
        let mut info = LoopInfo64::zero();
        info.flags = LO_FLAGS_DIRECT_IO
            | if flags.read_only { LO_FLAGS_READ_ONLY } else { 0 }
            | if flags.autoclear { LO_FLAGS_AUTOCLEAR } else { 0 };
        // The last byte stays zero: the kernel keeps this as a string.
        for (to, from) in info.file_name[..63].iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        let config = LoopConfig {
            fd: file.as_raw_fd() as u32,
            block_size: 0,
            info,
            reserved: [0; 8],
        };
        for _ in 0..ATTACH_TRIES {
            let number = ioctl_number(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0)
                .map_err(failed("LOOP_CTL_GET_FREE", "/dev/loop-control"))? as u32;
            let device = open_device(number, !flags.read_only)
                .map_err(failed("open", loop_device::path(number).display()))?;
            // SAFETY: LOOP_CONFIGURE reads one struct loop_config; LoopConfig has its layout and outlives the call.
            let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
            match checked(result.into()) {
                Ok(_) => return Ok(OpenLoop { number, file: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => {
                    return Err(failed("LOOP_CONFIGURE", loop_device::path(number).display())(
                        error,
                    ));
                }
            }
        }
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        Err(failed(
            "LOOP_CONFIGURE",
            format_args!("any free device in {ATTACH_TRIES} tries"),
        )(busy))
    }

    fn open_loop(&self, number: u32) -> Result<OpenLoop, KernelError> {
        let file = open_device(number, false).map_err(failed("open", loop_device::path(number).display()))?;
        Ok(OpenLoop { number, file })
    }

    fn detach(&self, device: &OpenLoop) -> Result<(), KernelError> {
        match ioctl_number(device.file.as_raw_fd(), LOOP_CLR_FD, 0) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            Err(error) => Err(failed("LOOP_CLR_FD", device.path().display())(error)),
        }
    }

    fn refresh_size(&self, device: &OpenLoop) -> Result<(), KernelError> {
        ioctl_number(device.file.as_raw_fd(), LOOP_SET_CAPACITY, 0)
            .map(|_| ())
            .map_err(failed("LOOP_SET_CAPACITY", device.path().display()))
    }

    fn size_bytes(&self, device: &OpenLoop) -> Result<u64, KernelError> {
        let mut size = 0_u64;
        // SAFETY: BLKGETSIZE64 writes one u64, which outlives the call.
        checked(unsafe { libc::ioctl(device.file.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) }.into())
            .map_err(failed("BLKGETSIZE64", device.path().display()))?;
        Ok(size)
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> Result<ToolOutput, KernelError> {
        let mut command = Command::new(tool);
        command
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(std::process::Stdio::null());
        // SAFETY: prctl and getppid are async-signal-safe, and nothing is allocated between fork and exec. Without it
        // a tool would go on writing to the device after this process was killed.
        unsafe {
            command
                .pre_exec(|| checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into()).map(|_| ()));
        }
        let output = command.output().map_err(|source| KernelError::NoTool {
            tool: tool.to_owned(),
            source,
        })?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        let text = text.trim();
        let tail = text
            .char_indices()
            .rev()
            .nth(600)
            .map_or(text, |(at, _)| &text[at..]);
        Ok(ToolOutput {
            code: output.status.code(),
            text: tail.replace('\n', "; "),
        })
    }
}
