//! One client for everything that goes over the network: certificates, tokens, redirects, errors in words.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{Method, Request, Response, Uri, request};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, SendBody};

use crate::{Error, Result, Settings};

/// Redirects that are followed for one request.
const REDIRECTS: usize = 6;

/// Attempts at a request that the Hub is too busy to answer.
const ATTEMPTS: u32 = 4;

/// Answers in JSON are short.
const MAX_JSON: u64 = 64 << 20;

/// A Hub over HTTP.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// A request: no more than the Hub's protocol needs.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    /// Time for the body of the answer.
    pub(crate) patience: Duration,
    /// What was asked for, for errors.
    pub(crate) what: &'a str,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, url: &'a str, what: &'a str) -> Call<'a> {
        Call { method, url, headers: &[], patience: Duration::from_secs(60), what }
    }
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Client {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        // Redirects are followed here, so that the token goes to the Hub alone.
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("moco/", env!("CARGO_PKG_VERSION")))
            .build();
        Client { agent: config.into(), endpoint: settings.endpoint.clone(), token: settings.token.clone() }
    }

    /// An address of the Hub.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// Sends a request without following redirects; tries again while the Hub is busy.
    pub(crate) fn send(&self, call: &Call<'_>, body: &mut Outgoing<'_>) -> Result<Response<Body>> {
        let mut attempt = 1;
        loop {
            let answer = self.send_once(call, body);
            let busy = match &answer {
                Ok(answer) => matches!(answer.status().as_u16(), 429 | 500 | 502 | 503 | 504),
                Err(_) => false,
            };
            if !busy || attempt == ATTEMPTS {
                return answer;
            }
            log::info!("{}: the Hub is busy, attempt {attempt} of {ATTEMPTS}", call.what);
            std::thread::sleep(Duration::from_millis(200) * 2u32.pow(attempt));
            attempt += 1;
        }
    }

    fn send_once(&self, call: &Call<'_>, body: &mut Outgoing<'_>) -> Result<Response<Body>> {
        let mut request = Request::builder().method(call.method.clone()).uri(call.url);
        for (name, value) in call.headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.is_ours(call.url)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        match body {
            Outgoing::Nothing => self.run(call, request, SendBody::none()),
            Outgoing::Bytes { bytes, sent } => {
                let request = request.header("Content-Length", bytes.len());
                let mut reader = Reporting { bytes, at: 0, sent: &mut **sent };
                self.run(call, request, SendBody::from_reader(&mut reader))
            }
        }
    }

    fn run(&self, call: &Call<'_>, request: request::Builder, body: SendBody<'_>) -> Result<Response<Body>> {
        let failed = |reason: String| Error::Network { what: call.what.to_owned(), reason };
        let request = request.body(body).map_err(|error| failed(format!("{} is no address: {error}", call.url)))?;
        let request = self.agent.configure_request(request).timeout_recv_body(Some(call.patience)).build();
        self.agent.run(request).map_err(|error| {
            let place = call.url.split('?').next().unwrap_or_default();
            failed(format!(
                "{place} cannot be reached: {error}. Is the network there? With HF_HUB_OFFLINE=1 the cache is used"
            ))
        })
    }

    /// Sends a request without a body and follows redirects as long as `follow` says so of their target.
    pub(crate) fn follow(
        &self,
        call: &Call<'_>,
        follow: &mut dyn FnMut(&Response<Body>, &str) -> bool,
    ) -> Result<Response<Body>> {
        let mut url = call.url.to_owned();
        for _ in 0..REDIRECTS {
            let call = Call { method: call.method.clone(), url: &url, ..*call };
            let answer = self.send(&call, &mut Outgoing::Nothing)?;
            let Some(target) = header(&answer, "Location").filter(|_| answer.status().is_redirection()) else {
                return Ok(answer);
            };
            if !follow(&answer, target) {
                return Ok(answer);
            }
            url = absolute(&url, target);
        }
        Err(Error::Answer { what: call.what.to_owned(), reason: format!("more than {REDIRECTS} redirects") })
    }

    /// A JSON answer to a request with or without a body.
    pub(crate) fn json<T: DeserializeOwned>(&self, call: &Call<'_>, body: Option<&[u8]>) -> Result<T> {
        let nobody: &mut dyn FnMut(u64) = &mut |_| ();
        let mut body = body.map_or(Outgoing::Nothing, |bytes| Outgoing::Bytes { bytes, sent: nobody });
        let answer = self.check(self.send(call, &mut body)?, call.what)?;
        let unexpected = |reason: String| Error::Answer { what: call.what.to_owned(), reason };
        let mut text = Vec::new();
        answer
            .into_body()
            .into_reader()
            .take(MAX_JSON)
            .read_to_end(&mut text)
            .map_err(|e| Error::Network { what: call.what.to_owned(), reason: format!("the answer broke off: {e}") })?;
        serde_json::from_slice(&text)
            .map_err(|e| unexpected(format!("the answer of {} is not the JSON of a Hub ({e})", call.url)))
    }

    /// Turns an answer that is no success into an error in words.
    pub(crate) fn check(&self, answer: Response<Body>, what: &str) -> Result<Response<Body>> {
        let status = answer.status();
        if status.is_success() || status.is_redirection() {
            return Ok(answer);
        }
        let what = what.to_owned();
        let code = header(&answer, "X-Error-Code").unwrap_or_default().to_owned();
        let message = header(&answer, "X-Error-Message").map(str::to_owned);
        let said = || message.clone().unwrap_or_else(|| body_text(answer));
        let token = if self.token.is_some() { "the token (HF_TOKEN) does not allow it" } else { "HF_TOKEN is not set" };
        Err(match (status.as_u16(), &*code) {
            (_, "GatedRepo") => Error::Denied {
                what,
                reason: format!("the repository is gated: accept its terms on its page, then set HF_TOKEN; {token}"),
            },
            (_, "RepoNotFound") => Error::NotFound {
                what,
                reason: format!("the Hub knows no such repository, or it is private and {token}"),
            },
            (_, "RevisionNotFound") => {
                Error::NotFound { what, reason: "the repository has no such branch, tag or commit".into() }
            }
            (_, "EntryNotFound") => Error::NotFound { what, reason: "the repository has no such file".into() },
            (401 | 403, _) => Error::Denied {
                what,
                reason: format!(
                    "{}: either there is no such repository, or {token}",
                    non_empty(said(), status.as_str())
                ),
            },
            (404, _) => Error::NotFound { what, reason: format!("the Hub answers 404 {}", said()).trim_end().into() },
            (429 | 500..=599, _) => {
                Error::Network { what, reason: format!("the Hub answers {status} {}; try again later", said()) }
            }
            _ => Error::Answer { what, reason: format!("the Hub answers {status} {}", said()).trim_end().into() },
        })
    }

    /// Whether an address is the Hub's own: only that gets the token.
    pub(crate) fn is_ours(&self, url: &str) -> bool {
        let place =
            |url: &str| url.parse::<Uri>().ok().map(|u| (u.scheme_str().map(str::to_owned), u.authority().cloned()));
        place(url) == place(&self.endpoint)
    }
}

/// The body of a request.
pub(crate) enum Outgoing<'a> {
    Nothing,
    Bytes {
        bytes: &'a [u8],
        /// Told how many bytes are sent.
        sent: &'a mut dyn FnMut(u64),
    },
}

/// Bytes that tell how far they are read.
struct Reporting<'a> {
    bytes: &'a [u8],
    at: usize,
    sent: &'a mut dyn FnMut(u64),
}

impl Read for Reporting<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = (&self.bytes[self.at..]).read(out)?;
        self.at += n;
        (self.sent)(self.at as u64);
        Ok(n)
    }
}

pub(crate) fn header<'a>(answer: &'a Response<Body>, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok().map(str::trim).filter(|value| !value.is_empty())
}

/// The target of a redirect as an address of its own.
pub(crate) fn absolute(base: &str, target: &str) -> String {
    if target.contains("://") {
        return target.to_owned();
    }
    let start = base.find("://").map_or(0, |at| at + 3);
    let root = base[start..].find('/').map_or(base, |at| &base[..start + at]);
    format!("{root}/{}", target.trim_start_matches('/'))
}

fn body_text(answer: Response<Body>) -> String {
    let mut text = Vec::new();
    let _ = answer.into_body().into_reader().take(400).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(value) => value["error"].as_str().unwrap_or_default().to_owned(),
        Err(_) if text.trim_start().starts_with('<') => String::new(),
        Err(_) => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

fn non_empty(text: String, otherwise: &str) -> String {
    if text.is_empty() { format!("the Hub answers {otherwise}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_against_where_they_come_from() {
        assert_eq!(absolute("http://h:1/a/b", "/c"), "http://h:1/c");
        assert_eq!(absolute("http://h:1", "c"), "http://h:1/c");
        assert_eq!(absolute("http://h:1/a", "https://x/y"), "https://x/y");
    }

    #[test]
    fn only_the_hub_itself_gets_the_token() {
        let settings = Settings {
            endpoint: "https://hub.example".into(),
            cache: "/".into(),
            token: Some("t".into()),
            offline: false,
        };
        let client = Client::new(&settings);
        assert!(client.is_ours("https://hub.example/a/b"));
        for other in [
            "http://hub.example/a",
            "https://hub.example:444/a",
            "https://cdn.hub.example/a",
            "https://hub.example.org/",
        ] {
            assert!(!client.is_ours(other), "{other}");
        }
    }
}
