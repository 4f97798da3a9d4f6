//! User name and password for the broker: from the configuration, else from systemd's credentials.

use super::ServiceError;
use crate::config;
use mqtt::connection::Credentials;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Names for `LoadCredential=`; systemd puts the files into `$CREDENTIALS_DIRECTORY`.
const USERNAME: &str = "mqtt-username";
const PASSWORD: &str = "mqtt-password";
/// Longest user name or password in MQTT.
const MOST_BYTES: u64 = u16::MAX as u64;

/// The credentials for the broker; `None` if none are set.
///
/// # Errors
/// A file cannot be read, or there is a password without a user name.
pub(crate) fn credentials(mqtt: &config::Mqtt) -> Result<Option<Credentials>, ServiceError> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    credentials_in(mqtt, directory.as_deref())
}

fn credentials_in(mqtt: &config::Mqtt, directory: Option<&Path>) -> Result<Option<Credentials>, ServiceError> {
    let given = |name: &str| directory.map(|dir| dir.join(name)).filter(|path| path.exists());
    let username = match given(USERNAME) {
        _ if !mqtt.username.is_empty() => mqtt.username.clone(),
        Some(path) => first_line("the credential", &path)?,
        None => String::new(),
    };
    let password = match given(PASSWORD) {
        _ if !mqtt.password_file.as_os_str().is_empty() => Some(first_line("mqtt.password_file", &mqtt.password_file)?),
        Some(path) => Some(first_line("the credential", &path)?),
        None => None,
    };
    match (username, password) {
        (username, None) if username.is_empty() => Ok(None),
        (username, Some(_)) if username.is_empty() => Err(ServiceError::System(format!(
            "there is a password for the broker but no user name; set mqtt.username, or the credential {USERNAME}"
        ))),
        (username, password) => Ok(Some(Credentials { username, password: password.unwrap_or_default() })),
    }
}

fn first_line(what: &str, path: &Path) -> Result<String, ServiceError> {
    let failed = |e: std::io::Error| {
        ServiceError::System(format!("cannot read {what} {}: {e}; check the path and its permissions", path.display()))
    };
    let mut bytes = Vec::new();
    // The path may name the wrong file, even one without an end.
    std::fs::File::open(path).and_then(|file| file.take(MOST_BYTES + 3).read_to_end(&mut bytes)).map_err(failed)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let problem = match std::str::from_utf8(line) {
        _ if line.len() as u64 > MOST_BYTES => "its first line is longer than the 65,535 bytes that MQTT allows",
        Ok(line) => return Ok(line.to_owned()),
        Err(_) => "its first line is not UTF-8",
    };
    Err(ServiceError::System(format!("{what} {}: {problem}; name a file with the right first line", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_credentials_win_over_systemds() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).expect("written");
            dir.path().join(name)
        };
        let (own, none) = (file("own", "own password\nsecond line\n"), config::Mqtt::default());
        assert!(credentials_in(&none, None).expect("none").is_none());
        assert!(credentials_in(&none, Some(dir.path())).expect("none").is_none());
        file(PASSWORD, "systemd's password\r\n");
        let error = credentials_in(&none, Some(dir.path())).expect_err("no user name").to_string();
        assert!(error.contains("mqtt.username") && !error.contains("systemd's password"), "{error}");
        file(USERNAME, "pump\n");
        let shown = |mqtt: &config::Mqtt| {
            let found = credentials_in(mqtt, Some(dir.path())).expect("readable").expect("some");
            assert!(!format!("{found:?}").contains("password\""), "{found:?}");
            (found.username, found.password)
        };
        assert_eq!(shown(&none), ("pump".into(), "systemd's password".into()));
        let both = config::Mqtt { username: "lamp".into(), password_file: own, ..config::Mqtt::default() };
        assert_eq!(shown(&both), ("lamp".into(), "own password".into()));
        let named = |password_file: PathBuf| config::Mqtt { username: "lamp".into(), password_file, ..config::Mqtt::default() };
        assert_eq!(credentials_in(&named(file("empty", "")), None).expect("readable").expect("some").password, "");
        for endless in [file("long", &"s".repeat(70_000)), "/dev/zero".into()] {
            let error = credentials_in(&named(endless), None).expect_err("too long").to_string();
            assert!(error.contains("65,535") && error.len() < 300, "{error}");
        }
        let missing = config::Mqtt { username: "lamp".into(), password_file: dir.path().join("gone"), ..config::Mqtt::default() };
        let error = credentials_in(&missing, None).expect_err("no file").to_string();
        assert!(error.contains("mqtt.password_file") && error.contains("gone"), "{error}");
    }
}
