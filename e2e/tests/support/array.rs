//! A storage array for one test: a data folder, sockets, and a mount point that containers share with this host.
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Removed with every mount and loop device in it, also when the test fails.
pub struct Array {
    folder: Option<tempfile::TempDir>,
}

impl Array {
    /// Makes the folders; needs root.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("holdfast-t2-").tempdir().unwrap();
        let array = Self { folder: Some(folder) };
        for (name, mode) in [
            ("data", 0o2770),
            ("controller", 0o770),
            ("node", 0o770),
            ("mnt", 0o755),
        ] {
            let path = array.path().join(name);
            fs::create_dir(&path).unwrap();
            std::os::unix::fs::chown(&path, None, Some(2770)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        // What the node plugin mounts below must reach this host and outlive the container, as below kubelet's folder.
        let shared = array.mounts();
        let none: Option<&str> = None;
        mount(Some(&shared), &shared, none, MsFlags::MS_BIND, none).unwrap();
        mount(none, &shared, none, MsFlags::MS_SHARED, none).unwrap();
        array
    }

    fn path(&self) -> &Path {
        self.folder
            .as_ref()
            .map_or(Path::new(""), tempfile::TempDir::path)
    }

    pub fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    pub fn mounts(&self) -> PathBuf {
        self.path().join("mnt")
    }

    /// Folder of the socket of `role`.
    pub fn socket_dir(&self, role: &str) -> PathBuf {
        self.path().join(role)
    }

    /// Mount points below the shared folder, deepest last, without the folder's own.
    pub fn mounted(&self) -> Vec<PathBuf> {
        let below = self.mounts();
        fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
            .filter(|point| point.starts_with(&below) && *point != below)
            .collect()
    }

    /// Inodes of the images in the data folder.
    fn image_inodes(&self) -> Vec<u64> {
        let volumes = fs::read_dir(self.data().join("volumes"));
        volumes
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .map(|meta| meta.ino())
            .collect()
    }

    /// Loop devices whose backing file is on this folder's device and is one of `inodes`, found by inode, not by name.
    fn loops_of(&self, inodes: &[u64]) -> Vec<String> {
        let output = Command::new("losetup")
            .args(["--list", "--noheadings", "--output", "NAME,BACK-INO"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?.to_owned(), words.next()?.parse::<u64>().ok()?))
            })
            .filter(|(_, inode)| inodes.contains(inode))
            .map(|(name, _)| name)
            .collect()
    }

    /// Loop devices of the images that are in the data folder now.
    pub fn loops(&self) -> Vec<String> {
        self.loops_of(&self.image_inodes())
    }

    /// Names of the files in the data folder's `volumes`.
    pub fn volume_files(&self) -> Vec<String> {
        let volumes = fs::read_dir(self.data().join("volumes"));
        let mut names: Vec<_> = volumes
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        let loops = self.loops();
        for point in self.mounted().iter().rev().chain([&self.mounts()]) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
        for device in loops {
            let _ = Command::new("losetup").args(["--detach", &device]).status();
        }
        // A folder with a mount in it is left, not emptied through the mount.
        if !self.mounted().is_empty()
            && let Some(folder) = self.folder.take()
        {
            let _ = folder.keep();
        }
    }
}
