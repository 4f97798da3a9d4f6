//! One HTTP request for a file: redirects by hand, proxies of the environment, a place to go on from.
//!
//! Redirects are followed here, not in the client. The hub names a file's SHA-256 in the answer that redirects to its storage,
//! and its token must not travel on to another host.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{HeaderMap, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Proxy};

/// Most redirects of one request.
const MAX_REDIRECTS: usize = 10;
/// Longest time to connect.
const CONNECT: Duration = Duration::from_secs(20);

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebError {
    /// The line or the server failed; the same request may succeed later.
    #[error("{0}")]
    Cut(String),
    /// The server does not have the file, or does not give it.
    #[error("{0}")]
    Refused(String),
    /// The server has no bytes at the place to go on from.
    #[error("the server has no bytes at that place")]
    BadRange,
}

/// A file on its way.
pub struct Answer {
    /// The bytes from `start` on.
    pub body: Box<dyn Read>,
    /// First byte of the body: the place asked for, or 0 if the server sends the whole file.
    pub start: u64,
    /// Bytes of the whole file, if the server says.
    pub total: Option<u64>,
    /// The strong entity tag, quotes included.
    pub etag: Option<String>,
    /// SHA-256 of the whole file, if the hub says.
    pub sha256: Option<String>,
}

/// The variables of the environment that concern downloads.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `HTTPS_PROXY`, else `ALL_PROXY`.
    pub https_proxy: Option<String>,
    /// `http_proxy` or `HTTP_PROXY`, else `ALL_PROXY`.
    pub http_proxy: Option<String>,
    /// `NO_PROXY`: hosts that are reached directly.
    pub no_proxy: Option<String>,
    /// `HF_TOKEN`: the hub's token, for models with a licence to accept.
    pub token: Option<String>,
}

impl Environment {
    /// Reads the variables; lower case wins, as with curl.
    pub fn read() -> Self {
        let one = |name: &str| std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let either = |name: &str| one(name).or_else(|| one(&name.to_ascii_uppercase()));
        let all = either("all_proxy");
        Self {
            https_proxy: either("https_proxy").or_else(|| all.clone()),
            http_proxy: either("http_proxy").or(all),
            no_proxy: either("no_proxy"),
            token: one("HF_TOKEN"),
        }
    }
}

/// Makes requests.
pub struct Web {
    https: Agent,
    http: Agent,
    token: Option<String>,
    /// The hub, which alone gets the token.
    hub: Option<Uri>,
}

impl Web {
    /// A client for the hub at `hub`. `silence`: the longest time without a byte.
    ///
    /// # Errors
    /// A proxy variable is no address, or this system trusts no authority.
    pub fn new(environment: &Environment, hub: &str, silence: Duration) -> Result<Self, String> {
        let agent = |proxy: Option<&String>| -> Result<Agent, String> {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .user_agent(concat!("vademecum/", env!("CARGO_PKG_VERSION")))
                .tls_config(tls())
                .proxy(proxy.map(|address| self::proxy(address, environment.no_proxy.as_deref())).transpose()?)
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(Some(silence))
                .timeout_per_read(Some(silence))
                .timeout_per_write(Some(silence));
            Ok(config.build().new_agent())
        };
        Ok(Self {
            https: agent(environment.https_proxy.as_ref())?,
            http: agent(environment.http_proxy.as_ref())?,
            token: environment.token.clone(),
            hub: hub.parse().ok(),
        })
    }

    /// Asks for the file at `url` from byte `from` on. With `etag` only if the file is still that one, else the whole file.
    ///
    /// # Errors
    /// [`WebError`] with the address and the remedy.
    pub fn get(&self, url: &str, from: u64, etag: Option<&str>) -> Result<Answer, WebError> {
        let mut at = address(url)?;
        let mut sha256 = None;
        for _ in 0..=MAX_REDIRECTS {
            let agent = if is_https(&at) { &self.https } else { &self.http };
            let mut request = agent.get(at.clone());
            if let Some(token) = self.token.as_deref().filter(|_| self.hub.as_ref().is_some_and(|hub| same_origin(hub, &at))) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
                if let Some(etag) = etag {
                    request = request.header("If-Range", etag);
                }
            }
            let response = request.call().map_err(|error| failed(&at, &error))?;
            let headers = response.headers();
            // Only this header is a SHA-256. An entity tag of 64 digits is a sum of another kind.
            sha256 = sha256.or_else(|| linked_sum(headers));
            let status = response.status().as_u16();
            match status {
                200 | 206 => {
                    let start = if status == 206 { range_start(headers).ok_or_else(|| odd_range(&at))? } else { 0 };
                    if start != 0 && start != from {
                        return Err(odd_range(&at));
                    }
                    let length = header(headers, "content-length").and_then(|text| text.parse::<u64>().ok());
                    let etag = header(headers, "etag").filter(|tag| tag.starts_with('"') && tag.len() < 200).map(str::to_owned);
                    let total = length.map(|length| length.saturating_add(start));
                    return Ok(Answer { start, total, etag, sha256, body: Box::new(response.into_body().into_reader()) });
                }
                301 | 302 | 303 | 307 | 308 => at = redirected(&at, header(headers, "location").unwrap_or_default())?,
                _ => return Err(refusal(&at, status, header(headers, "x-error-code").unwrap_or_default(), self.token.is_some())),
            }
        }
        Err(WebError::Refused(format!("{url}: more than {MAX_REDIRECTS} redirects; check the address")))
    }
}

/// The system's authorities, as the connection to the broker trusts them.
fn tls() -> TlsConfig {
    let system = rustls_native_certs::load_native_certs();
    let roots = system.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect::<Vec<_>>();
    TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// A proxy with the list of hosts that do without it.
fn proxy(address: &str, without: Option<&str>) -> Result<Proxy, String> {
    let wrong = |_| format!("the proxy `{}` is no address; write HTTPS_PROXY=http://host:port", without_account(address));
    let named = Proxy::new(address).map_err(wrong)?;
    let mut builder = Proxy::builder(named.protocol()).host(named.host()).port(named.port());
    if let Some(name) = named.username() {
        builder = builder.username(name);
    }
    if let Some(password) = named.password() {
        builder = builder.password(password);
    }
    for host in without.unwrap_or_default().split(',').map(str::trim).filter(|host| !host.is_empty()) {
        builder = builder.no_proxy(host);
    }
    builder.build().map_err(wrong)
}

/// An address without the account in it, for messages.
fn without_account(address: &str) -> String {
    match (address.find("://"), address.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => format!("{}{}", &address[..scheme + 3], &address[at + 1..]),
        (None, Some(at)) => address[at + 1..].to_owned(),
        _ => address.to_owned(),
    }
}

fn address(url: &str) -> Result<Uri, WebError> {
    let uri: Option<Uri> = url.parse().ok();
    let usable =
        |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty());
    uri.filter(usable)
        .ok_or_else(|| WebError::Refused(format!("`{}` is no address; write https://host/path", without_account(url))))
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if is_https(uri) { 443 } else { 80 });
    a.scheme() == b.scheme() && a.host() == b.host() && port(a) == port(b)
}

/// The address that a redirect names. Never from https to http, and never to anything else.
fn redirected(from: &Uri, to: &str) -> Result<Uri, WebError> {
    let origin = || format!("{}://{}", from.scheme_str().unwrap_or_default(), from.authority().map_or("", |a| a.as_str()));
    let absolute = if to.contains("://") {
        to.to_owned()
    } else if to.starts_with("//") {
        format!("{}:{to}", from.scheme_str().unwrap_or_default())
    } else if to.starts_with('/') {
        format!("{}{to}", origin())
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{}{folder}/{to}", origin())
    };
    if to.is_empty() {
        return Err(WebError::Refused(format!("{from} redirects to nowhere; check the address")));
    }
    let bad = |why: &str| WebError::Refused(format!("{from} redirects to `{}`, {why}; check the address", without_account(to)));
    let next = address(&absolute).map_err(|_| bad("which is no https address"))?;
    if is_https(from) && !is_https(&next) {
        return Err(bad("which is not encrypted"));
    }
    Ok(next)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// `X-Linked-Etag` of the hub: the SHA-256 of a large file.
fn linked_sum(headers: &HeaderMap) -> Option<String> {
    let tag = header(headers, "x-linked-etag")?.trim_matches('"').to_ascii_lowercase();
    super::catalogue::is_sha256(&tag).then_some(tag)
}

/// The first byte of `Content-Range: bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = header(headers, "content-range")?.strip_prefix("bytes")?.trim_start();
    range.split('-').next()?.trim().parse().ok()
}

fn odd_range(at: &Uri) -> WebError {
    WebError::Refused(format!("{}: the server sends another part of the file than asked for; try another mirror", host(at)))
}

fn host(at: &Uri) -> &str {
    at.host().unwrap_or_default()
}

/// The hub's code says more than the status: it answers 401 for a repository that does not exist.
fn refusal(at: &Uri, status: u16, code: &str, has_token: bool) -> WebError {
    // The query of a storage's address is a signature.
    let place = format!("{}://{}{}", at.scheme_str().unwrap_or_default(), at.authority().map_or("", |a| a.as_str()), at.path());
    let page = place.split("/resolve/").next().unwrap_or(&place);
    let refused = |what: String| WebError::Refused(what);
    match (status, code) {
        (416, _) => WebError::BadRange,
        (_, "RepoNotFound") => refused(format!("{page}: there is no such repository ({status}); check its name")),
        (404, _) => refused(format!("{place}: not found (404); check the name, or take another mirror with --from")),
        (407, _) => refused("the proxy wants an account (407); write HTTPS_PROXY=http://user:password@host:port".into()),
        (401 | 403, _) if has_token => refused(format!(
            "{page}: access refused ({status}): the account of HF_TOKEN may not read this model; accept its licence on that page"
        )),
        (401 | 403, _) => refused(format!(
            "{page}: access refused ({status}): the model is gated; accept its licence on that page, then set HF_TOKEN to a token \
             of your account"
        )),
        (408 | 425 | 429 | 500..=599, _) => WebError::Cut(format!("{place}: the server is busy or fails ({status})")),
        _ => refused(format!("{place}: the server answers {status}; check the address")),
    }
}

fn failed(at: &Uri, error: &ureq::Error) -> WebError {
    let host = host(at);
    match error {
        ureq::Error::HostNotFound => WebError::Cut(format!("{host} is not found; check the network and the proxy variables")),
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) => WebError::Refused(format!(
            "{host}: no trusted connection ({error}); check the clock (timedatectl), and that ca-certificates is installed"
        )),
        ureq::Error::Io(inner) if inner.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some() => {
            WebError::Refused(format!(
                "{host}: no trusted connection ({inner}); check the clock (timedatectl), and that ca-certificates is installed"
            ))
        }
        ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
            WebError::Refused(format!("{host}: {error}; check the address and HF_TOKEN"))
        }
        _ => WebError::Cut(format!("{host}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect(text)
    }

    #[test]
    fn redirects_are_followed_in_all_their_forms() {
        let from = uri("https://hub.example/o/r/resolve/main/a.gguf?x=1");
        for (to, expected) in [
            ("https://cdn.example/b?sig=1", "https://cdn.example/b?sig=1"),
            ("//cdn.example/b", "https://cdn.example/b"),
            ("/o/new/resolve/main/a.gguf", "https://hub.example/o/new/resolve/main/a.gguf"),
            ("b.gguf", "https://hub.example/o/r/resolve/main/b.gguf"),
        ] {
            assert_eq!(redirected(&from, to).map(|uri| uri.to_string()), Ok(expected.to_owned()), "{to}");
        }
        for (to, expected) in
            [("http://cdn.example/b", "not encrypted"), ("file:///etc/shadow", "no https address"), ("", "nowhere")]
        {
            match redirected(&from, to) {
                Err(WebError::Refused(why)) => assert!(why.contains(expected), "{why}"),
                other => panic!("{to}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_token_stays_with_the_hub() {
        let hub = uri("https://huggingface.co");
        assert!(same_origin(&hub, &uri("https://huggingface.co:443/o/r")));
        for other in ["http://huggingface.co/", "https://huggingface.co.evil.example/", "https://huggingface.co:8443/"] {
            assert!(!same_origin(&hub, &uri(other)), "{other}");
        }
    }

    #[test]
    fn proxies_are_read_and_wrong_ones_named_without_their_account() {
        let with_account = proxy("http://me:secret@proxy.lan:3128", Some("localhost, .lan")).expect("an address");
        assert_eq!((with_account.host(), with_account.port(), with_account.username()), ("proxy.lan", 3128, Some("me")));
        assert!(with_account.is_no_proxy(&uri("http://mirror.lan/x")) && with_account.is_no_proxy(&uri("http://localhost/x")));
        assert!(!with_account.is_no_proxy(&uri("https://huggingface.co/x")));
        let error = proxy("gopher://me:secret@proxy.lan", None).expect_err("no such proxy");
        assert!(error.contains("gopher://proxy.lan") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn only_the_hubs_own_header_is_a_sum() {
        let sum = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32";
        let headers = |name: &'static str, value: String| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a value"));
            headers
        };
        assert_eq!(linked_sum(&headers("x-linked-etag", format!("\"{sum}\""))), Some(sum.to_owned()));
        assert_eq!(linked_sum(&headers("x-linked-etag", "\"5f0b0a\"".into())), None);
        assert_eq!(linked_sum(&headers("etag", format!("\"{sum}\""))), None);
        assert_eq!(range_start(&headers("content-range", "bytes 5-9/10".into())), Some(5));
        assert_eq!(range_start(&headers("content-range", "bytes */10".into())), None);
    }

    #[test]
    fn refusals_name_the_remedy() {
        let at = uri("https://huggingface.co/google/gemma/resolve/main/a.gguf?sig=secret");
        for (status, code, token, expected) in [
            (401, "GatedRepo", false, "accept its licence on that page, then set HF_TOKEN"),
            (403, "GatedRepo", true, "the account of HF_TOKEN may not read this model"),
            (401, "RepoNotFound", false, "there is no such repository"),
            (404, "EntryNotFound", false, "not found (404)"),
            (418, "", false, "answers 418"),
        ] {
            match refusal(&at, status, code, token) {
                WebError::Refused(why) => {
                    assert!(why.contains(expected) && why.contains("https://huggingface.co/google/gemma"), "{why}");
                    assert!(!why.contains("sig="), "a signature in a message: {why}");
                }
                other => panic!("{status}: {other:?}"),
            }
        }
        assert!(matches!(refusal(&at, 503, "", false), WebError::Cut(_)));
        assert_eq!(refusal(&at, 416, "", false), WebError::BadRange);
    }
}
