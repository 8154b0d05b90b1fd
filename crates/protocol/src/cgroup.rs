//! The control groups of a process, as the text of its /proc/PID/cgroup lists them.

use std::path::Path;

/// Version of a hierarchy of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller or some of them.
    One,
    /// One hierarchy for all.
    Two,
}

/// The groups in which `controller` may limit a process, as their paths below the mount of their hierarchy, in the order of
/// the text. Whether version 2 has the controller is not in the text.
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
