use super::layers::{default_table, leaves, load};
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
fn unknown_keys_are_refused_with_file_key_and_remedy() {
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
        (
            "[answer]\nreader = \"composed\"\n",
            "`answer.reader` unknown variant `composed`, expected one of `auto`, `quote`, `evidence`, `best`, `each`, `joined`",
        ),
        ("[model]\nrepack = \"maybe\"\n", "`model.repack` unknown variant `maybe`, expected one of `auto`, `on`, `off`"),
        ("[broker]\nlisten = \"0.0.0.0:1883\"\n", "loopback only"),
        ("[mqtt]\ncert_file = \"/c.pem\"\n", "mqtt.key_file is not set"),
        ("[mqtt]\nalpn = [\"\"]\n", "1 to 255 bytes"),
        ("[mqtt]\nbroker = \"mqtt://h\"\nca_file = \"/ca.pem\"\n", "`mqtt.ca_file` is set, but mqtt.broker is not encrypted"),
        ("[answer]\nthreshold = 2.0\n", "from 0 to 1"),
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
fn a_password_in_a_broker_address_is_not_repeated() {
    for text in ["mqtt://pump:secret@h", "mqtts://pump:sec@ret/@h:8883/x", "pump:secret@h", "http://pump:secret@h"] {
        let error = BrokerUrl::parse(text).expect_err("refused");
        assert!(error.contains("@h") && !error.contains("pump") && !error.contains("sec"), "{error}");
    }
}

/// The shipped file names every key, each commented out at its default.
#[test]
fn the_shipped_file_documents_every_key_with_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/vademecum.toml");
    let text = std::fs::read_to_string(&path).expect("config/vademecum.toml");
    assert_eq!(load(Some(&path), no_env(), &vec![]).expect("as shipped").config, Config::default());
    let active: String = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).unwrap_or(line))
        .fold(String::new(), |all, line| all + line + "\n");
    let table: toml::Table = active.parse().expect("uncommented file is TOML");
    let mut documented = leaves(&table);
    let mut expected = leaves(&default_table());
    documented.sort();
    expected.sort();
    assert_eq!(documented, expected);
    let (_dir, path) = file_with(&active);
    assert_eq!(load(Some(&path), no_env(), &vec![]).expect("uncommented").config, Config::default());
}
