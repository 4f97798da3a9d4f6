//! The address of a broker.

/// A broker's address, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether the connection is encrypted (`mqtts`, `wss`).
    pub tls: bool,
    /// Path of the WebSocket that MQTT goes through (`ws`, `wss`).
    pub web_socket: Option<String>,
}

impl BrokerUrl {
    /// Parses `mqtt[s]://host[:port]` (default ports 1883, 8883) or `ws[s]://host[:port][/path]` (defaults 80, 443 and `/mqtt`).
    ///
    /// # Errors
    /// The fault, as a clause that follows the key's name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let (tls, web, default_port) = match scheme {
            "mqtt" => (false, false, 1883),
            "mqtts" => (true, false, 8883),
            "ws" => (false, true, 80),
            "wss" => (true, true, 443),
            _ => {
                let text = without_password(text);
                return Err(format!("is `{text}`; write mqtt://host:port or mqtts://host:port (or ws://, wss://)"));
            }
        };
        let (rest, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = path.strip_suffix('/').unwrap_or(path);
        if text.contains(['@', '?', '#', ' ']) || text.chars().any(char::is_control) || (!web && !path.is_empty()) {
            let parts = if web { "host, port and path" } else { "host and port" };
            let (text, keys) = (without_password(text), "mqtt.username and mqtt.password_file");
            return Err(format!("is `{text}`; only {parts} may follow the scheme (for user name and password there are {keys})"));
        }
        let bad_port = |port: &str| format!("has the port `{port}`; write a number from 1 to 65535");
        let parse_port = |port: &str| port.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(|| bad_port(port));
        let (host, port) = if let Some(v6) = rest.strip_prefix('[') {
            let (host, tail) =
                v6.split_once(']').ok_or_else(|| format!("is `{text}`; the bracket of the IPv6 address is not closed"))?;
            (host, tail.strip_prefix(':').map(parse_port).transpose()?)
        } else {
            match rest.rsplit_once(':') {
                Some((host, port)) => (host, Some(parse_port(port)?)),
                None => (rest, None),
            }
        };
        if host.is_empty() {
            return Err(format!("is `{text}`; the host is missing"));
        }
        let web_socket = web.then(|| if path.is_empty() { "/mqtt" } else { path }.to_owned());
        Ok(Self { host: host.to_owned(), port: port.unwrap_or(default_port), tls, web_socket })
    }
}

/// An address that is safe to show: the part before an `@` may be a password.
fn without_password(text: &str) -> String {
    match (text.find("://").map_or(0, |at| at + 3), text.rfind('@')) {
        (begin, Some(at)) if begin <= at => format!("{}...{}", &text[..begin], &text[at..]),
        _ => text.to_owned(),
    }
}
