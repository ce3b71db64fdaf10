//! The running kernel: what a node plugin asks of it, made of the calls in `linux`.
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::mount_point::MountPoint;
use super::mountinfo::{self, Mount};
use super::{
    FileId, Kernel, KernelError, LoopFlags, LoopStatus, MountFlags, OpenLoop, ToolOutput, linux, loop_device,
    place,
};
use crate::failpoint;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LOOP_MAJOR: u64 = 7;
/// How often another process may take the free number first.
const ATTACH_TRIES: u32 = 64;
/// Longest end of a tool's output that is kept.
const OUTPUT_CHARS: usize = 600;
/// Further than any file reaches: a loop device that begins here has no byte.
const BEYOND: u64 = 1 << 62;

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

/// The flags of a single mount as MOUNT_ATTR_*: what to set, and what to clear.
fn attributes(flags: MountFlags) -> (u64, u64) {
    let pairs = [
        (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV),
        (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
    ];
    let mut set = 0;
    for (bit, attribute) in pairs {
        if flags.bits & bit != 0 {
            set |= attribute;
        }
    }
    // Access times are one field of three values: it is cleared as a whole before one is set.
    let atime = [
        (libc::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
        (libc::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
        (libc::MS_RELATIME, libc::MOUNT_ATTR_RELATIME),
    ];
    match atime.iter().find(|(bit, _)| flags.bits & bit != 0) {
        Some((_, attribute)) => (set | attribute, libc::MOUNT_ATTR__ATIME),
        None => (set, 0),
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
        let on = MountPoint::open(target)?;
        let flags = nix::mount::MsFlags::from_bits_truncate(flags.bits);
        let mount = || {
            Ok(nix::mount::mount(
                Some(device),
                &place::through(&on.file),
                Some(fs),
                flags,
                Some(data),
            )?)
        };
        failpoint::step("mounted", mount).map_err(|error| {
            let what = format_args!("{} on {} as {fs} ({data})", device.display(), target.display());
            on.error(error, failed("mount", what))
        })
    }

    fn bind(&self, from: &Path, to: &Path, flags: MountFlags) -> Result<(), KernelError> {
        // A bind is made detached, gets its flags, and only then its place: mount(2) with MS_BIND|MS_RDONLY is silently
        // writable, and bind-then-remount leaves a writable mount behind if the process dies in between.
        let source = place::resolve(from).map_err(failed("openat2", from.display()))?;
        let target = MountPoint::open(to)?;
        let tree = linux::open_tree(&source).map_err(failed("open_tree", from.display()))?;
        let (set, clear) = attributes(flags);
        if set != 0 || clear != 0 {
            linux::mount_setattr(&tree, set, clear).map_err(failed("mount_setattr", from.display()))?;
        }
        failpoint::step("bound", || linux::move_mount(&tree, &target.file)).map_err(|error| {
            let what = format_args!("{} on {}", from.display(), to.display());
            target.error(error, failed("move_mount", what))
        })
    }

    fn unmount(&self, target: &Path) -> Result<(), KernelError> {
        let (Some(folder), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(failed("umount2", target.display())(
                io::ErrorKind::InvalidInput.into(),
            ));
        };
        let folder = place::resolve(folder).map_err(failed("openat2", target.display()))?;
        let path = place::through(&folder).join(name);
        let flags = nix::mount::MntFlags::UMOUNT_NOFOLLOW;
        failpoint::step("unmounted", || Ok(nix::mount::umount2(&path, flags)?))
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
            let backing_name = backing.as_deref().and_then(Path::file_name);
            if backing_name.and_then(|n| n.to_str()) != Some(file_name) {
                continue;
            }
            let subject = || loop_device::path(number).display().to_string();
            let device = match open_device(number, false) {
                Ok(device) => device,
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => continue,
                Err(error) => return Err(failed("open", subject())(error)),
            };
            match linux::loop_status(&device) {
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
                    blind: info.offset == BEYOND,
                }),
                // Freed since its name was read.
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {}
                Err(error) => return Err(failed("LOOP_GET_STATUS64", subject())(error)),
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
        let mut info = linux::LoopInfo64::zero();
        info.flags = LO_FLAGS_DIRECT_IO
            | if flags.read_only { LO_FLAGS_READ_ONLY } else { 0 }
            | if flags.autoclear { LO_FLAGS_AUTOCLEAR } else { 0 };
        // The last byte stays zero: the kernel keeps this as a string.
        for (to, from) in info.file_name[..63].iter_mut().zip(tag.bytes()) {
            *to = from;
        }
        // One step, however often another process was faster: how often is chance.
        let attached = failpoint::step("loop-attached", || {
            for _ in 0..ATTACH_TRIES {
                let number = linux::loop_free_number(&control)?;
                let device = open_device(number, !flags.read_only)?;
                match linux::loop_configure(&device, file, info) {
                    Ok(()) => return Ok(OpenLoop::new(number, device)),
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(io::Error::from_raw_os_error(libc::EBUSY))
        });
        attached.map_err(failed("LOOP_CONFIGURE", "a free loop device"))
    }

    fn open_loop(&self, number: u32) -> Result<OpenLoop, KernelError> {
        let file = open_device(number, false).map_err(failed("open", loop_device::path(number).display()))?;
        Ok(OpenLoop::new(number, file))
    }

    fn detach(&self, device: &OpenLoop) -> Result<(), KernelError> {
        match failpoint::step("loop-detached", || linux::loop_clear(&device.file)) {
            Err(error) if error.raw_os_error() != Some(libc::ENXIO) => {
                Err(failed("LOOP_CLR_FD", device.path().display())(error))
            }
            _ => Ok(()),
        }
    }

    fn refresh_size(&self, device: &OpenLoop) -> Result<(), KernelError> {
        failpoint::step("loop-resized", || linux::loop_refresh(&device.file))
            .map_err(failed("LOOP_SET_CAPACITY", device.path().display()))
    }

    fn size_bytes(&self, device: &OpenLoop) -> Result<u64, KernelError> {
        linux::device_size(&device.file).map_err(failed("BLKGETSIZE64", device.path().display()))
    }

    fn answers(&self, path: &Path) -> Result<bool, KernelError> {
        let at = place::resolve(path).map_err(failed("openat2", path.display()))?;
        match linux::ask_attribute(&place::through(&at)) {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EIO | libc::ESHUTDOWN | libc::EUCLEAN) => Ok(false),
                Some(libc::ENODATA | libc::EOPNOTSUPP | libc::EACCES | libc::EPERM) => Ok(true),
                _ => Err(failed("getxattr", path.display())(error)),
            },
        }
    }

    fn filesystem_errors(&self, number: u32, fs: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/sys/fs/{fs}/loop{number}/errors_count"));
        text.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
    }

    fn shut_down(&self, device: &OpenLoop, fs: &str) -> Result<(), KernelError> {
        use nix::fcntl::OFlag;
        let path = device.path();
        let step = |call| failed(call, format!("{} as {fs}", path.display()));
        // Read-only and without replaying the journal: if nobody has it mounted after all, nothing is written.
        let (quiet, plain): (&[_], &[_]) = match fs {
            "xfs" => (&[c"ro", c"norecovery", c"nouuid"], &[c"nouuid"]),
            _ => (&[c"ro", c"noload"], &[]),
        };
        let mount = match linux::private_mount(&path, fs, quiet) {
            // It is mounted writable: one more mount of the same filesystem must be so, too.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                linux::private_mount(&path, fs, plain).map_err(step("fsconfig"))?
            }
            other => other.map_err(step("fsconfig"))?,
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match nix::fcntl::openat(&mount, ".", flags, nix::sys::stat::Mode::empty()) {
            Ok(root) => linux::shut_down(&root).map_err(step("FS_IOC_SHUTDOWN")),
            // XFS that is shut down does not even open its root.
            Err(nix::errno::Errno::EIO) => Ok(()),
            Err(errno) => Err(step("openat")(errno.into())),
        }
    }

    fn blind(&self, device: &OpenLoop) -> Result<(), KernelError> {
        let subject = || device.path().display().to_string();
        let mut info = linux::loop_status(&device.file).map_err(failed("LOOP_GET_STATUS64", subject()))?;
        if info.offset != BEYOND {
            info.offset = BEYOND;
            // The kernel writes out the device's cache, stops its queue until nothing is on its way, and only then moves
            // its beginning behind the end of the file: it has no byte from then on. BLKROSET would not do: what was
            // mapped before is still written (measured on Linux 6.18).
            linux::set_loop_status(&device.file, &info).map_err(failed("LOOP_SET_STATUS64", subject()))?;
        }
        match self.size_bytes(device)? {
            0 => Ok(()),
            size => Err(KernelError::Unexpected {
                what: "size of a device that should have none",
                text: size.to_string(),
            }),
        }
    }

    fn is_capable(&self, capability: u8) -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
        effective.is_some_and(|bits| bits & (1 << capability) != 0)
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> Result<ToolOutput, KernelError> {
        let mut command = Command::new(tool);
        command
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(std::process::Stdio::null());
        linux::dies_with_us(&mut command);
        let output =
            failpoint::step("tool-run", || command.output()).map_err(|source| KernelError::NoTool {
                tool: tool.to_owned(),
                source,
            })?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        let text = text.trim();
        let last = text.char_indices().rev().nth(OUTPUT_CHARS);
        let tail = last.map_or(text, |(at, _)| &text[at..]);
        Ok(ToolOutput {
            code: output.status.code(),
            text: tail.replace('\n', "; "),
        })
    }
}
