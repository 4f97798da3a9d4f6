use super::*;

fn no_env() -> std::iter::Empty<(String, String)> {
    std::iter::empty()
}

fn file_with(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("vademecum.toml");
    std::fs::write(&path, text).expect("write");
    (dir, path)
}

fn error_of(text: &str) -> String {
    let (_dir, path) = file_with(text);
    load(Some(&path), no_env(), &vec![]).expect_err("refused").to_string()
}

#[test]
fn flags_win_over_environment_over_file() {
    let (_dir, path) = file_with("node = \"file\"\n[mqtt]\nbase = \"base\"\nkeep_alive_s = 20\n");
    let env = [("VADEMECUM_NODE", "env"), ("VADEMECUM_MQTT_KEEP_ALIVE_S", "40"), ("VADEMECUM_CACHE", "/tmp"), ("HOME", "/root")];
    let env = env.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
    let loaded = load(Some(&path), env, &vec![("node".into(), "flag".into())]).expect("valid");
    assert_eq!(loaded.config.node, "flag");
    assert_eq!(loaded.config.mqtt.keep_alive_s, 40);
    assert_eq!(loaded.config.topic_base(), "base/flag");
    assert_eq!(loaded.origins["mqtt.keep_alive_s"], "VADEMECUM_MQTT_KEEP_ALIVE_S");
    assert!(!loaded.origins.contains_key("mqtt.version"));
}

#[test]
fn unknown_keys_are_refused_with_a_remedy() {
    let message = error_of("[mqtt]\nbrokr = \"mqtt://a\"\n");
    assert!(
        message.contains("vademecum.toml") && message.contains("`mqtt.brokr`") && message.contains("did you mean `mqtt.broker`"),
        "{message}"
    );
    let env = [("VADEMECUM_MQTT_BROKR".to_owned(), "x".to_owned())].into_iter();
    let message = load(None, env, &vec![]).expect_err("refused").to_string();
    assert!(message.contains("VADEMECUM_MQTT_BROKR") && message.contains("mqtt.broker"), "{message}");
}

#[test]
fn bad_values_are_refused_with_the_right_form() {
    for (text, expected) in [
        ("[mqtt]\nkeep_alive_s = \"long\"\n", "`mqtt.keep_alive_s` is \"long\", a text in quotes; it must be a whole number"),
        ("[mqtt]\nbroker = \"localhost\"\n", "write mqtt://host:port"),
        ("[model]\nrepack = \"maybe\"\n", "`model.repack` is `maybe`; write `auto`, `on` or `off`"),
        ("[broker]\nlisten = \"0.0.0.0:1883\"\n", "loopback only"),
        ("[mqtt]\ncert_file = \"/c.pem\"\n", "mqtt.key_file is not set"),
        ("[mqtt]\nalpn = [\"\"]\n", "1 to 255 bytes"),
        ("[mqtt]\nbroker = \"mqtt://h\"\nca_file = \"/ca.pem\"\n", "`mqtt.ca_file` is set, but mqtt.broker is not encrypted"),
        ("[answer]\nthreshold = 2.0\n", "from 0 to 1"),
        ("[answer]\nthreshold = -1\n", "`answer.threshold` is -1; it must be from 0 to 1"),
        (
            "[answer]\nstrategy = \"composed\"\n",
            "`answer.strategy` is `composed`; write `auto`, `quote`, `read`, `evidence`, `best`, `each` or",
        ),
        ("[answer]\nreader = \"composed\"\n", "`answer.strategy` is `composed`; write"),
        ("[answer]\ncache = true\n", "`answer.cache` is true, a true or false; it must be a whole number"),
        ("[mqtt]\nversion = \"4\"\n", "write `auto`, `5` or `3.1.1`"),
        ("answer = 3\n", "`answer` is 3, a whole number; it must be a section"),
        ("[mqtt.broker]\n", "it must be a text in quotes"),
        ("[answer]\nseed = 5000000000\n", "from 0 to 4294967295"),
        ("[log]\nlevel = \"loud\"\n", "write error, warn, info, debug or trace"),
        ("[answer]\nmax_tokens = 2000\n", "leaves no room"),
        ("[model]\ncontext = -1\n", "cannot be negative"),
        ("node = \"a/b\"\n", "one level of a topic"),
        ("collection = \"Ä\"\n", "a collection is named"),
        ("node = \n", "not valid TOML"),
        ("[ingest]\ninclude = [\"[\"]\n", "does not parse"),
        ("[ingest]\nwatch = [\"manuals\"]\n", "write /path/to/folder"),
        ("[ingest]\nwatch = [\"Ä=/srv\"]\n", "a collection is named"),
        ("[ingest]\nwatch = [\"/srv/a\", \"/srv/a/b/\"]\n", "collections of their own"),
        ("[ingest]\nwatch = [\"/srv/a\", \"/mnt/a\"]\n", "collections of their own"),
        ("[mqtt]\nreply_topics = [\"a/#/b\"]\n", "not a topic filter"),
    ] {
        let message = error_of(text);
        assert!(message.contains(expected), "{text:?} gave: {message}");
        assert!(message.contains("vademecum.toml"), "{message}");
    }
}

#[test]
fn watched_folders_name_their_collection() {
    let watch = ["/srv/manuals/", "heating=/srv/heating", "/srv/a=b"].map(String::from).to_vec();
    let config = Config { ingest: Ingest { watch, ..Ingest::default() }, ..Config::default() };
    let folders = config.watched_folders().expect("valid");
    let shown: Vec<String> = folders.iter().map(|f| format!("{} {}", f.collection, f.path.display())).collect();
    assert_eq!(shown, ["default /srv/manuals", "heating /srv/heating", "default /srv/a=b"]);
}

#[test]
fn broker_addresses() {
    let parse = |text| BrokerUrl::parse(text).map(|u| (u.host, u.port, u.tls));
    assert_eq!(parse("mqtt://pi.local"), Ok(("pi.local".into(), 1883, false)));
    assert_eq!(parse("mqtts://[::1]:8884"), Ok(("::1".into(), 8884, true)));
    let path = |text| BrokerUrl::parse(text).map(|u| (u.host, u.port, u.tls, u.web_socket));
    assert_eq!(path("mqtt://pi.local/"), Ok(("pi.local".into(), 1883, false, None)));
    assert_eq!(path("ws://pi.local"), Ok(("pi.local".into(), 80, false, Some("/mqtt".into()))));
    assert_eq!(path("wss://[::1]:9001/a/b"), Ok(("::1".into(), 9001, true, Some("/a/b".into()))));
    for bad in [
        "http://x",
        "mqtt://",
        "mqtt://u:p@h",
        "mqtt://h:0",
        "mqtt://h:99999",
        "mqtt://[::1",
        "mqtt://h/p",
        "ws://h/p?q",
        "ws://h/a b",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_password_in_an_address_is_not_repeated() {
    for text in ["mqtt://pump:secret@h", "mqtts://pump:sec@ret/@h:8883/x", "pump:secret@h", "http://pump:secret@h"] {
        let error = BrokerUrl::parse(text).expect_err("refused");
        assert!(error.contains("@h") && !error.contains("pump") && !error.contains("sec"), "{error}");
    }
}

/// A file of the repository.
fn committed(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A commented file with its keys in effect. A key follows `#` directly; prose follows `# `.
fn uncommented(text: &str) -> String {
    text.lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).unwrap_or(line))
        .fold(String::new(), |all, line| all + line + "\n")
}

#[test]
fn committed_files_are_what_the_table_gives() {
    let remedy = "is not what the table of keys gives: run `make config-files`";
    assert!(committed("config/vademecum.toml") == template(), "config/vademecum.toml {remedy}");
    assert!(committed("docs/configuration.md") == reference(), "docs/configuration.md {remedy}");
}

#[test]
fn the_commented_file_has_every_default() {
    let (_dir, path) = file_with(&template());
    let as_shipped = load(Some(&path), no_env(), &vec![]).expect("as shipped");
    assert_eq!((as_shipped.config, as_shipped.origins.len()), (Config::default(), 0));
    let (_dir, path) = file_with(&uncommented(&template()));
    let all_set = load(Some(&path), no_env(), &vec![]).expect("uncommented");
    assert_eq!((all_set.config, all_set.origins.len()), (Config::default(), KEYS.len()));
    let reference = reference();
    for key in KEYS {
        assert!(reference.contains(&format!("\n| `{}` |", key.parts().1)), "{}", key.name);
    }
}

#[test]
fn every_key_is_described_in_plain_sentences() {
    assert!(!reference().contains("||"));
    for key in KEYS {
        let help = key.help();
        assert!((1..=120).contains(&help.len()) && help.ends_with('.'), "{}: {help:?} is no line of help", key.name);
        assert!(key.doc.get(1).is_none_or(|line| line.trim().is_empty()), "{}: an empty line follows the help", key.name);
        for sentence in format!("{help} {}", key.more()).split(['.', ':']) {
            assert!(sentence.split_whitespace().count() <= 25, "{}: {sentence:?} is long", key.name);
        }
        assert!(!help.contains('|'), "{}: a bar ends the cell of a table", key.name);
    }
}

#[test]
fn every_key_has_a_section_and_a_valid_default() {
    let defaults = flat(&Config::default());
    let mut names: Vec<&str> = KEYS.iter().flat_map(|key| [key.name, key.formerly]).filter(|name| !name.is_empty()).collect();
    assert!(KEYS.iter().all(|key| SECTIONS.iter().any(|(section, _)| *section == key.parts().0)));
    assert_eq!(defaults.len(), KEYS.len());
    for key in KEYS {
        let default = &defaults[key.name];
        assert_eq!(key.bounds.check(default), Ok(()), "{}", key.name);
        let fits = match &key.bounds {
            Bounds::Any => !default.is_integer() && !default.is_float(),
            Bounds::Whole(_) => default.is_integer(),
            Bounds::Number(_) => default.is_float(),
            Bounds::OneOf(_) => default.is_str(),
        };
        assert!(fits, "{}: {default} has no bounds, or those of another type", key.name);
        // Retired words stand for another one.
        for (word, _) in key.words().iter().filter(|(_, meaning)| !meaning.starts_with("the same as")) {
            let set = load(Some(Path::new("/dev/null")), no_env(), &vec![(key.name.into(), (*word).into())]);
            assert_eq!(flat(&set.expect(word).config)[key.name].as_str(), Some(*word));
        }
    }
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a name is given twice");
}

#[test]
fn old_names_are_understood_with_a_hint() {
    let (_dir, path) = file_with("[answer]\nreader = \"joined\"\n[model]\npassages_mb = 7\nkv_cache_mb = 8\n");
    let env = || [("VADEMECUM_MODEL_PASSAGES_MIN_FREE_MB".to_owned(), "9".to_owned())].into_iter();
    let flags = vec![("answer.reader".to_owned(), "quote".to_owned())];
    let loaded = load(Some(&path), env(), &vec![]).expect("old names");
    let model = &loaded.config.model;
    assert_eq!(loaded.config.answer.strategy, answer::Strategy::Read);
    assert_eq!((model.kv_cache_mb, model.kv_cache_min_free_mb), (8, 9), "the new name wins within a file");
    assert_eq!(loaded.origins["model.kv_cache_min_free_mb"], "VADEMECUM_MODEL_PASSAGES_MIN_FREE_MB");
    for hint in [
        "vademecum.toml: `answer.reader` is now called `answer.strategy`",
        "`model.passages_mb` is now called `model.kv_cache_mb`",
        "VADEMECUM_MODEL_PASSAGES_MIN_FREE_MB: `model.passages_min_free_mb` is now called `model.kv_cache_min_free_mb`",
    ] {
        assert!(loaded.hints.iter().any(|said| said.contains(hint)), "{hint}: {:?}", loaded.hints);
    }
    assert_eq!(loaded.hints.len(), 3);
    let (_dir, path) = file_with("[answer]\nstrategy = \"joined\"\n");
    let loaded = load(Some(&path), no_env(), &flags).expect("an old name on the command line");
    assert_eq!(loaded.config.answer.strategy, answer::Strategy::Quote, "a later layer wins by either name");
    assert!(loaded.hints[0].starts_with("command line: `answer.reader`"), "{:?}", loaded.hints);
    let new = load(Some(&path), no_env(), &vec![]).expect("the new name");
    assert!(new.hints.is_empty(), "{:?}", new.hints);
}

#[test]
fn the_effective_configuration_can_be_read_again() {
    let (_dir, path) = file_with("[answer]\ntop_k = 5\nthreshold = 0.3\nstop = [\"a\\nb\", \"c\"]\n");
    let flags = vec![("mqtt.broker".to_owned(), "mqtt://h".to_owned())];
    let loaded = load(Some(&path), no_env(), &flags).expect("valid");
    let shown = effective(&loaded);
    assert!(shown.contains("\nbroker = \"mqtt://h\"  # command line\n"), "{shown}");
    assert!(shown.contains(&format!("\ntop_k = 5  # {}\n", path.display())) && shown.contains("\nthreshold = 0.3  #"), "{shown}");
    assert!(shown.contains("\nsentences = 2\n") && shown.contains("# generator in use: "), "{shown}");
    let (_dir, path) = file_with(&shown);
    assert_eq!(load(Some(&path), no_env(), &vec![]).expect("the output is a configuration").config, loaded.config);
}

#[test]
fn a_reload_takes_over_live_keys_only() {
    let ours = Config::default();
    let mut read = Config::default();
    read.answer.top_k = 7;
    read.answer.temperature = 0.3;
    read.answer.sentences = 5;
    read.ingest.watch = vec!["/srv/manuals".into()];
    read.model.context = 4096;
    let next = ours.with_live_keys_of(&read).expect("values");
    assert_eq!(next.differences(&ours), ["answer.temperature", "answer.top_k", "ingest.watch"]);
    assert_eq!(next.differences(&read), ["answer.sentences", "model.context"]);
}
