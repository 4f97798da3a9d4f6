//! `vademecum model list`, `pull` and `use`, against servers that cut, stall, redirect, refuse and lie.

use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use vademecum_tests::{Killed, Run, binary, embedder, fetched, free_port, program, run, temp_dir, wait_for};

const MIB: usize = 1 << 20;

/// A small file that is a generator by its metadata. `mark` makes versions differ.
fn model(mark: u8) -> Vec<u8> {
    let text = |text: &str| [(text.len() as u64).to_le_bytes().to_vec(), text.as_bytes().to_vec()].concat();
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend(1_u64.to_le_bytes());
    file.extend(2_u64.to_le_bytes());
    file.extend([text("general.architecture"), 8_u32.to_le_bytes().to_vec(), text("llama")].concat());
    file.extend([text("llama.block_count"), 4_u32.to_le_bytes().to_vec(), 1_u32.to_le_bytes().to_vec()].concat());
    // 256 x 3072 numbers of 4 bytes: 3 MiB.
    file.extend([text("token_embd.weight"), 2_u32.to_le_bytes().to_vec()].concat());
    file.extend([256_u64, 3072].map(u64::to_le_bytes).concat());
    file.extend([0_u32.to_le_bytes().to_vec(), 0_u64.to_le_bytes().to_vec()].concat());
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend((0..3 * MIB).map(|at| (at as u8).wrapping_mul(31) ^ mark));
    file
}

fn sha256(bytes: &[u8]) -> String {
    let dir = temp_dir();
    let path = dir.path().join("bytes");
    fs::write(&path, bytes).expect("written");
    let out = Command::new("sha256sum").arg(&path).output().expect("sha256sum runs");
    let line = String::from_utf8_lossy(&out.stdout).into_owned();
    line.split(' ').next().unwrap_or_default().to_owned()
}

/// A request, as the server reads it: names of headers in lower case.
#[derive(Debug, Clone)]
struct Request {
    method: String,
    path: String,
    headers: HashMap<String, String>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte of `Range: bytes=5-`.
    fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// An answer, and the ways to spoil it.
#[derive(Debug, Clone, Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    cut_after: Option<usize>,
    /// Nothing more comes after these bytes, and the connection stays open.
    stall_after: Option<usize>,
    /// Pieces of the body, and the time between them.
    slowly: Option<(usize, Duration)>,
    /// The announced length; else that of the body.
    announced: Option<u64>,
}

fn status(status: u16) -> Reply {
    Reply { status, ..Reply::default() }
}

/// The whole file, or the part that is asked for.
fn file(bytes: &[u8], request: &Request) -> Reply {
    match request.from().filter(|from| *from < bytes.len()) {
        Some(from) => Reply {
            headers: vec![("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()))],
            body: bytes[from..].to_vec(),
            ..status(206)
        },
        None => Reply { body: bytes.to_vec(), ..status(200) },
    }
}

fn redirect(to: impl Into<String>) -> Reply {
    Reply { headers: vec![("Location", to.into())], ..status(302) }
}

/// An HTTP server whose answers the test writes. It ends with the test's process.
struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` takes the request and its number, from 0 on.
    fn start(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                // A client that hangs up ends its thread.
                std::thread::spawn(move || serve(stream, &log, &*answer).unwrap_or(()));
            }
        });
        Self { port, seen }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("a list").clone()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request, usize) -> Reply) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let mut first = lines[0].split(' ').map(str::to_owned);
        let header =
            |line: &String| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
        let request = Request {
            method: first.next().unwrap_or_default(),
            path: first.next().unwrap_or_default(),
            headers: lines[1..].iter().filter_map(header).collect(),
        };
        let number = {
            let mut log = log.lock().expect("a list");
            log.push(request.clone());
            log.len() - 1
        };
        if request.method == "CONNECT" {
            // The proxy's other side is this server as well.
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            continue;
        }
        let reply = answer(&request, number);
        let length = reply.announced.unwrap_or(reply.body.len() as u64);
        let mut head = format!("HTTP/1.1 {} Status\r\nContent-Length: {length}\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += name;
            head += ": ";
            head += value;
            head += "\r\n";
        }
        stream.write_all((head + "\r\n").as_bytes())?;
        let end = reply.cut_after.or(reply.stall_after).unwrap_or(reply.body.len());
        let (piece, pause) = reply.slowly.unwrap_or((MIB, Duration::ZERO));
        for part in reply.body[..end].chunks(piece) {
            stream.write_all(part)?;
            std::thread::sleep(pause);
        }
        if reply.cut_after.is_some() {
            return stream.shutdown(Shutdown::Both);
        }
        if reply.stall_after.is_some() {
            // Until the client gives up.
            reader.read_to_end(&mut Vec::new())?;
            return Ok(());
        }
    }
}

/// A configuration with a catalogue that knows the model `tiny`.
struct Home {
    dir: TempDir,
}

impl Home {
    fn with(sha256: Option<&str>) -> Self {
        let home = Self { dir: temp_dir() };
        fs::create_dir(home.path("models.d")).expect("made");
        fs::write(home.path("vademecum.toml"), "# mine\nnode = \"pi\" # the kitchen\n").expect("written");
        let sum = sha256.map(|sum| format!("sha256 = \"{sum}\"\n")).unwrap_or_default();
        let bytes = model(0).len();
        let entry = format!(
            "[[model]]\nname = \"tiny\"\nkind = \"generator\"\nrepository = \"o/tiny\"\nfile = \"tiny.gguf\"\nbytes = {bytes}\n{sum}\
             licence = \"MIT\"\nmemory_mb = 10\nlanguages = \"none\"\nboards = \"all\"\n"
        );
        fs::write(home.path("models.d/own.toml"), entry).expect("written");
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.env_clear().env("HOME", self.dir.path()).env("VADEMECUM_MODELS", self.path("models"));
        command.arg("--config").arg(self.path("vademecum.toml")).arg("--data-dir").arg(self.path("data")).args(args);
        command
    }

    fn pull(&self, from: &str) -> Command {
        self.command(&["model", "pull", "tiny", "--json", "--from", from])
    }

    fn pulled(&self) -> Vec<u8> {
        fs::read(self.path("models/tiny.gguf")).expect("the model is there")
    }

    /// Names of the files in the folder of models.
    fn files(&self) -> Vec<String> {
        let Ok(found) = fs::read_dir(self.path("models")) else { return vec![] };
        let mut names: Vec<String> = found.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// The only model in the output of `pull --json`.
fn row(run: &Run) -> Value {
    run.json().as_array().and_then(|rows| rows.first().cloned()).unwrap_or_else(|| panic!("{run:?}"))
}

#[test]
fn a_model_is_pulled_listed_and_used() {
    let bytes = model(0);
    let home = Home::with(Some(&sha256(&bytes)));
    let served = bytes.clone();
    let hub = Server::start(move |request, _| file(&served, request));
    let first = row(&run(&mut home.pull(&hub.url())).exits(0));
    assert_eq!((&first["name"], &first["outcome"], &first["checked"]), (&"tiny".into(), &"pulled".into(), &"known".into()));
    assert_eq!(first["sha256"], Value::from(sha256(&bytes)));
    assert!(home.pulled() == bytes && home.files() == ["tiny.gguf"], "{:?}", home.files());
    assert_eq!(hub.seen()[0].path, "/o/tiny/resolve/main/tiny.gguf");

    let second = row(&run(&mut home.pull(&hub.url())).exits(0));
    assert_eq!(second["outcome"], "present");
    assert_eq!(hub.seen().len(), 1, "a whole file is not asked for again");
    let told = run(&mut home.command(&["model", "pull", "tiny", "--from", &hub.url()])).exits(0);
    assert!(told.stdout.contains("tiny: is here already: "), "{told:?}");

    let printed = run(&mut home.command(&["model", "use", "tiny", "--print"])).exits(0);
    let line = format!("model.generator = \"{}\"", home.path("models/tiny.gguf").display());
    assert_eq!(printed.stdout.trim(), line);
    let used = run(&mut home.command(&["model", "use", "tiny"])).exits(0);
    assert!(used.stdout.contains("Restart the daemon") && used.stdout.contains("There is no encoder yet"), "{used:?}");
    let written = fs::read_to_string(home.path("vademecum.toml")).expect("written");
    let key = line.replace("model.", "");
    assert_eq!(written, format!("# mine\nnode = \"pi\" # the kitchen\n\n[model]\n{key}\n"));

    let list = run(&mut home.command(&["model", "list", "--json"])).exits(0).json();
    let models = list["models"].as_array().expect("a list");
    let find = |name: &str| models.iter().find(|model| model["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone();
    assert_eq!((&find("tiny")["in_use"], &find("tiny")["fits"]), (&true.into(), &true.into()));
    assert_eq!((&find("qwen2.5-1.5b")["in_use"], &find("qwen2.5-1.5b")["path"]), (&false.into(), &Value::Null));
    assert_eq!(models.iter().filter(|model| model["recommended"] == true).count(), 1);
    let shown = run(&mut home.command(&["model", "list"])).exits(0).stdout;
    assert!(shown.lines().any(|line| line.starts_with("tiny") && line.contains("in use")), "{shown}");
}

#[test]
fn a_cut_transfer_goes_on_where_it_ended() {
    let bytes = model(0);
    let home = Home::with(Some(&sha256(&bytes)));
    let served = bytes.clone();
    // Cut twice within one command.
    let hub = Server::start(move |request, number| {
        let cut_after = (number < 2).then_some(MIB + 100);
        Reply { cut_after, ..file(&served, request) }
    });
    let pulled = row(&run(&mut home.pull(&hub.url())).exits(0));
    assert_eq!(pulled["checked"], "known");
    assert!(home.pulled() == bytes);
    let from: Vec<_> = hub.seen().iter().map(Request::from).collect();
    assert_eq!(from, [None, Some(MIB + 100), Some(2 * (MIB + 100))]);
}

#[test]
fn the_next_command_goes_on_after_a_network_that_stayed_away() {
    let bytes = model(0);
    let home = Home::with(Some(&sha256(&bytes)));
    let served = bytes.clone();
    let away =
        Server::start(
            move |request, number| {
                if number == 0 { Reply { cut_after: Some(2 * MIB), ..file(&served, request) } } else { status(503) }
            },
        );
    let cut = run(&mut home.pull(&away.url())).exits(4);
    assert!(cut.stderr.contains("the same command goes on from there") && cut.stderr.contains("2097152 bytes"), "{cut:?}");
    assert_eq!(home.files(), ["tiny.gguf.part"]);
    let served = bytes.clone();
    let back = Server::start(move |request, _| file(&served, request));
    let pulled = row(&run(&mut home.pull(&back.url())).exits(0));
    assert_eq!(pulled["resumed_bytes"], 2 * MIB);
    assert!(home.pulled() == bytes && home.files() == ["tiny.gguf"]);
}

#[test]
fn a_server_without_ranges_sends_it_all_again() {
    let bytes = model(0);
    let home = Home::with(Some(&sha256(&bytes)));
    let served = bytes.clone();
    let hub = Server::start(move |_, number| Reply {
        cut_after: (number == 0).then_some(2 * MIB),
        body: served.clone(),
        ..status(200)
    });
    let _ = run(&mut home.pull(&hub.url())).exits(0);
    assert!(home.pulled() == bytes);
    assert_eq!(hub.seen()[1].from(), Some(2 * MIB), "the rest was asked for");
}

#[test]
fn without_a_sum_the_entity_tag_tells_whether_the_part_still_fits() {
    let (old, new) = (model(1), model(2));
    let home = Home::with(None);
    let url = |server: &Server| format!("{}/files/tiny.gguf?signature=x", server.url());
    let served = old.clone();
    let first = Server::start(move |request, number| {
        let mut reply = if number == 0 { file(&served, request) } else { status(500) };
        reply.headers.push(("ETag", "\"old\"".into()));
        Reply { cut_after: (number == 0).then_some(MIB), ..reply }
    });
    let _ = run(&mut home.command(&["model", "pull", &url(&first)])).exits(4);
    assert_eq!(home.files(), ["tiny.gguf.part", "tiny.gguf.part.etag"]);
    let served = new.clone();
    let second = Server::start(move |request, _| {
        // As RFC 9110 wants it: the part only of the version that the tag names.
        let reply = if request.header("if-range") == Some("\"new\"") {
            file(&served, request)
        } else {
            Reply { body: served.clone(), ..status(200) }
        };
        Reply { headers: vec![("ETag", "\"new\"".into())], ..reply }
    });
    let pulled = run(&mut home.command(&["model", "pull", &url(&second)])).exits(0);
    assert!(pulled.stdout.contains("not checked: no sum is known"), "{pulled:?}");
    assert!(!pulled.stdout.contains("signature"), "{pulled:?}");
    let asked = &second.seen()[0];
    assert_eq!((asked.from(), asked.header("if-range")), (Some(MIB), Some("\"old\"")));
    assert!(home.pulled() == new && home.files() == ["tiny.gguf"]);
}

#[test]
fn a_part_of_another_version_is_thrown_away() {
    let bytes = model(0);
    let home = Home::with(Some(&sha256(&bytes)));
    fs::create_dir(home.path("models")).expect("made");
    fs::write(home.path("models/tiny.gguf.part"), vec![7; MIB]).expect("written");
    let served = bytes.clone();
    let hub = Server::start(move |request, _| file(&served, request));
    let _ = run(&mut home.pull(&hub.url())).exits(0);
    assert!(home.pulled() == bytes);
    assert_eq!(hub.seen().iter().map(Request::from).collect::<Vec<_>>(), [Some(MIB), None]);
    // A part longer than the file: the server has nothing at that place.
    fs::remove_file(home.path("models/tiny.gguf")).expect("removed");
    fs::write(home.path("models/tiny.gguf.part"), vec![7; bytes.len() + 5]).expect("written");
    let served = bytes.clone();
    let hub = Server::start(move |request, _| if request.from().is_some() { status(416) } else { file(&served, request) });
    let _ = run(&mut home.pull(&hub.url())).exits(0);
    assert!(home.pulled() == bytes);
    // A whole part that only lacks its name.
    fs::rename(home.path("models/tiny.gguf"), home.path("models/tiny.gguf.part")).expect("renamed");
    let hub = Server::start(|_, _| status(500));
    let _ = run(&mut home.pull(&hub.url())).exits(0);
    assert!(home.pulled() == bytes && hub.seen().is_empty());
}

#[test]
fn a_wrong_sum_leaves_nothing() {
    let home = Home::with(Some(&sha256(&model(0))));
    let hub = Server::start(|request, _| file(&model(1), request));
    let wrong = run(&mut home.pull(&hub.url())).exits(5);
    assert!(wrong.stderr.contains("the sum is wrong") && wrong.stderr.contains(&sha256(&model(0))), "{wrong:?}");
    assert_eq!(home.files(), Vec::<String>::new());
    // A sum that the owner gives for an address.
    let url = format!("{}/tiny.gguf", hub.url());
    let _ = run(&mut home.command(&["model", "pull", &url, "--sha256", &sha256(&model(0))])).exits(5);
    let given = run(&mut home.command(&["model", "pull", &url, "--json", "--sha256", &sha256(&model(1))])).exits(0);
    assert_eq!(row(&given)["checked"], "known");
}

#[test]
fn the_hubs_own_sum_is_checked() {
    let linked = |sum: String| {
        Server::start(move |request, _| {
            if request.path.starts_with("/o/") {
                let mut reply = redirect("/storage/abc");
                reply.headers.push(("X-Linked-Etag", format!("\"{sum}\"")));
                return reply;
            }
            file(&model(0), request)
        })
    };
    let good = linked(sha256(&model(0)));
    let home = Home::with(None);
    assert_eq!(row(&run(&mut home.pull(&good.url())).exits(0))["checked"], "hub");
    let home = Home::with(None);
    let told = run(&mut home.pull(&linked(sha256(&model(1))).url())).exits(5);
    assert!(told.stderr.contains("the sum is wrong") && home.files().is_empty(), "{told:?}");
    // The hub has another file than the catalogue knows: told before the download.
    let home = Home::with(Some(&sha256(&model(3))));
    let told = run(&mut home.pull(&good.url())).exits(5);
    assert!(told.stderr.contains("the hub now has another file"), "{told:?}");
}

#[test]
fn redirects_end_and_the_token_stays_with_the_hub() {
    let bytes = model(0);
    let served = bytes.clone();
    let storage = Server::start(move |request, _| file(&served, request));
    let to = format!("{}/bucket/tiny.gguf?X-Signature=secret", storage.url());
    let hub = Server::start(
        move |request, _| if request.path.starts_with("/o/tiny") { redirect("/o/renamed/x") } else { redirect(&to) },
    );
    let home = Home::with(Some(&sha256(&bytes)));
    let _ = run(home.pull(&hub.url()).env("HF_TOKEN", "hf_abc")).exits(0);
    assert!(home.pulled() == bytes);
    let tokens = |server: &Server| server.seen().iter().map(|r| r.header("authorization").map(str::to_owned)).collect::<Vec<_>>();
    assert_eq!(tokens(&hub), [Some("Bearer hf_abc".to_owned()), Some("Bearer hf_abc".to_owned())]);
    assert_eq!(tokens(&storage), [None]);

    let home = Home::with(None);
    let circle = Server::start(|_, _| redirect("/o/again"));
    let told = run(&mut home.pull(&circle.url())).exits(1);
    assert!(told.stderr.contains("more than 10 redirects"), "{told:?}");
    assert!(circle.seen().len() < 20);
    let away = Server::start(|_, _| redirect("file:///etc/shadow"));
    let told = run(&mut home.pull(&away.url())).exits(1);
    assert!(told.stderr.contains("no https address"), "{told:?}");
}

#[test]
fn refusals_say_what_to_do() {
    let home = Home::with(None);
    let answers = |code: u16, name: &'static str| {
        Server::start(move |_, _| Reply { headers: vec![("X-Error-Code", name.to_owned())], ..status(code) })
    };
    for (code, name, exit, expected) in [
        (401, "GatedRepo", 1, "the model is gated; accept its licence on that page, then set HF_TOKEN"),
        (401, "RepoNotFound", 1, "there is no such repository"),
        (404, "EntryNotFound", 1, "not found (404)"),
        (429, "", 4, "the server is busy"),
        (302, "", 1, "redirects to nowhere"),
    ] {
        let told = run(&mut home.pull(&answers(code, name).url())).exits(exit);
        assert!(told.stderr.contains(expected), "{code} {name}: {told:?}");
    }
    let told = run(home.pull(&answers(403, "GatedRepo").url()).env("HF_TOKEN", "hf_abc")).exits(1);
    assert!(
        told.stderr.contains("the account of HF_TOKEN may not read this model") && !told.stderr.contains("hf_abc"),
        "{told:?}"
    );
    // Nobody listens there.
    let told = run(&mut home.pull(&format!("http://127.0.0.1:{}", free_port()))).exits(4);
    assert!(told.stderr.contains("0 bytes are here"), "{told:?}");
    for (args, expected) in [
        (vec!["model", "pull", "nonsuch"], "no known model `nonsuch`"),
        (vec!["model", "pull", "qwen2.5:3b"], "did you mean"),
        (vec!["model", "pull", "https://h/x.zip"], "names no GGUF file"),
        (vec!["model", "pull", "tiny", "--from", "/no/such/folder"], "is no folder"),
        (vec!["model", "use", "nonsuch"], "no known model"),
    ] {
        let told = run(&mut home.command(&args)).exits(2);
        assert!(told.stderr.contains(expected), "{args:?}: {told:?}");
    }
    let told = run(&mut home.command(&["model", "use", "tiny"])).exits(1);
    assert!(told.stderr.contains("`vademecum model pull tiny` fetches it"), "{told:?}");
    assert_eq!(home.files(), Vec::<String>::new());
}

#[test]
fn a_page_instead_of_a_model_is_refused() {
    let home = Home::with(None);
    let portal = Server::start(|_, _| Reply { body: b"<!doctype html><title>Log in</title>".to_vec(), ..status(200) });
    let told = run(&mut home.pull(&portal.url())).exits(5);
    assert!(told.stderr.contains("is not a GGUF file") && home.files().is_empty(), "{told:?}");
}

#[test]
fn sizes_are_bounded_before_and_during_the_download() {
    let home = Home::with(None);
    let huge = Server::start(|request, _| Reply { announced: Some(1 << 40), cut_after: Some(10), ..file(&model(0), request) });
    let told = run(&mut home.pull(&huge.url())).exits(1);
    assert!(told.stderr.contains("1099511627776 bytes, and at most"), "{told:?}");
    let url = format!("{}/tiny.gguf", huge.url());
    let told = run(&mut home.command(&["model", "pull", &url])).exits(1);
    assert!(told.stderr.contains("and at most 68719476736"), "{told:?}");
    assert_eq!(home.files(), Vec::<String>::new());
}

#[test]
fn a_slow_server_is_waited_for_and_a_silent_one_is_not() {
    let bytes = model(0);
    let home = Home::with(Some(&sha256(&bytes)));
    // It sends 1000 bytes each time it is asked to go on.
    let silent = Server::start(|request, _| Reply { stall_after: Some(1000), ..file(&model(0), request) });
    let told = run(home.pull(&silent.url()).args(["--silence", "1"])).exits(4);
    assert!(told.stderr.contains("cut off") && told.stderr.contains("3000 bytes are here"), "{told:?}");
    // Six pieces with half a second between them take longer in all than the silence allowed.
    let served = bytes.clone();
    let slow =
        Server::start(move |request, _| Reply { slowly: Some((MIB / 2, Duration::from_millis(500))), ..file(&served, request) });
    let _ = run(home.pull(&slow.url()).args(["--silence", "2"])).exits(0);
    assert!(home.pulled() == bytes);
}

#[test]
fn proxy_variables_are_followed() {
    let bytes = model(0);
    let served = bytes.clone();
    let proxy = Server::start(move |request, _| file(&served, request));
    let with_account = format!("http://me:pass@127.0.0.1:{}", proxy.port);
    let home = Home::with(Some(&sha256(&bytes)));
    // The hub's name is known to the proxy only.
    let _ = run(home.pull("http://hub.invalid").env("http_proxy", &with_account)).exits(0);
    assert!(home.pulled() == bytes);
    let seen = proxy.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("CONNECT", "hub.invalid:80"));
    assert!(seen[0].header("proxy-authorization").is_some_and(|account| account.ends_with("bWU6cGFzcw==")));
    assert_eq!(seen[1].path, "/o/tiny/resolve/main/tiny.gguf");

    let served = bytes.clone();
    let hub = Server::start(move |request, _| file(&served, request));
    let home = Home::with(Some(&sha256(&bytes)));
    let _ = run(home.pull(&hub.url()).env("HTTP_PROXY", &with_account).env("NO_PROXY", "localhost,127.0.0.1")).exits(0);
    assert_eq!((proxy.seen().len(), hub.seen().len()), (2, 1), "reached directly");
    let told = run(home.pull(&hub.url()).env("https_proxy", "gopher://me:pass@h")).exits(2);
    assert!(told.stderr.contains("gopher://h") && !told.stderr.contains("pass"), "{told:?}");
}

#[test]
fn the_mirror_may_come_from_the_environment() {
    let bytes = model(0);
    let served = bytes.clone();
    let mirror = Server::start(move |request, _| file(&served, request));
    let home = Home::with(Some(&sha256(&bytes)));
    let _ = run(home.command(&["model", "pull", "tiny"]).env("HF_ENDPOINT", mirror.url() + "/hf/")).exits(0);
    assert_eq!(mirror.seen()[0].path, "/hf/o/tiny/resolve/main/tiny.gguf");
}

#[test]
fn a_folder_is_a_source_too() {
    let bytes = model(0);
    let home = Home::with(Some(&sha256(&bytes)));
    let stick = temp_dir();
    let told = run(&mut home.pull(&stick.path().display().to_string())).exits(1);
    assert!(told.stderr.contains("tiny.gguf") && told.stderr.contains("check the folder"), "{told:?}");
    fs::write(stick.path().join("tiny.gguf"), &bytes).expect("written");
    let _ = run(&mut home.pull(&stick.path().display().to_string())).exits(0);
    assert!(home.pulled() == bytes);
}

#[test]
fn an_encoder_is_converted_from_its_makers_files() {
    let home = Home::with(None);
    let minilm = fetched("models/minilm");
    let files = minilm.clone();
    let hub = Server::start(move |request, number| {
        let name = request.path.strip_prefix("/sentence-transformers/all-MiniLM-L6-v2/resolve/main/").unwrap_or("none");
        match fs::read(files.join(name)) {
            // The weights are cut once.
            Ok(bytes) => {
                Reply { cut_after: (name == "model.safetensors" && number == 7).then_some(30 * MIB), ..file(&bytes, request) }
            }
            Err(_) => status(404),
        }
    });
    let pulled = run(&mut home.command(&["model", "pull", "all-minilm-l6-v2", "--json", "--from", &hub.url()])).exits(0);
    assert_eq!(row(&pulled)["checked"], "known");
    assert_eq!(home.files(), ["all-MiniLM-L6-v2.gguf"], "the parts are removed");
    assert!(hub.seen().iter().any(|request| request.from() == Some(30 * MIB)));
    let made = home.path("models/all-MiniLM-L6-v2.gguf");
    assert!(fs::read(&made).expect("made") == fs::read(embedder()).expect("the tests' own"), "as `model convert` makes it");
    // It works with its generator as a pair, from a folder without a network.
    let other = Home::with(None);
    fs::copy(&made, other.path("all-MiniLM-L6-v2.gguf")).expect("copied");
    let generator = fetched("models/generator.gguf");
    std::os::unix::fs::symlink(generator, other.path("SmolLM2-135M-Instruct.Q4_1.gguf")).expect("linked");
    let from = other.dir.path().display().to_string();
    let pair = run(&mut other.command(&["model", "pull", "smollm2-135m", "--json", "--from", &from])).exits(0).json();
    let names: Vec<_> = pair.as_array().expect("rows").iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, ["smollm2-135m", "all-minilm-l6-v2"]);
    let used = run(&mut other.command(&["model", "use", "smollm2-135m", "--json"])).exits(0).json();
    assert_eq!(used["encoder"], Value::from(other.path("models/all-MiniLM-L6-v2.gguf").display().to_string()));
    let doctor = run(&mut other.command(&["doctor", "--json"])).json();
    let status =
        |name: &str| doctor.as_array().expect("checks").iter().find(|check| check["check"] == name).map(|c| c["status"].clone());
    assert_eq!((status("generator"), status("embedder")), (Some("ok".into()), Some("ok".into())), "{doctor}");
}

#[test]
fn two_commands_do_not_write_one_file() {
    let bytes = model(0);
    let home = Home::with(Some(&sha256(&bytes)));
    let served = bytes.clone();
    let slow =
        Server::start(move |request, _| Reply { slowly: Some((MIB / 8, Duration::from_millis(200))), ..file(&served, request) });
    let mut first = Killed(home.pull(&slow.url()).stdout(Stdio::null()).spawn().expect("starts"));
    wait_for("the first bytes", || fs::metadata(home.path("models/tiny.gguf.part")).ok().filter(|part| part.len() > 0));
    let told = run(&mut home.pull(&slow.url())).exits(1);
    assert!(told.stderr.contains("another command pulls this file"), "{told:?}");
    assert!(first.ends("the first command").success());
    assert!(home.pulled() == bytes);
}

#[test]
fn https_trusts_the_systems_authorities_only() {
    let bytes = model(0);
    let home = Home::with(Some(&sha256(&bytes)));
    let site = home.path("site");
    fs::create_dir_all(site.join("o/tiny/resolve/main")).expect("made");
    fs::write(site.join("o/tiny/resolve/main/tiny.gguf"), &bytes).expect("written");
    let openssl = program("openssl");
    let (key, cert) = (home.path("key.pem"), home.path("cert.pem"));
    let made = run(Command::new(&openssl)
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args([
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            path(&key),
            "-out",
            path(&cert),
        ]));
    assert_eq!(made.code, Some(0), "{made:?}");
    let port = free_port();
    let mut server = Command::new(&openssl);
    server
        .args(["s_server", "-quiet", "-WWW", "-cert", path(&cert), "-key", path(&key), "-accept", &port.to_string()])
        .current_dir(&site);
    let _server = Killed(server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts"));
    wait_for("the server", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
    let url = format!("https://localhost:{port}");
    let told = run(&mut home.pull(&url)).exits(1);
    assert!(told.stderr.contains("no trusted connection") && told.stderr.contains("check the clock"), "{told:?}");
    let _ = run(home.pull(&url).env("SSL_CERT_FILE", &cert)).exits(0);
    assert!(home.pulled() == bytes);
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
