//! The control groups of a process in the text of /proc/PID/cgroup.

use std::fs;
use std::path::{Path, PathBuf};

/// Version of a control group hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller or set of controllers.
    One,
    /// One unified hierarchy.
    Two,
}

/// The groups in which `controller` may limit a process, as paths below the mount of their hierarchy. The text does not
/// tell whether version 2 has the controller.
pub fn groups<'t>(text: &'t str, controller: &'t str) -> impl Iterator<Item = (Version, &'t Path)> {
    text.lines().filter_map(move |line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let path = Path::new(path.trim_start_matches('/'));
        if controllers.is_empty() {
            Some((Version::Two, path))
        } else {
            controllers.split(',').any(|name| name == controller).then_some((Version::One, path))
        }
    })
}

/// The folders of this process's group and its parents below `root` (`/`), from which the files of a controller are read.
/// `mounts` are names of its mount in version 1, the first of which is that of the controller. A container may see its own
/// group as the root, under a path that does not exist; then the root counts.
pub fn folders(root: &Path, mounts: &[&str]) -> Vec<(Version, PathBuf)> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for (version, path) in groups(&text, mounts[0]) {
        for mount in if version == Version::One { mounts } else { &[""][..] } {
            let mount = root.join("sys/fs/cgroup").join(mount);
            found.extend(path.ancestors().map(|group| (version, mount.join(group))));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_found_and_other_controllers_left_out() {
        let text = "5:cpu,memory:/job/a\n3:pids:/x\n1:name=systemd:/y\n0::/z:1\nnonsense\n";
        let found: Vec<_> = groups(text, "memory").collect();
        assert_eq!(found, [(Version::One, Path::new("job/a")), (Version::Two, Path::new("z:1"))]);
        assert_eq!(groups("", "memory").count(), 0);
    }
}
