//! Cores and threads: real affinity masks, real control groups, and the calibration on disk.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use vademecum_tests::{
    ControlGroup, Run, Setup, bare_vademecum, cpu_time, let_pass, program, run, temp_dir, vademecum, wait_for,
};

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
#[cfg_attr(without_cpu_quota, ignore = "no control group with a CPU quota can be made here")]
fn a_cpu_quota_of_a_real_control_group_counts() {
    let command = bare_vademecum(["tune", "--json", "--no-measure"]);
    let quota = ControlGroup::limited("cpu", ("cpu.max", "150000 100000"), ("cpu.cfs_quota_us", "150000"));
    let limited = if let Some(group) = quota {
        let join = format!("{} && exec \"$@\"", group.script());
        behind(Command::new("sh").args(["-c", &join, "sh"]), &command)
    } else {
        behind(Command::new("systemd-run").args(["--scope", "--quiet", "-p", "CPUQuota=150%"]), &command)
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

    // The configuration wins, and the table says so.
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
    // The daemon warms up after it is ready, for as long as the machine needs. Then three seconds in a row are idle.
    let mut idle_seconds = 0;
    wait_for("three idle seconds", || {
        let before = cpu_time(daemon.pid());
        let_pass(Duration::from_secs(1));
        let used = cpu_time(daemon.pid()).saturating_sub(before);
        println!("{used:?} in a second");
        idle_seconds = if used < Duration::from_millis(1) { idle_seconds + 1 } else { 0 };
        (idle_seconds == 3).then_some(())
    });
    daemon.stop();
}
