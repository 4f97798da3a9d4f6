//! Finds out which claims this machine can try. The other tests are ignored, with their reason, and a warning names the remedy.

use std::process::Command;

/// Whether a shell command succeeds here.
fn succeeds(script: &str) -> bool {
    Command::new("sh").args(["-c", script]).output().is_ok_and(|output| output.status.success())
}

/// A shell command that makes a control group with a limit, as the tests do: in the unified hierarchy or in that of `controller`.
fn control_group(controller: &str, unified: (&str, &str), legacy: (&str, &str)) -> String {
    let limited = |root: &str, (file, limit): (&str, &str)| {
        let group = format!("{root}/vademecum-probe-{}", std::process::id());
        format!("(mkdir {group} && echo {limit} >{group}/{file}; failed=$?; rmdir {group}; exit $failed)")
    };
    let (first, second) = (limited("/sys/fs/cgroup", unified), limited(&format!("/sys/fs/cgroup/{controller}"), legacy));
    format!("{{ [ -e /sys/fs/cgroup/cgroup.controllers ] && {first}; }} || {second}")
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Another user or another machine may have other rights.
    println!("cargo::rerun-if-env-changed=USER");
    println!("cargo::rerun-if-env-changed=HOME");
    println!("cargo::rerun-if-changed=/etc/machine-id");
    let memory = control_group("memory", ("memory.max", "1073741824"), ("memory.limit_in_bytes", "1073741824"));
    let quota = control_group("cpu", ("cpu.max", "150000 100000"), ("cpu.cfs_quota_us", "150000"));
    let quota = format!("{quota} || systemd-run --scope --quiet -p CPUQuota=150% true");
    let loop_device = "dir=$(mktemp -d) && truncate -s 8M $dir/disk && PATH=$PATH:/usr/sbin mkfs.ext4 -q $dir/disk \
                       && mkdir $dir/on && unshare -m mount -o loop $dir/disk $dir/on; failed=$?; rm -rf $dir; exit $failed";
    let systemd = "[ $(systemd-analyze --version | head -n 1 | cut -d ' ' -f 2) -ge 250 ]";
    for (name, probe, remedy) in [
        ("root", "[ $(id -u) = 0 ]", "run the tests as root"),
        ("namespaces", "unshare -rm true", "allow `unshare -rm true`"),
        ("loop_device", loop_device, "run the tests as root where `mount -o loop` works"),
        ("memory_limit", &memory, "run the tests as root where control groups can be made"),
        ("cpu_quota", &quota, "run the tests as root where control groups can be made"),
        ("systemd_250", systemd, "install systemd 250 or newer"),
    ] {
        println!("cargo::rustc-check-cfg=cfg(without_{name})");
        if !succeeds(probe) {
            println!("cargo::rustc-cfg=without_{name}");
            println!("cargo::warning=tests that need `{name}` are ignored; to try them, {remedy} and touch tests/build.rs");
        }
    }
}
