//! The control groups of this process. Each of them, and each of its ancestors, may set a limit.

use std::path::{Path, PathBuf};

/// Mount point of the hierarchies.
pub const ROOT: &str = "/sys/fs/cgroup";

/// One level of the control-group hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its directory.
    pub dir: PathBuf,
    /// Whether the group belongs to the unified hierarchy (cgroup v2). Each version has files of its own.
    pub unified: bool,
}

impl Group {
    /// A file of this group as text; `None` if there is none.
    pub fn read(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.dir.join(file)).ok()
    }
}

/// The groups that limit `controller` (`cpu`, `memory`) for this process, its own first.
pub fn of_this_process(controller: &str) -> Vec<Group> {
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups(&text, controller, Path::new(ROOT))
}

/// Reads /proc/self/cgroup. A container's path may exist on the host only. The root is always among the levels, which is then the
/// container's own.
pub(super) fn groups(text: &str, controller: &str, root: &Path) -> Vec<Group> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (base, unified) = match controllers {
            // The unified hierarchy has a folder of its own beside hierarchies of version 1.
            "" => {
                let own = root.join("unified");
                (if own.exists() { own } else { root.to_owned() }, true)
            }
            list if list.split(',').any(|name| name == controller) => {
                // Mounted under the controller's name, or under the names of all that share the hierarchy.
                let own = root.join(controller);
                (if own.exists() { own } else { root.join(list) }, false)
            }
            _ => continue,
        };
        let own = base.join(path.trim_start_matches('/'));
        let levels = own.ancestors().take_while(|dir| dir.starts_with(&base));
        found.extend(levels.map(|dir| Group { dir: dir.to_owned(), unified }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions_with_their_ancestors() {
        let text = "12:cpu,cpuacct:/user.slice\n5:memory:/docker/abc\n0::/system.slice/vademecum.service\n";
        let groups = groups(text, "memory", Path::new("/nowhere"));
        let dirs: Vec<_> = groups.iter().map(|group| (group.dir.to_str().unwrap_or(""), group.unified)).collect();
        assert_eq!(
            dirs,
            [
                ("/nowhere/memory/docker/abc", false),
                ("/nowhere/memory/docker", false),
                ("/nowhere/memory", false),
                ("/nowhere/system.slice/vademecum.service", true),
                ("/nowhere/system.slice", true),
                ("/nowhere", true),
            ]
        );
        let hybrid = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(hybrid.path().join("unified")).expect("directory");
        assert_eq!(super::groups("0::/a\n", "cpu", hybrid.path())[0].dir, hybrid.path().join("unified/a"));
        assert!(super::groups("nonsense\n", "cpu", Path::new(ROOT)).is_empty());
    }

    #[test]
    fn a_hierarchy_may_bear_several_names() {
        let root = tempfile::tempdir().expect("temporary directory");
        let first = |text: &str| groups(text, "cpu", root.path()).swap_remove(0).dir;
        assert_eq!(first("4:cpu,cpuacct:/d\n"), root.path().join("cpu,cpuacct/d"));
        std::fs::create_dir(root.path().join("cpu")).expect("directory");
        assert_eq!(first("4:cpu,cpuacct:/d\n"), root.path().join("cpu/d"));
    }
}
