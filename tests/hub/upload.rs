//! What our client sends to a Hub.

use std::fs;

use moco_hub::{Hub, PushOptions, Settings, Upload};
use moco_tests::hub::{HubServer, TOKEN};

use super::{backbone, fetch, reference, settings};

fn options(create: Option<bool>) -> PushOptions {
    PushOptions { create, message: "a test".into() }
}

#[test]
fn a_push_makes_the_repository_and_comes_back_unchanged() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let settings = Settings { token: Some(TOKEN.into()), ..settings(&server, cache.path()) };
    let bytes = backbone(1);
    // Once whole, once in parts.
    for (name, part_size) in [("a/whole", None), ("a/parts", Some(7000))] {
        {
            let mut state = server.state();
            (state.part_size, state.busy) = (part_size, 1);
        }
        let salted = [&bytes[..], name.as_bytes()].concat();
        let files = [
            Upload { name: "backbone.safetensors", bytes: &salted },
            Upload { name: "README.md", bytes: b"# card\n" },
            Upload { name: "empty.onnx", bytes: b"" },
        ];
        let mut last = 0;
        let target = reference(&format!("hf://{name}"));
        let pushed =
            Hub::new(settings.clone()).push(&target, &files, &options(Some(true)), &mut |p| last = p.done).unwrap();
        assert_eq!(last, salted.len() as u64);
        assert!(pushed.url.ends_with(&pushed.commit));
        assert_eq!(server.file(name, "main", "README.md").unwrap(), b"# card\n");
        let path = fetch(&settings, &format!("hf://{name}@{}", pushed.commit)).unwrap();
        assert!(fs::read(path).unwrap() == salted);
        let stranger = Settings { token: None, ..settings.clone() };
        assert!(fetch(&stranger, &format!("hf://{name}/README.md")).is_err(), "it was made private");
    }
    let state = server.state();
    assert!(state.requests.iter().all(|(_, path, token)| !path.starts_with("/upload") || !token));
}

#[test]
fn the_second_push_adds_a_commit_and_sends_nothing_twice() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let settings = Settings { token: Some(TOKEN.into()), ..settings(&server, cache.path()) };
    let bytes = backbone(1);
    let hub = Hub::new(settings);
    let push = |readme: &str| {
        let files = [
            Upload { name: "backbone.safetensors", bytes: &bytes },
            Upload { name: "README.md", bytes: readme.as_bytes() },
        ];
        hub.push(&reference("hf://a/b"), &files, &options(Some(false)), &mut |_| ()).unwrap().commit
    };
    assert_ne!(push("one"), push("two"));
    assert_eq!(server.file("a/b", "main", "README.md").unwrap(), b"two");
    let uploads = server.state().requests.iter().filter(|(method, ..)| method == "PUT").count();
    assert_eq!(uploads, 1);
}

#[test]
fn a_push_that_cannot_be_says_why_and_leaves_nothing() {
    let (server, cache) = (HubServer::start(), tempfile::tempdir().unwrap());
    let stranger = settings(&server, cache.path());
    let known = Settings { token: Some(TOKEN.into()), ..stranger.clone() };
    let wrong = Settings { token: Some("hf_wrong".into()), ..stranger.clone() };
    let offline = Settings { offline: true, ..known.clone() };
    server.commit("a/b", "main", &[("README.md", b"old")]);
    for (settings, target, create, words) in [
        (&stranger, "hf://a/b", None, "set HF_TOKEN"),
        (&wrong, "hf://a/b", None, "does not allow it"),
        (&offline, "hf://a/b", None, "HF_HUB_OFFLINE"),
        (&known, "hf://a/nobody", None, "no such repository"),
        (&known, "hf://a/b@nowhere", None, "no such branch"),
        (&known, "hf://a/b/file.txt", None, "file.txt"),
        (&wrong, "hf://a/new", Some(false), "does not allow it"),
    ] {
        let files = [Upload { name: "README.md", bytes: b"new" }];
        let error = Hub::new(settings.clone()).push(&reference(target), &files, &options(create), &mut |_| ());
        let error = error.expect_err(target).to_string();
        assert!(error.contains(words), "{target}: {error}");
    }
    assert_eq!(server.file("a/b", "main", "README.md").unwrap(), b"old");
    assert!(server.file("a/new", "main", ".gitattributes").is_none());
}
