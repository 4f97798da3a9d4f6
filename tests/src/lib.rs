//! Shared parts of the end-to-end tests: a mosquitto, a daemon and an MQTT client of the test's own.
//!
//! Everything here is real: the built `vademecum` binary, the models and the Python clients that `make setup` fetched, a
//! broker on a free loopback port. A process that a test starts ends with the test.
//!
//! No claim depends on the speed of the machine. Every wait is for a condition; [`PATIENCE`] only catches hangs, and a wait that
//! exceeds it shows the logs. A claim about time compares with something that the same run has measured.

mod mqtt;
mod systemd;

pub use mqtt::{Message, Mqtt, Properties};
pub use systemd::{Journal, Notified};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The limit of every wait. It catches hangs, so it is long enough for a slow machine that is busy with other work.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// [`PATIENCE`] in seconds, for programs that take a time limit as an argument.
pub const PATIENCE_S: &str = "240";

/// A question with this deadline, in milliseconds, never meets it: for tests in which the deadline is not the claim.
pub const NO_DEADLINE_MS: u64 = 3_600_000;

/// A short manual; its answers are easy to tell from the text around them.
pub const MANUAL: &str = "# Harbour pump P-200\n\n## Starting the pump\n\nOpen valve V3 before you start the pump. \
Then press the green button for two seconds. The pump reaches full speed after 40 seconds.\n\n## Error codes\n\n\
Error E-7 means that the inlet filter is clogged. Switch off the pump, clean the filter with water and press the reset \
button.\n\nError E-9 means that the motor is too hot. Let the motor cool down for 30 minutes.\n\n## Maintenance\n\n\
Grease the bearings every 500 hours with lithium grease. Replace the shaft seal after 4000 hours.\n";

/// A question that [`MANUAL`] answers in so many words.
pub const QUESTION: &str = "What does error E-7 mean?";

/// Waits until `look` finds something.
///
/// # Panics
/// It does not within [`PATIENCE`].
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain for {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lets time pass, for a claim about time itself: nothing may happen meanwhile, or a deadline has to be over.
pub fn let_pass(time: Duration) {
    std::thread::sleep(time);
}

/// Processor time that a process has used since its start. Unlike time on the clock it excludes the machine's other work.
///
/// # Panics
/// The process is not there.
pub fn cpu_time(pid: u32) -> Duration {
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls write into variables of this function only.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) != 0 || libc::clock_gettime(clock, &raw mut time) != 0
    };
    assert!(!failed, "process {pid} has no clock");
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("below a second"))
}

/// Processor time that the thread `name` of a process has used.
///
/// # Panics
/// There is no such thread.
pub fn cpu_time_of_thread(pid: u32, name: &str) -> Duration {
    let text = std::fs::read_to_string(thread(pid, name).join("schedstat")).expect("schedstat");
    Duration::from_nanos(text.split_whitespace().next().and_then(|ns| ns.parse().ok()).expect("a number"))
}

/// The folder in /proc of the thread `name` of a process.
///
/// # Panics
/// There is no such thread.
pub fn thread(pid: u32, name: &str) -> PathBuf {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let is_it = |path: &Path| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
    tasks.map(|task| task.path()).find(|path| is_it(path)).unwrap_or_else(|| panic!("no thread is called {name}"))
}

/// The seed of a test with random choices: `SEED`, else a fixed one. It is printed at once, and again when the test fails.
pub struct Seed(pub u64);

impl Seed {
    /// Reads `SEED`.
    ///
    /// # Panics
    /// `SEED` is no number.
    pub fn from_environment() -> Self {
        let given = std::env::var("SEED").ok().map(|text| text.parse().expect("SEED is a number"));
        let seed = Self(given.unwrap_or(1_871));
        println!("SEED={}", seed.0);
        seed
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("repeat these choices with SEED={}", self.0);
        }
    }
}

/// The `vademecum` binary of this build: it lies beside the folder of the tests.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    let path = test.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>").join("vademecum");
    assert!(path.exists(), "{} is missing: run `cargo build --release --workspace` (`make test` does)", path.display());
    path
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_owned()
}

/// The cache that `make setup` fills.
pub fn cache() -> PathBuf {
    let given = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    given("VADEMECUM_CACHE")
        .or_else(|| given("XDG_CACHE_HOME").map(|dir| dir.join("vademecum")))
        .or_else(|| given("HOME").map(|dir| dir.join(".cache/vademecum")))
        .expect("HOME is set")
}

/// A file that `make setup` fetched, by its path below the cache.
///
/// # Panics
/// It is not there.
pub fn fetched(path: &str) -> PathBuf {
    let path = cache().join(path);
    assert!(path.exists(), "{} is missing: run `make setup`", path.display());
    path
}

/// The generator.
pub fn generator() -> PathBuf {
    fetched("models/generator.gguf")
}

/// The embedder, Q8_0.
pub fn embedder() -> PathBuf {
    fetched("models/embedder.gguf")
}

/// A program that `make setup` installs, on the usual paths and in the folders of daemons.
///
/// # Panics
/// It is nowhere.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    let found = places.map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: run `make setup`"))
}

/// A loopback port that nobody uses at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A fresh folder, removed when it is dropped. Short, because Unix sockets go into it.
pub fn temp_dir() -> TempDir {
    tempfile::Builder::new().prefix("vademecum-").tempdir_in("/tmp").expect("a temporary folder")
}

/// `vademecum` with arguments, free of the caller's `VADEMECUM_…` settings and with the real models.
pub fn vademecum<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let models = ["--generator".into(), generator().into_os_string(), "--embedder".into(), embedder().into_os_string()];
    bare_vademecum(models.into_iter().chain(args.into_iter().map(|arg| arg.as_ref().to_owned())))
}

/// `vademecum` with these arguments only.
pub fn bare_vademecum<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(binary());
    command.args(["--config", "/dev/null"]).args(args);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("VADEMECUM_")) {
        command.env_remove(name);
    }
    command.env_remove("NOTIFY_SOCKET");
    command
}

/// A Python script of `tests/tests/clients` with the fetched paho and cbor2.
pub fn python(script: &str) -> Command {
    fetched("python/paho/mqtt/client.py");
    fetched("python/cbor2/__init__.py");
    let mut command = Command::new(program("python3"));
    command.arg("-B").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(script));
    command.env("PYTHONPATH", cache().join("python"));
    command
}

/// The exit and the output of a program.
#[derive(Debug)]
pub struct Run {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    /// Standard output as one JSON value.
    ///
    /// # Panics
    /// It is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(self.stdout.trim()).unwrap_or_else(|e| panic!("no JSON ({e}): {self:?}"))
    }

    /// The run itself, when it exited with `code`.
    ///
    /// # Panics
    /// It did not.
    #[must_use]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

/// Runs a program to its end.
///
/// # Panics
/// It does not end within [`PATIENCE`].
pub fn run(command: &mut Command) -> Run {
    run_with_input(command, b"")
}

/// Runs a program to its end, giving it `input`.
///
/// # Panics
/// It does not end within [`PATIENCE`].
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Run {
    use std::io::{Read, Seek, Write};
    let file = || tempfile::tempfile().expect("a temporary file");
    let (mut stdin, mut out, mut err) = (file(), file(), file());
    stdin.write_all(input).and_then(|()| stdin.rewind()).expect("input is written");
    let clone = |file: &File| file.try_clone().expect("a second handle");
    let child = command.stdin(clone(&stdin)).stdout(clone(&out)).stderr(clone(&err)).spawn();
    let mut child = Killed(child.unwrap_or_else(|e| panic!("{command:?}: {e}")));
    let status = child.ends(&format!("{command:?}"));
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("output is read");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Run { code: status.code(), stdout: read(&mut out), stderr: read(&mut err) }
}

/// The sum of a field of `smaps` (proc(5)) over all mappings of a file, in bytes.
///
/// # Panics
/// The process or the file is not there.
pub fn smaps(pid: u32, file: &Path, field: &str) -> u64 {
    let file = file.canonicalize().expect("the file is there");
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let (mut ours, mut kb) = (false, 0);
    for line in text.lines() {
        if let Some(value) = line.strip_prefix(field).and_then(|rest| rest.strip_prefix(':')) {
            kb += if ours { value.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") } else { 0 };
        } else if line.split_whitespace().next().is_some_and(|first| first.contains('-') && !first.ends_with(':')) {
            ours = line.split_whitespace().nth(5).is_some_and(|path| Path::new(path) == file);
        }
    }
    kb * 1024
}

/// Anonymous memory of a process, in bytes.
///
/// # Panics
/// It is not there.
pub fn anonymous(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// A child process that does not outlive the test.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Killed {
    /// Waits for its end.
    ///
    /// # Panics
    /// It does not end within [`PATIENCE`].
    pub fn ends(&mut self, what: &str) -> ExitStatus {
        wait_for(&format!("the end of {what}"), || self.0.try_wait().expect("its state is known"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("the signal is sent");
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A mosquitto on a loopback port, with a configuration and folder of its own.
pub struct Broker {
    /// Its port.
    pub port: u16,
    child: Killed,
    dir: TempDir,
}

impl Broker {
    /// Starts one on a free port.
    pub fn start() -> Self {
        Self::on(free_port())
    }

    /// Starts one on `port` and waits until it accepts connections.
    pub fn on(port: u16) -> Self {
        Self::configured(port, "allow_anonymous true\npersistence false\n")
    }

    /// Starts one on `port`, with these settings besides the listener's line.
    pub fn configured(port: u16, settings: &str) -> Self {
        let dir = temp_dir();
        let config = dir.path().join("mosquitto.conf");
        // As root, mosquitto would become the user mosquitto, which may not read the keys of a test.
        let settings = format!("user root\nlog_dest stderr\nlog_type all\nlistener {port} 127.0.0.1\n{settings}");
        std::fs::write(&config, settings).expect("its configuration is written");
        let log = File::create(dir.path().join("mosquitto.log")).expect("its log");
        let mut command = Command::new(program("mosquitto"));
        let child = command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let mut broker = Self { port, child: Killed(child.expect("mosquitto starts")), dir };
        wait_for("mosquitto", || {
            let ended = broker.child.0.try_wait().expect("its state is known");
            assert!(ended.is_none(), "mosquitto has ended: {}", broker.log());
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()
        });
        broker
    }

    /// `mqtt://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// A stock client, pointed at this broker.
    pub fn client(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        command
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("mosquitto.log")).unwrap_or_default()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("--- the end of the broker's log ---\n{}\n---", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// A daemon about to be started.
#[must_use]
pub struct Setup {
    command: Command,
    node: String,
    dir: Option<TempDir>,
    data: PathBuf,
}

impl Setup {
    /// A daemon with a data directory of its own, on an external broker.
    pub fn with(broker: &Broker) -> Self {
        Self::new().flag("--broker", broker.url())
    }

    /// A daemon on the embedded broker, unless [`Setup::flag`] says otherwise.
    ///
    /// Small libraries are judged by a threshold of 0: whether the library holds an answer is retrieval's own test. The model
    /// answers, although it is a small one, and its words go out unchecked. Documents may come over MQTT. Questions have all the time that they need.
    pub fn new() -> Self {
        let dir = temp_dir();
        let data = dir.path().join("data");
        let mut setup = Self { command: bare_vademecum(["run"]), node: "n1".into(), dir: Some(dir), data };
        setup.command.args(["--node", "n1"]);
        let setup = setup
            .set("answer.threshold", "0")
            .set("answer.strategy", "read")
            .set("answer.check", "false")
            .set("answer.patience_ms", "86400000")
            .set("service.metrics_every_s", "0");
        setup.set("mqtt.documents", "true").set("answer.deadline_ms", &NO_DEADLINE_MS.to_string())
    }

    /// Keeps the library in `dir`, which outlives the daemon.
    pub fn data_dir(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.data);
        self
    }

    /// Another generator.
    pub fn generator(self, path: &Path) -> Self {
        self.flag("--generator", path)
    }

    /// Another embedder.
    pub fn embedder(self, path: &Path) -> Self {
        self.flag("--embedder", path)
    }

    /// A flag with its value.
    pub fn flag(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.arg(name).arg(value);
        self
    }

    /// A setting; the last one of a key wins.
    pub fn set(self, key: &str, value: &str) -> Self {
        self.flag("--set", format!("{key}={value}"))
    }

    /// An environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Has it read this configuration file.
    pub fn config(self, file: &Path) -> Self {
        let none = OsStr::new("/dev/null");
        let args: Vec<_> =
            self.command.get_args().map(|arg| if arg == none { file.as_os_str() } else { arg }.to_owned()).collect();
        let mut command = Command::new(self.command.get_program());
        command.args(args);
        self.instead(command)
    }

    /// Has it ignore a signal, by the shell's name for it.
    pub fn ignoring(self, signal: &str) -> Self {
        self.through(&format!("trap '' {signal}"))
    }

    /// Has a shell run a script before it becomes the daemon.
    pub fn through(self, script: &str) -> Self {
        self.within(&["sh", "-c", &format!("{script}; exec \"$0\" \"$@\"")])
    }

    /// Has another program run it, which becomes the daemon.
    pub fn within(self, program: &[&str]) -> Self {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(self.command.get_program()).args(self.command.get_args());
        self.instead(command)
    }

    /// Another command with the same environment.
    fn instead(mut self, mut command: Command) -> Self {
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.command = command;
        self
    }

    /// Starts it and waits until it says that it is ready.
    pub fn start(self) -> Daemon {
        let mut daemon = self.spawn();
        wait_for("the daemon to be ready", || {
            let ended = daemon.child.0.try_wait().expect("its state is known");
            assert!(ended.is_none(), "the daemon has ended");
            daemon.log().contains("ready after").then_some(())
        });
        daemon
    }

    /// Starts it.
    pub fn spawn(mut self) -> Daemon {
        std::fs::create_dir_all(&self.data).expect("its data directory");
        let given = |name: &str| self.command.get_args().any(|arg| arg == name);
        let (has_generator, has_embedder) = (given("--generator"), given("--embedder"));
        if !has_generator {
            self.command.arg("--generator").arg(generator());
        }
        if !has_embedder {
            self.command.arg("--embedder").arg(embedder());
        }
        self.command.arg("--data-dir").arg(&self.data);
        let logs = temp_dir();
        let log = File::create(logs.path().join("log")).expect("its log");
        let child = self.command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("the daemon starts");
        Daemon { child: Killed(child), node: self.node, data: self.data, _dir: self.dir, logs }
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

/// A control group in whichever hierarchy allows making one.
pub struct ControlGroup {
    dir: PathBuf,
    join: &'static str,
}

impl ControlGroup {
    /// A group with a limit: the limit's file and its text, in the unified hierarchy and in that of `controller`. `None` if
    /// neither can be made.
    pub fn limited(controller: &str, unified: (&str, &str), legacy: (&str, &str)) -> Option<Self> {
        let name = format!("vademecum-test-{controller}-{}", std::process::id());
        let root = Path::new("/sys/fs/cgroup");
        let one = |base: &Path, (file, text): (&str, &str), join| {
            let dir = base.join(&name);
            std::fs::create_dir(&dir).ok()?;
            let group = Self { dir, join };
            std::fs::write(group.dir.join(file), text).ok().map(|()| group)
        };
        // Without the unified hierarchy the root is an ordinary folder, which accepts every file.
        let first = root.join("cgroup.controllers").exists().then(|| one(root, unified, "cgroup.procs")).flatten();
        first.or_else(|| one(&root.join(controller), legacy, "tasks"))
    }

    /// The shell command that joins it.
    pub fn script(&self) -> String {
        format!("echo $$ > {}/{}", self.dir.display(), self.join)
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// A broker, a daemon on it that `setup` has changed, and a client.
pub fn house(setup: impl FnOnce(Setup) -> Setup) -> (Broker, Daemon, Mqtt) {
    let broker = Broker::start();
    let daemon = setup(Setup::with(&broker)).start();
    let mqtt = Mqtt::to(&broker);
    (broker, daemon, mqtt)
}

/// A running daemon. A test that fails shows its log.
pub struct Daemon {
    child: Killed,
    node: String,
    data: PathBuf,
    _dir: Option<TempDir>,
    logs: TempDir,
}

impl Daemon {
    /// `vademecum/<node>/<name>`.
    pub fn topic(&self, name: &str) -> String {
        format!("vademecum/{}/{name}", self.node)
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// `info` and `metrics`, over the control socket.
    pub fn status(&self) -> Value {
        use std::io::{Read, Write};
        let own = self.data.join("control.sock");
        // A daemon in a mount namespace of its own has its data directory there.
        let seen = PathBuf::from(format!("/proc/{}/root{}", self.pid(), own.display()));
        let mut socket = UnixStream::connect(if own.exists() { own } else { seen }).expect("the control socket");
        socket.write_all(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("written");
        let mut reply = String::new();
        socket.read_to_string(&mut reply).expect("a reply");
        let body = reply.split_once("\r\n\r\n").expect("a body").1;
        serde_json::from_str(body).unwrap_or_else(|e| panic!("no JSON ({e}): {reply}"))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.logs.path().join("log")).unwrap_or_default()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Waits for its end.
    pub fn ends(&mut self) -> ExitStatus {
        self.child.ends("the daemon")
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.child.0.try_wait().expect("its state is known").is_none()
    }

    /// Ends it as systemd would.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ends().code(), Some(0), "the daemon exits 0 at SIGTERM");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ---\n{}---", self.log());
        }
    }
}
