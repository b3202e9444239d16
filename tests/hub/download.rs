//! What our client makes of a Hub's answers.

use std::fs;

use moco_hub::{Error, Settings};
use moco_tests::hub::{HubServer, TOKEN, sha256};

use super::{backbone, fetch, refusal, settings};

#[test]
fn a_file_is_fetched_once_and_then_lies_in_the_cache() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let bytes = backbone(1);
    let commit = server.commit("a/b", "main", &[("README.md", b"# hello"), ("backbone.safetensors", &bytes)]);
    let settings = settings(&server, cache.path());
    let path = fetch(&settings, "hf://a/b").unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let folder = cache.path().join("models--a--b");
    assert_eq!(path, folder.join("snapshots").join(&commit).join("backbone.safetensors"));
    assert_eq!(fs::read_link(&path).unwrap(), std::path::Path::new("../../blobs").join(sha256(&bytes)));
    assert_eq!(fs::read_to_string(folder.join("refs/main")).unwrap(), commit);
    assert_eq!(fs::read_dir(folder.join("blobs")).unwrap().count(), 1, "nothing half-done is left");

    assert_eq!(fetch(&settings, "hf://a/b").unwrap(), path);
    assert_eq!(fetch(&settings, &format!("hf://a/b@{commit}/backbone.safetensors")).unwrap(), path);
    let transfers = server.state().requests.iter().filter(|(_, path, _)| path.starts_with("/storage")).count();
    assert_eq!(transfers, 1);
    let readme = fetch(&settings, "hf://a/b/README.md").unwrap();
    assert_eq!(fs::read(readme).unwrap(), b"# hello");
}

#[test]
fn progress_tells_bytes_of_the_total() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let bytes = backbone(1);
    server.commit("a/b", "main", &[("model.safetensors", &bytes)]);
    let mut seen = Vec::new();
    let hub = moco_hub::Hub::new(settings(&server, cache.path()));
    hub.fetch(&"hf://a/b".parse().unwrap(), &mut |p| seen.push((p.file.to_owned(), p.done, p.total))).unwrap();
    let total = bytes.len() as u64;
    assert!(seen.is_sorted() && seen.last() == Some(&("model.safetensors".to_owned(), total, total)), "{seen:?}");
}

#[test]
fn revisions_are_branches_tags_commits_and_pull_requests() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let (old, new, other) = (backbone(1), backbone(2), backbone(3));
    let first = server.commit("a/b", "main", &[("backbone.safetensors", &old)]);
    server.tag("a/b", "v1", &first);
    server.commit("a/b", "refs/pr/7", &[("backbone.safetensors", &other)]);
    let settings = settings(&server, cache.path());
    let read = |text: &str| fs::read(fetch(&settings, text).unwrap()).unwrap();
    assert!(read("hf://a/b") == old);
    server.commit("a/b", "main", &[("backbone.safetensors", &new)]);
    assert!(read("hf://a/b") == new, "a branch that moved is followed");
    assert!(read("hf://a/b@v1") == old);
    assert!(read(&format!("hf://a/b@{first}")) == old);
    assert!(read("hf://a/b@refs/pr/7/backbone.safetensors") == other);
}

#[test]
fn what_is_missing_is_named() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.commit("a/b", "main", &[("README.md", b"nothing here")]);
    server.commit("a/c", "main", &[("x.safetensors", b"1"), ("y.safetensors", b"2")]);
    let settings = settings(&server, cache.path());
    for (text, words) in [
        ("hf://a/nobody", &["a/nobody", "no such repository", "HF_TOKEN is not set"][..]),
        ("hf://a/b@v9", &["a/b@v9", "no such branch, tag or commit"]),
        ("hf://a/b/backbone.safetensors", &["a/b/backbone.safetensors", "no such file"]),
        ("hf://a/b", &["no file of weights", "README.md"]),
        ("hf://a/c", &["several files", "x.safetensors, y.safetensors"]),
    ] {
        let error = refusal(&settings, text);
        assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
    }
    assert!(!cache.path().join("models--a--b/snapshots").exists());
}

#[test]
fn private_and_gated_repositories_want_a_token_which_goes_to_the_hub_alone() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let bytes = backbone(1);
    server.commit("a/private", "main", &[("backbone.safetensors", &bytes)]);
    server.restrict("a/private", true, false);
    server.commit("a/gated", "main", &[("backbone.safetensors", &bytes)]);
    server.restrict("a/gated", false, true);
    let stranger = settings(&server, cache.path());
    assert!(refusal(&stranger, "hf://a/private").contains("HF_TOKEN is not set"));
    let error = refusal(&stranger, "hf://a/gated");
    assert!(error.contains("access denied") && error.contains("gated"), "{error}");
    let wrong = Settings { token: Some("hf_wrong".into()), ..stranger.clone() };
    assert!(refusal(&wrong, "hf://a/private").contains("does not allow it"));
    let known = Settings { token: Some(TOKEN.into()), ..stranger };
    for text in ["hf://a/private", "hf://a/gated"] {
        assert!(fs::read(fetch(&known, text).unwrap()).unwrap() == bytes);
    }
    let state = server.state();
    let mut storage = state.requests.iter().filter(|(_, path, _)| path.starts_with("/storage"));
    assert!(storage.all(|(_, _, token)| !token), "the token went to the storage's host");
}

#[test]
fn a_file_with_another_hash_is_thrown_away() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let bytes = backbone(1);
    server.commit("a/b", "main", &[("backbone.safetensors", &bytes)]);
    server.state().corrupt.insert(sha256(&bytes));
    let settings = settings(&server, cache.path());
    let error = refusal(&settings, "hf://a/b");
    assert!(error.contains("thrown away") && error.contains(&sha256(&bytes)), "{error}");
    let blobs = fs::read_dir(cache.path().join("models--a--b/blobs")).unwrap().count();
    assert_eq!(blobs, 0);
    server.state().corrupt.clear();
    assert!(fs::read(fetch(&settings, "hf://a/b").unwrap()).unwrap() == bytes);
}

#[test]
fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    for no_ranges in [false, true] {
        let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
        let bytes = backbone(1);
        server.commit("a/b", "main", &[("backbone.safetensors", &bytes)]);
        {
            let mut state = server.state();
            (state.break_off, state.no_ranges) = (2, no_ranges);
        }
        assert!(
            fs::read(fetch(&settings(&server, cache.path()), "hf://a/b/backbone.safetensors").unwrap()).unwrap()
                == bytes
        );
        let transfers =
            server.state().requests.iter().filter(|(m, p, _)| m == "GET" && p.starts_with("/storage")).count();
        assert_eq!(transfers, 3);
    }
}

#[test]
fn a_busy_hub_is_asked_again_and_one_that_stays_busy_is_named() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    server.commit("a/b", "main", &[("backbone.safetensors", &backbone(1))]);
    server.state().busy = 1;
    let settings = settings(&server, cache.path());
    fetch(&settings, "hf://a/b").unwrap();
    server.state().busy = 100;
    let error = refusal(&settings, "hf://a/b@other");
    assert!(error.contains("503") && error.contains("try again later"), "{error}");
}

#[test]
fn without_a_network_the_cache_is_used() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let bytes = backbone(1);
    server.commit("a/b", "main", &[("backbone.safetensors", &bytes), ("other.safetensors", b"x")]);
    let online = settings(&server, cache.path());
    let path = fetch(&online, "hf://a/b").unwrap();

    let offline = Settings { offline: true, ..online.clone() };
    let before = server.state().requests.len();
    assert_eq!(fetch(&offline, "hf://a/b").unwrap(), path);
    assert_eq!(fetch(&offline, "hf://a/b/backbone.safetensors").unwrap(), path);
    for (text, words) in [
        ("hf://a/b/other.safetensors", &["HF_HUB_OFFLINE", "does not have the file `other.safetensors`"][..]),
        ("hf://a/b@v2", &["HF_HUB_OFFLINE", "revision `v2`, only main"]),
        ("hf://a/z", &["HF_HUB_OFFLINE", "nothing of this repository"]),
    ] {
        let error = refusal(&offline, text);
        assert!(words.iter().all(|word| error.contains(word)), "{text}: {error}");
    }
    assert_eq!(server.state().requests.len(), before, "offline means no request at all");

    // A port where nobody listens.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = Settings { endpoint: format!("http://{nowhere}"), ..online };
    assert_eq!(fetch(&unreachable, "hf://a/b").unwrap(), path);
    let error = fetch(&unreachable, "hf://a/z").unwrap_err();
    assert!(matches!(&error, Error::Network { .. }) && error.to_string().contains("cannot be reached"), "{error}");
}

#[test]
fn an_endpoint_that_is_no_hub_is_told_apart() {
    let cache = tempfile::tempdir().unwrap();
    let server = HubServer::start();
    let elsewhere =
        Settings { endpoint: format!("{}/nothing/here", server.endpoint()), ..settings(&server, cache.path()) };
    let error = refusal(&elsewhere, "hf://a/b/x.pth");
    assert!(error.contains("404"), "{error}");
}
