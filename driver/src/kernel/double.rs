//! A kernel in memory for tests: it keeps mounts and loop devices as Linux does, records every call, and lets one of them fail.
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::mountinfo::{self, Mount};
use super::{FileId, Kernel, KernelError, LoopFlags, LoopStatus, MountFlags, OpenLoop, ToolOutput};

const MIB: u64 = 1 << 20;

#[derive(Debug)]
struct Loop {
    /// The very open file that it was made with: the locks on it live as long as the device.
    file: File,
    path: PathBuf,
    size_bytes: u64,
    status: LoopStatus,
    kept: Arc<()>,
    clearing: bool,
}

#[derive(Debug, Default)]
struct State {
    mounts: Vec<Mount>,
    loops: BTreeMap<u32, Loop>,
    made: u64,
    calls: Vec<String>,
    fails: Option<(usize, i32)>,
    removes: bool,
}

/// The kernel.
#[derive(Debug, Default)]
pub(crate) struct Double {
    state: Mutex<State>,
}

impl State {
    /// What frees itself: a device that nobody has open or mounted any more.
    fn settle(&mut self) {
        let mounts = &self.mounts;
        self.loops.retain(|number, one| {
            let mounted = mounts.iter().any(|m| m.major == 7 && m.minor == *number);
            let open = Arc::strong_count(&one.kept) > 1;
            mounted || open || !(one.status.flags.autoclear || one.clearing)
        });
    }

    /// What stands at a path that is to be mounted on, as the kernel finds it.
    fn reach(&mut self, target: &Path) -> Result<(), KernelError> {
        if std::mem::take(&mut self.removes) {
            let removed = std::fs::remove_dir(target).or_else(|_| std::fs::remove_file(target));
            removed.unwrap();
        }
        if target.exists() {
            return Ok(());
        }
        let path = target.display().to_string();
        Err(KernelError::Gone { path })
    }

    fn top(&self, path: &Path) -> Option<&Mount> {
        mountinfo::at(&self.mounts, path).last().copied()
    }

    fn add(&mut self, mount: Mount) {
        let parent = self.top(&mount.target).map_or(0, |m| m.id);
        self.made += 1;
        self.mounts.push(Mount {
            id: self.made,
            parent,
            ..mount
        });
    }
}

fn error(call: &'static str, errno: i32) -> KernelError {
    KernelError::Syscall {
        call,
        subject: String::from("double"),
        errno: std::io::Error::from_raw_os_error(errno),
    }
}

fn number_of(device: &Path) -> Option<u32> {
    device.to_str()?.strip_prefix("/dev/loop")?.parse().ok()
}

impl Double {
    /// From now on the `nth` call, counted from 1, fails with `errno` and does nothing.
    pub(crate) fn fail(&self, nth: usize, errno: i32) {
        let mut state = self.lock();
        state.calls.clear();
        state.fails = Some((nth, errno));
    }

    /// Another call removes the next place that is to be mounted on, just before it is.
    pub(crate) fn remove_place(&self) {
        self.lock().removes = true;
    }

    /// From now on nothing fails; the calls since [`Double::fail`].
    pub(crate) fn heal(&self) -> Vec<String> {
        let mut state = self.lock();
        state.fails = None;
        std::mem::take(&mut state.calls)
    }

    /// Everything that is mounted or attached, in words that do not depend on numbers.
    pub(crate) fn shown(&self) -> Vec<String> {
        let mut state = self.lock();
        state.settle();
        let mut shown: Vec<_> = state
            .loops
            .values()
            .map(|l| {
                format!(
                    "loop {} read_only={} {} MiB{}",
                    l.status.tag,
                    l.status.flags.read_only,
                    l.size_bytes / MIB,
                    if l.status.blind { " blind" } else { "" }
                )
            })
            .collect();
        shown.extend(
            state
                .mounts
                .iter()
                .map(|m| format!("mount {} {} {}", m.target.display(), m.fs, m.options.join(","))),
        );
        shown.sort();
        shown
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn call(&self, name: &'static str) -> Result<MutexGuard<'_, State>, KernelError> {
        let mut state = self.lock();
        state.settle();
        state.calls.push(name.to_owned());
        match state.fails {
            Some((nth, errno)) if nth == state.calls.len() => Err(error(name, errno)),
            _ => Ok(state),
        }
    }
}

/// A superblock that [`super::filesystem::probe`] knows.
fn superblock(fs: &str, size: u64) -> Vec<u8> {
    let mut head = vec![0_u8; 2048];
    if fs == "xfs" {
        head[..4].copy_from_slice(b"XFSB");
        head[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        head[8..16].copy_from_slice(&(size / 4096).to_be_bytes());
    } else {
        head[1080..1082].copy_from_slice(&[0x53, 0xef]);
        head[1028..1032].copy_from_slice(&u32::try_from(size / 4096).unwrap().to_le_bytes());
        head[1048..1052].copy_from_slice(&2_u32.to_le_bytes());
    }
    head
}

impl Kernel for Double {
    fn mounts(&self) -> Result<Vec<Mount>, KernelError> {
        Ok(self.call("mounts")?.mounts.clone())
    }

    fn mount(
        &self,
        device: &Path,
        target: &Path,
        fs: &str,
        flags: MountFlags,
        _data: &str,
    ) -> Result<(), KernelError> {
        let mut state = self.call("mount")?;
        state.reach(target)?;
        let number = number_of(device).ok_or_else(|| error("mount", libc::ENOTBLK))?;
        let one = state
            .loops
            .get(&number)
            .ok_or_else(|| error("mount", libc::ENXIO))?;
        let found = super::filesystem::probe(&one.file).unwrap();
        if found.is_none_or(|sb| sb.fs.name() != fs) {
            return Err(error("mount", libc::EINVAL));
        }
        let ro = flags.bits & libc::MS_RDONLY != 0;
        let options = vec![String::from(if ro { "ro" } else { "rw" })];
        state.add(Mount {
            id: 0,
            parent: 0,
            major: 7,
            minor: number,
            root: PathBuf::from("/"),
            deleted: false,
            target: target.to_owned(),
            options: options.clone(),
            fs: fs.to_owned(),
            super_options: options,
        });
        Ok(())
    }

    fn bind(&self, from: &Path, to: &Path, flags: MountFlags) -> Result<(), KernelError> {
        let mut state = self.call("bind")?;
        state.reach(to)?;
        let mut mount = match (number_of(from), state.top(from)) {
            (Some(number), _) => Mount {
                id: 0,
                parent: 0,
                major: 0,
                minor: 5,
                root: PathBuf::from(format!("/loop{number}")),
                deleted: false,
                target: to.to_owned(),
                options: vec![String::from("rw")],
                fs: String::from("devtmpfs"),
                super_options: vec![String::from("rw")],
            },
            (None, Some(top)) => top.clone(),
            (None, None) => return Err(error("bind", libc::ENOENT)),
        };
        mount.target = to.to_owned();
        if flags.bits & libc::MS_RDONLY != 0 {
            mount.options = vec![String::from("ro")];
        }
        state.add(mount);
        Ok(())
    }

    fn unmount(&self, target: &Path) -> Result<(), KernelError> {
        let mut state = self.call("unmount")?;
        let id = state
            .top(target)
            .map(|m| m.id)
            .ok_or_else(|| error("unmount", libc::EINVAL))?;
        state.mounts.retain(|m| m.id != id);
        state.settle();
        Ok(())
    }

    fn loops(&self, file_name: &str) -> Result<Vec<LoopStatus>, KernelError> {
        let state = self.call("loops")?;
        let is_named = |l: &&Loop| l.path.file_name().and_then(|n| n.to_str()) == Some(file_name);
        Ok(state
            .loops
            .values()
            .filter(is_named)
            .map(|l| l.status.clone())
            .collect())
    }

    fn backing_file(&self, number: u32) -> Option<PathBuf> {
        let mut state = self.lock();
        state.settle();
        state.loops.get(&number).map(|l| l.path.clone())
    }

    fn attach(&self, file: &File, flags: LoopFlags, tag: &str) -> Result<OpenLoop, KernelError> {
        use std::os::fd::AsRawFd;
        let mut state = self.call("attach")?;
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let number = (0..).find(|n| !state.loops.contains_key(n)).unwrap();
        let kept = Arc::new(());
        let one = Loop {
            file: file.try_clone().unwrap(),
            size_bytes: file.metadata().unwrap().len(),
            status: LoopStatus {
                number,
                file: FileId::of(&path).unwrap(),
                flags,
                tag: tag.to_owned(),
                blind: false,
            },
            path: path.clone(),
            kept: Arc::clone(&kept),
            clearing: false,
        };
        state.loops.insert(number, one);
        let mut open = OpenLoop::new(number, File::options().read(true).write(true).open(path).unwrap());
        open.kept = kept;
        Ok(open)
    }

    fn open_loop(&self, number: u32) -> Result<OpenLoop, KernelError> {
        let state = self.call("open_loop")?;
        let one = state
            .loops
            .get(&number)
            .ok_or_else(|| error("open_loop", libc::ENXIO))?;
        let file = File::options().read(true).write(true).open(&one.path);
        let mut open = OpenLoop::new(number, file.unwrap());
        open.kept = Arc::clone(&one.kept);
        Ok(open)
    }

    fn detach(&self, device: &OpenLoop) -> Result<(), KernelError> {
        let mut state = self.call("detach")?;
        if let Some(one) = state.loops.get_mut(&device.number) {
            one.clearing = true;
        }
        Ok(())
    }

    fn refresh_size(&self, device: &OpenLoop) -> Result<(), KernelError> {
        let mut state = self.call("refresh_size")?;
        let size = device.file.metadata().unwrap().len();
        if let Some(one) = state.loops.get_mut(&device.number) {
            one.size_bytes = size;
        }
        Ok(())
    }

    fn size_bytes(&self, device: &OpenLoop) -> Result<u64, KernelError> {
        let state = self.call("size_bytes")?;
        Ok(state.loops.get(&device.number).map_or(0, |l| l.size_bytes))
    }

    fn answers(&self, path: &Path) -> Result<bool, KernelError> {
        Ok(self.call("answers")?.top(path).is_some())
    }

    fn filesystem_errors(&self, _number: u32, _fs: &str) -> u64 {
        0
    }

    fn shut_down(&self, _device: &OpenLoop, _fs: &str) -> Result<(), KernelError> {
        self.call("shut_down").map(drop)
    }

    fn blind(&self, device: &OpenLoop) -> Result<(), KernelError> {
        let mut state = self.call("blind")?;
        if let Some(one) = state.loops.get_mut(&device.number) {
            one.status.blind = true;
            one.size_bytes = 0;
        }
        Ok(())
    }

    fn is_capable(&self, _capability: u8) -> bool {
        true
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> Result<ToolOutput, KernelError> {
        let last = Path::new(arguments.last().unwrap());
        let fs = if tool.contains("xfs") { "xfs" } else { "ext4" };
        let state = match self.call("run") {
            Ok(state) => state,
            Err(failed) => {
                // A tool that fails has done a part of its work.
                let state = self.lock();
                if let Some(one) = number_of(last)
                    .and_then(|n| state.loops.get(&n))
                    .filter(|_| tool.starts_with("mk"))
                {
                    one.file.write_all_at(b"half made", 4096).unwrap();
                }
                return Err(failed);
            }
        };
        let number = number_of(last).or_else(|| state.top(last).map(|m| m.minor));
        let one = number
            .and_then(|n| state.loops.get(&n))
            .ok_or_else(|| error("run", libc::ENXIO))?;
        if tool != "e2fsck" {
            one.file.write_all_at(&superblock(fs, one.size_bytes), 0).unwrap();
        }
        Ok(ToolOutput {
            code: Some(0),
            text: String::new(),
        })
    }
}
