//! The only unsafe code: loop ioctls, the mount calls that libc does not wrap, a child's death signal. What is made of them
//! is in `host`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

// linux/loop.h, linux/fs.h, linux/mount.h
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_SET_STATUS64: libc::c_ulong = 0x4C04;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN are the same number, and their 0 writes out first.
const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
const SHUTDOWN_FLUSHES: u32 = 0;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct LoopInfo64 {
    pub(super) device: u64,
    pub(super) inode: u64,
    rdevice: u64,
    pub(super) offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub(super) flags: u32,
    pub(super) file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

impl LoopInfo64 {
    pub(super) fn zero() -> Self {
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

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn ioctl_number(fd: RawFd, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<libc::c_long> {
    // SAFETY: the requests passed here take no argument or a plain number, so the kernel touches no memory of ours.
    checked(unsafe { libc::ioctl(fd, request as _, argument) }.into())
}

pub(super) fn loop_status(device: &File) -> io::Result<LoopInfo64> {
    let mut info = LoopInfo64::zero();
    // SAFETY: LOOP_GET_STATUS64 writes one struct loop_info64; LoopInfo64 has its layout and outlives the call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) }.into())?;
    Ok(info)
}

pub(super) fn set_loop_status(device: &File, info: &LoopInfo64) -> io::Result<()> {
    // SAFETY: LOOP_SET_STATUS64 reads one struct loop_info64; LoopInfo64 has its layout and outlives the call.
    checked(
        unsafe {
            libc::ioctl(
                device.as_raw_fd(),
                LOOP_SET_STATUS64 as _,
                std::ptr::from_ref(info),
            )
        }
        .into(),
    )
    .map(drop)
}

pub(super) fn loop_configure(device: &File, file: &File, info: LoopInfo64) -> io::Result<()> {
    let config = LoopConfig {
        fd: file.as_raw_fd() as u32,
        block_size: 0,
        info,
        reserved: [0; 8],
    };
    // SAFETY: LOOP_CONFIGURE reads one struct loop_config; LoopConfig has its layout and outlives the call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) }.into())
        .map(drop)
}

pub(super) fn loop_free_number(control: &File) -> io::Result<u32> {
    let number = ioctl_number(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0)?;
    u32::try_from(number).map_err(|_| io::ErrorKind::InvalidData.into())
}

pub(super) fn loop_clear(device: &File) -> io::Result<()> {
    ioctl_number(device.as_raw_fd(), LOOP_CLR_FD, 0).map(drop)
}

pub(super) fn loop_refresh(device: &File) -> io::Result<()> {
    ioctl_number(device.as_raw_fd(), LOOP_SET_CAPACITY, 0).map(drop)
}

pub(super) fn device_size(device: &File) -> io::Result<u64> {
    let mut size = 0_u64;
    // SAFETY: BLKGETSIZE64 writes one u64, which outlives the call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) }.into())?;
    Ok(size)
}

/// Ends the filesystem that `file` is of.
pub(super) fn shut_down(file: &OwnedFd) -> io::Result<()> {
    let how = SHUTDOWN_FLUSHES;
    // SAFETY: FS_IOC_SHUTDOWN reads one u32, which outlives the call.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_SHUTDOWN as _, &raw const how) }.into()).map(drop)
}

/// A detached copy of the mount at `from`; it is gone with the descriptor unless it is moved somewhere.
pub(super) fn open_tree(from: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint | libc::AT_EMPTY_PATH as libc::c_uint;
    // SAFETY: the arguments are numbers and an empty NUL-terminated path; the call returns a new descriptor.
    let fd = checked(unsafe { libc::syscall(libc::SYS_open_tree, from.as_raw_fd(), c"".as_ptr(), flags) })?;
    // SAFETY: the kernel has just given this descriptor to us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sets and clears MOUNT_ATTR_* of a detached mount.
pub(super) fn mount_setattr(tree: &OwnedFd, set: u64, clear: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
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
    checked(result).map(drop)
}

/// Puts a detached mount on what `to` is open on.
pub(super) fn move_mount(tree: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    // SAFETY: the arguments are numbers and empty NUL-terminated paths.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            to.as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    checked(result).map(drop)
}

/// A mount of `device` that no path leads to and nobody else sees; it is gone with the descriptor. Where the device is
/// mounted already, it is one more mount of that same filesystem.
pub(super) fn private_mount(device: &Path, fs: &str, options: &[&CStr]) -> io::Result<OwnedFd> {
    let (device, fs) = (c_path(device)?, c_path(Path::new(fs))?);
    // SAFETY: the arguments are a NUL-terminated path that outlives the call and a number; it returns a new descriptor.
    let fd = checked(unsafe { libc::syscall(libc::SYS_fsopen, fs.as_ptr(), libc::FSOPEN_CLOEXEC) })?;
    // SAFETY: the kernel has just given this descriptor to us, and nobody else knows it.
    let context = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let configure = |command: libc::c_uint, key: *const libc::c_char, value: *const libc::c_char| {
        // SAFETY: key and value are null where the command takes none, else NUL-terminated and alive until the return.
        checked(unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) })
    };
    configure(FSCONFIG_SET_STRING, c"source".as_ptr(), device.as_ptr())?;
    for option in options {
        configure(FSCONFIG_SET_FLAG, option.as_ptr(), std::ptr::null())?;
    }
    configure(FSCONFIG_CMD_CREATE, std::ptr::null(), std::ptr::null())?;
    // SAFETY: the arguments are numbers; the call returns a new descriptor.
    let fd =
        checked(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), libc::FSMOUNT_CLOEXEC, 0) })?;
    // SAFETY: the kernel has just given this descriptor to us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Asks for an attribute that nobody sets: the cheapest question that a filesystem answers itself, without waiting for
/// anything. The error is its answer.
pub(super) fn ask_attribute(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: both strings are NUL-terminated and outlive the call; with a size of 0 no buffer is written.
    checked(
        unsafe { libc::getxattr(path.as_ptr(), c"user.holdfast".as_ptr(), std::ptr::null_mut(), 0) }
            as libc::c_long,
    )
    .map(drop)
}

/// Reads an extended attribute of at most 64 bytes.
pub(super) fn attribute(path: &Path, name: &CStr) -> io::Result<Vec<u8>> {
    let path = c_path(path)?;
    let mut value = vec![0_u8; 64];
    // SAFETY: path and name are NUL-terminated, the buffer is as long as is said, and all outlive the call.
    let length = checked(unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    } as libc::c_long)?;
    value.truncate(usize::try_from(length).unwrap_or(0));
    Ok(value)
}

/// Writes an extended attribute.
pub(super) fn set_attribute(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: path and name are NUL-terminated, the value is as long as is said, and all outlive the call.
    checked(
        unsafe {
            libc::setxattr(
                path.as_ptr(),
                name.as_ptr(),
                value.as_ptr().cast(),
                value.len(),
                0,
            )
        }
        .into(),
    )
    .map(drop)
}

/// Lets all threads share one pool of memory: with one for each, the peak of every thread stays resident.
#[cfg(target_env = "gnu")]
pub fn share_memory() {
    // SAFETY: mallopt takes two numbers; called before there are other threads. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Another C library has no such pools.
#[cfg(not(target_env = "gnu"))]
pub fn share_memory() {}

/// Lets `command` die with this process: without it a tool would go on writing to the device after this was killed.
pub(super) fn dies_with_us(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe, and nothing is allocated between fork and exec.
    unsafe {
        command.pre_exec(|| checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into()).map(drop));
    }
}
