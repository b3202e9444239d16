//! A Hub of models that lives in a thread: what the Hub's HTTP protocol needs for downloads and uploads, on the loopback
//! interface. Python's own client works with it, so that it is a fair stand-in.

mod api;
mod files;
mod http;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::{Digest, Sha256};

use self::http::{Answer, Request};

/// The token that the stand-in accepts.
pub const TOKEN: &str = "hf_stand_in";

/// A running Hub; it stops with the process.
#[derive(Clone)]
pub struct HubServer {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
}

/// What a Hub can be made to do wrong, and what it saw.
#[derive(Default)]
pub struct State {
    repositories: BTreeMap<String, Repository>,
    /// Content in large-file storage by SHA-256.
    lfs: HashMap<String, Vec<u8>>,
    /// Parts of uploads that are not complete.
    parts: HashMap<(String, usize), Vec<u8>>,
    /// Files larger than this go up in parts.
    pub part_size: Option<usize>,
    /// Content of these hashes is sent with one bit wrong.
    pub corrupt: HashSet<String>,
    /// This many answers with content break off in the middle.
    pub break_off: usize,
    /// This many requests are answered 503.
    pub busy: usize,
    /// Ranges are ignored.
    pub no_ranges: bool,
    /// Method, path and whether a token came with it, of each request.
    pub requests: Vec<(String, String, bool)>,
}

/// A repository: commits, and where branches and tags are.
#[derive(Default)]
struct Repository {
    private: bool,
    gated: bool,
    commits: HashMap<String, BTreeMap<String, File>>,
    refs: BTreeMap<String, String>,
}

/// A file of a commit.
#[derive(Clone)]
struct File {
    content: Content,
    etag: String,
}

#[derive(Clone)]
enum Content {
    Regular(Vec<u8>),
    Lfs { oid: String, size: usize },
}

impl HubServer {
    /// Starts a Hub without repositories.
    ///
    /// # Panics
    /// If no port of the loopback interface can be had.
    pub fn start() -> HubServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the loopback interface");
        let address = listener.local_addr().expect("a listener has an address");
        let hub = HubServer { state: Arc::default(), address };
        let server = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                std::thread::spawn(move || server.serve(&stream));
            }
        });
        hub
    }

    /// What HF_ENDPOINT is set to.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Another name of the same machine, where large files lie as they would on another host.
    fn storage(&self) -> String {
        format!("http://localhost:{}", self.address.port())
    }

    /// The state, for a test to look at or to change.
    ///
    /// # Panics
    /// If a thread of the Hub panicked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the Hub panicked")
    }

    /// Commits files to a branch, which is made if need be; returns the commit. Files of weights go to large-file storage.
    pub fn commit(&self, id: &str, branch: &str, files: &[(&str, &[u8])]) -> String {
        let mut state = self.state();
        let contents = files.iter().map(|(name, bytes)| {
            let content = if is_large(name) {
                let oid = sha256(bytes);
                state.lfs.insert(oid.clone(), bytes.to_vec());
                Content::Lfs { oid, size: bytes.len() }
            } else {
                Content::Regular(bytes.to_vec())
            };
            ((*name).to_owned(), content)
        });
        let contents = contents.collect();
        state.repositories.entry(id.to_owned()).or_default().commit(branch, contents)
    }

    /// Makes a tag.
    ///
    /// # Panics
    /// If there is no such repository.
    pub fn tag(&self, id: &str, tag: &str, commit: &str) {
        let mut state = self.state();
        let repository = state.repositories.get_mut(id).expect("the repository was made");
        repository.refs.insert(tag.to_owned(), commit.to_owned());
    }

    /// Hides a repository from who has no token, or asks for terms to be accepted.
    ///
    /// # Panics
    /// If there is no such repository.
    pub fn restrict(&self, id: &str, private: bool, gated: bool) {
        let mut state = self.state();
        let repository = state.repositories.get_mut(id).expect("the repository was made");
        (repository.private, repository.gated) = (private, gated);
    }

    /// A file of a branch.
    pub fn file(&self, id: &str, branch: &str, name: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let repository = state.repositories.get(id)?;
        match &repository.commits.get(repository.refs.get(branch)?)?.get(name)?.content {
            Content::Regular(bytes) => Some(bytes.clone()),
            Content::Lfs { oid, .. } => state.lfs.get(oid).cloned(),
        }
    }

    fn serve(&self, stream: &TcpStream) {
        while let Some(request) = http::read(stream) {
            let answer = self.answer(&request);
            if http::write(stream, &request, answer).is_none() {
                return;
            }
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        let authorised = request.header("authorization") == Some(&format!("Bearer {TOKEN}"));
        let mut state = self.state();
        let token = request.header("authorization").is_some();
        state.requests.push((request.method.clone(), request.path.clone(), token));
        if state.busy > 0 {
            state.busy -= 1;
            return Answer::error(503, "", "Service Unavailable");
        }
        let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        match (&*request.method, &parts[..]) {
            ("GET" | "HEAD", ["storage", oid]) => state.stored(request, oid),
            ("PUT", ["upload", oid, part]) => state.receive(oid, part.parse().unwrap_or(0), &request.body),
            ("POST", ["complete", oid]) => state.complete(oid, &request.body),
            ("POST", ["verify"]) => state.verify(&request.body),
            ("GET" | "HEAD", [owner, name, "resolve", revision, file @ ..]) => {
                let place = (format!("{owner}/{name}"), http::unescape(revision), http::unescape(&file.join("/")));
                state.resolve(request, &place, authorised, &self.storage())
            }
            _ => state.api(request, &parts, authorised, [&self.endpoint(), &self.storage()]),
        }
    }
}

impl Repository {
    fn commit(&mut self, branch: &str, contents: Vec<(String, Content)>) -> String {
        let parent = self.refs.get(branch).cloned();
        let mut files = parent.as_ref().and_then(|p| self.commits.get(p)).cloned().unwrap_or_default();
        for (name, content) in contents {
            let etag = match &content {
                Content::Regular(bytes) => sha256(bytes)[..40].to_owned(),
                Content::Lfs { oid, .. } => oid.clone(),
            };
            files.insert(name, File { content, etag });
        }
        let mut text = format!("{parent:?}{branch}");
        files.iter().for_each(|(name, file)| text += &format!("{name} {}\n", file.etag));
        let commit = sha256(text.as_bytes())[..40].to_owned();
        self.commits.insert(commit.clone(), files);
        self.refs.insert(branch.to_owned(), commit.clone());
        commit
    }

    /// Commit and files of a branch, tag or commit.
    fn at(&self, revision: &str) -> Option<(&str, &BTreeMap<String, File>)> {
        let commit = self.refs.get(revision).map_or(revision, String::as_str);
        self.commits.get_key_value(commit).map(|(commit, files)| (commit.as_str(), files))
    }
}

/// Which files a Hub keeps in large-file storage.
fn is_large(name: &str) -> bool {
    [".safetensors", ".onnx", ".pth", ".pt", ".tar", ".bin", ".pkl"].iter().any(|end| name.ends_with(end))
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
