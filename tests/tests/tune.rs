//! Cores and threads: real affinity masks, real control groups, and what a calibration keeps.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use vademecum_tests::{ControlGroup, Run, Setup, bare_vademecum, program, run, temp_dir, vademecum};

/// A command behind another one: `taskset -c 0 vademecum …`.
fn behind(front: &mut Command, command: &Command) -> Run {
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => front.env(name, value),
            None => front.env_remove(name),
        };
    }
    run(front.arg(command.get_program()).args(command.get_args()))
}

fn tune(dir: &Path, more: &[&str]) -> Value {
    run(vademecum(["tune", "--json", "--seconds", "2", "--data-dir"]).arg(dir).args(more)).exits(0).json()
}

#[test]
fn an_affinity_mask_of_one_cpu_leaves_one_core() {
    let cores = behind(Command::new(program("taskset")).args(["-c", "0"]), &bare_vademecum(["tune", "--json", "--no-measure"]));
    let cores = cores.exits(0).json();
    assert_eq!((&cores["usable"], &cores["topology"]["allowed"]), (&json!(1), &json!([0])));
    assert_eq!((&cores["candidates"], &cores["threads"]), (&json!([1]), &json!({ "decode": 1, "batch": 1 })));
}

#[test]
fn a_cpu_quota_of_a_real_control_group_counts() {
    let command = bare_vademecum(["tune", "--json", "--no-measure"]);
    let quota = ControlGroup::limited("cpu", ("cpu.max", "150000 100000"), ("cpu.cfs_quota_us", "150000"));
    let limited = if let Some(group) = quota {
        let join = format!("{} && exec \"$@\"", group.script());
        Some(behind(Command::new("sh").args(["-c", &join, "sh"]), &command))
    } else {
        let scope = || Command::new("systemd-run").args(["--scope", "--quiet", "-p", "CPUQuota=150%", "true"]).output();
        scope()
            .is_ok_and(|output| output.status.success())
            .then(|| behind(Command::new("systemd-run").args(["--scope", "--quiet", "-p", "CPUQuota=150%"]), &command))
    };
    let Some(limited) = limited else {
        eprintln!("not tested: control groups cannot be made here, and systemd-run does not work");
        return;
    };
    let limited = limited.exits(0).json();
    assert_eq!((&limited["topology"]["quota"], &limited["usable"]), (&json!(1.5), &json!(1)), "{limited}");
    let most = limited["candidates"].as_array().and_then(|all| all.last()?.as_u64());
    let cores = limited["topology"]["cores"].as_array().map_or(0, Vec::len) as u64;
    assert_eq!(most, Some(cores.min(2)), "a quota of one and a half may be worth two threads: {limited}");
}

#[test]
fn measured_threads_are_kept_while_they_hold() {
    let dir = temp_dir();
    let first = tune(dir.path(), &[]);
    let candidates = first["candidates"].as_array().expect("a list").len();
    let measured = &first["calibration"];
    for kind in ["decode", "batch"] {
        let rows = measured[kind].as_array().expect("rows");
        assert!(!rows.is_empty() && rows.len() <= candidates, "{first}");
        for row in rows {
            let figure = |key: &str| row[key].as_f64().expect("a number");
            assert!(figure("min") > 0.0 && figure("min") <= figure("median") && figure("median") <= figure("max"), "{row}");
        }
        assert!(rows.iter().any(|row| row["threads"] == first["threads"][kind]), "{first}");
    }
    assert_eq!((&first["decode_origin"], &first["note"]), (&json!("measured"), &json!("")));

    // The same figures to the last digit: not measured again.
    assert_eq!(tune(dir.path(), &[])["calibration"], *measured);
    assert_eq!(tune(dir.path(), &["--no-measure"])["calibration"], *measured);
    assert_ne!(tune(dir.path(), &["--force"])["calibration"], *measured);

    let kept = dir.path().join("threads.json");
    fs::write(&kept, "{\"version\":1,\"measured\":[{\"model\":").expect("written");
    assert_eq!(tune(dir.path(), &["--no-measure"])["calibration"], Value::Null);
    let anew = tune(dir.path(), &[]);
    assert!(anew["calibration"]["best"]["decode"].as_u64() > Some(0), "{anew}");
    assert_eq!(tune(dir.path(), &["--no-measure"])["calibration"], anew["calibration"]);

    // What is configured wins, and the table says so.
    let configured = tune(dir.path(), &["--set", "model.threads=3"]);
    assert_eq!((&configured["threads"]["decode"], &configured["decode_origin"]), (&json!(3), &json!("configured")));
    assert_eq!(configured["batch_origin"], json!("measured"));
    let table = run(vademecum(["tune", "--set", "model.threads=1", "--data-dir"]).arg(dir.path())).exits(0).stdout;
    assert!(table.contains("1 threads (configured)") && table.contains("median") && table.contains("<-"), "{table}");
}

#[test]
fn an_unusable_model_is_named_and_none_is_fine() {
    let dir = temp_dir();
    let none = dir.path().join("none.gguf");
    let missing = run(bare_vademecum(["tune", "--generator"]).arg(&none)).exits(1);
    assert!(missing.stderr.contains("none.gguf"), "{missing:?}");
    let mut without = bare_vademecum(["tune", "--json", "--data-dir"]);
    without.arg(dir.path()).env("HOME", dir.path());
    let without = run(&mut without).exits(0).json();
    assert!(
        without["usable"].as_u64() > Some(0) && without["note"].as_str().is_some_and(|n| n.contains("--generator")),
        "{without}"
    );
}

#[test]
fn an_idle_daemon_costs_no_cpu_time() {
    // Threads that are given need not be measured, which takes processor time once.
    let daemon = Setup::new().set("model.threads", "1").set("model.batch_threads", "1").start();
    // In nanoseconds: the ticks of `stat` count a hundredth of a second for whoever happens to run when the clock strikes.
    let used = || -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("running");
        let times = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("schedstat")).ok());
        times.filter_map(|times| times.split_whitespace().next()?.parse::<u64>().ok()).sum()
    };
    // It warms up after it is ready.
    std::thread::sleep(Duration::from_secs(3));
    let before = used();
    std::thread::sleep(Duration::from_secs(10));
    let used = Duration::from_nanos(used().saturating_sub(before));
    assert!(used < Duration::from_millis(10), "{used:?} in 10 s");
    daemon.stop();
}
